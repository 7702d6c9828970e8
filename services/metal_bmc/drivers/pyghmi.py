"""The driver on pyghmi: turns interface calls into orders for the driver processes, and answers into plain values.

Never imports pyghmi itself; that happens in the process only (`operations`).
"""

from __future__ import annotations

from typing import Any

from metal_bmc.drivers.errors import BmcBadAnswer
from metal_bmc.drivers.interface import BootSetting, BootTarget, DeviceInfo, Target
from metal_bmc.drivers.pool import WorkerPool


class PyghmiDriver:
    """Implements `BmcDriver`. That a BMC is asked one thing at a time is the caller's business."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    async def close(self) -> None:
        """End the driver processes."""
        await self._pool.close()

    async def powered(self, target: Target, *, deadline: float) -> bool:
        """See `BmcDriver`."""
        return bool(await self._order("powered", target, {}, deadline))

    async def set_power(self, target: Target, *, on: bool, deadline: float) -> None:
        """See `BmcDriver`."""
        await self._order("set_power", target, {"on": on}, deadline)

    async def reset(self, target: Target, *, deadline: float) -> None:
        """See `BmcDriver`."""
        await self._order("reset", target, {}, deadline)

    async def set_boot(self, target: Target, boot: BootTarget, *, disk_selector: int, deadline: float) -> BootSetting:
        """See `BmcDriver`."""
        arguments = {"boot": boot.value, "disk_selector": disk_selector}
        return _boot_setting(await self._order("set_boot", target, arguments, deadline))

    async def boot(self, target: Target, *, deadline: float) -> BootSetting:
        """See `BmcDriver`."""
        return _boot_setting(await self._order("boot", target, {}, deadline))

    async def set_identify(self, target: Target, *, on: bool, deadline: float) -> bool | None:
        """See `BmcDriver`."""
        state = await self._order("set_identify", target, {"on": on}, deadline)
        return None if state is None else bool(state)

    async def inspect(self, target: Target, *, deadline: float) -> DeviceInfo:
        """See `BmcDriver`."""
        return DeviceInfo(**_object(await self._order("inspect", target, {}, deadline)))

    async def _order(self, operation: str, target: Target, arguments: dict[str, Any], deadline: float) -> object:
        login = {"host": target.host, "port": target.port, "user": target.user, "password": target.password}
        return await self._pool.call(operation, login, arguments, deadline=deadline)


def _object(answer: object) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise BmcBadAnswer("the driver's answer has the wrong shape")
    return answer


def _boot_setting(answer: object) -> BootSetting:
    values = _object(answer)
    target = values["target"]
    return BootSetting(None if target is None else BootTarget(target), bool(values["persistent"]), bool(values["uefi"]))
