"""The driver on pyghmi: turns interface calls into orders for the driver processes, and answers into plain values.

Never imports pyghmi itself; that happens in the process only (`operations`).
"""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakValueDictionary

from metal_bmc.drivers.errors import BmcBadAnswer, BmcTimeout
from metal_bmc.drivers.interface import BootSetting, BootTarget, DeviceInfo, Target
from metal_bmc.drivers.pool import WorkerPool


class PyghmiDriver:
    """Implements `BmcDriver`. One exchange at a time per BMC: BMCs are slow and some mix up parallel sessions."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._doors: WeakValueDictionary[tuple[str, int], asyncio.Lock] = WeakValueDictionary()

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
        address = (target.host, target.port)
        door = self._doors.get(address) or asyncio.Lock()
        self._doors[address] = door
        login = {"host": target.host, "port": target.port, "user": target.user, "password": target.password}
        loop = asyncio.get_running_loop()
        give_up = loop.time() + deadline
        try:
            async with asyncio.timeout_at(give_up):
                await door.acquire()
        except TimeoutError:
            raise BmcTimeout("another exchange with this BMC did not end in time") from None
        try:
            return await self._pool.call(operation, login, arguments, deadline=round(give_up - loop.time(), 2))
        finally:
            door.release()


def _object(answer: object) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise BmcBadAnswer("the driver's answer has the wrong shape")
    return answer


def _boot_setting(answer: object) -> BootSetting:
    values = _object(answer)
    target = values["target"]
    return BootSetting(None if target is None else BootTarget(target), bool(values["persistent"]), bool(values["uefi"]))
