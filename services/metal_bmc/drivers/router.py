"""One driver out of several: each order goes to the driver of its target's kind."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from metal_bmc.drivers.errors import BmcUnsupported
from metal_bmc.drivers.interface import BmcDriver, BootSetting, BootWish, DeviceInfo, DriverKind, Target


class DriverSet:
    """Implements `BmcDriver` for all kinds that it has; an order for another kind is `BmcUnsupported`."""

    def __init__(self, drivers: Mapping[DriverKind, BmcDriver]) -> None:
        self._drivers = dict(drivers)

    @property
    def kinds(self) -> frozenset[DriverKind]:
        """The kinds that can be served."""
        return frozenset(self._drivers)

    async def close(self) -> None:
        """Close all drivers."""
        await asyncio.gather(*(driver.close() for driver in self._drivers.values()))

    async def powered(self, target: Target, *, deadline: float) -> bool:
        """See `BmcDriver`."""
        return await self._of(target).powered(target, deadline=deadline)

    async def set_power(self, target: Target, *, on: bool, deadline: float) -> None:
        """See `BmcDriver`."""
        await self._of(target).set_power(target, on=on, deadline=deadline)

    async def soft_off(self, target: Target, *, deadline: float) -> None:
        """See `BmcDriver`."""
        await self._of(target).soft_off(target, deadline=deadline)

    async def reset(self, target: Target, *, deadline: float) -> None:
        """See `BmcDriver`."""
        await self._of(target).reset(target, deadline=deadline)

    async def interrupt(self, target: Target, *, deadline: float) -> None:
        """See `BmcDriver`."""
        await self._of(target).interrupt(target, deadline=deadline)

    async def set_boot(self, target: Target, wish: BootWish, *, deadline: float) -> BootSetting:
        """See `BmcDriver`."""
        return await self._of(target).set_boot(target, wish, deadline=deadline)

    async def boot(self, target: Target, *, deadline: float) -> BootSetting:
        """See `BmcDriver`."""
        return await self._of(target).boot(target, deadline=deadline)

    async def set_identify(self, target: Target, *, on: bool, deadline: float) -> bool | None:
        """See `BmcDriver`."""
        return await self._of(target).set_identify(target, on=on, deadline=deadline)

    async def inspect(self, target: Target, *, deadline: float) -> DeviceInfo:
        """See `BmcDriver`."""
        return await self._of(target).inspect(target, deadline=deadline)

    def _of(self, target: Target) -> BmcDriver:
        driver = self._drivers.get(target.driver)
        if driver is None:
            raise BmcUnsupported(f"this service has no driver of the kind {target.driver}")
        return driver
