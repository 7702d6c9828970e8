"""The driver on our own RMCP+ client: power, boot device, identify light, identity. Only FRU goes to pyghmi."""

from __future__ import annotations

import asyncio
import uuid
from typing import Protocol

from metal_kit import guard

from metal_bmc.drivers.errors import (
    BmcAuthFailed,
    BmcBadAnswer,
    BmcError,
    BmcRefused,
    BmcSessionsFull,
    BmcTimeout,
    BmcUnsupported,
    DriverBusy,
)
from metal_bmc.drivers.interface import BootSetting, BootTarget, DeviceInfo, Target
from metal_bmc.rmcp import failures
from metal_bmc.rmcp.client import RmcpClient
from metal_bmc.rmcp.handshake import Login
from metal_bmc.rmcp.messages import CHASSIS, CHASSIS_STATUS, DEVICE_ID, SYSTEM_GUID, Request

_CONTROL, _IDENTIFY, _SET_BOOT, _GET_BOOT = 0x02, 0x04, 0x08, 0x09
_POWER_OFF, _POWER_ON, _RESET = b"\x00", b"\x01", b"\x03"
_VALID, _PERSISTENT, _UEFI = 0x80, 0x40, 0x20
_PXE, _DISK, _REMOTE_DISK, _SETUP = 1, 2, 9, 6
_TARGETS = {_PXE: BootTarget.PXE, _DISK: BootTarget.DISK, _REMOTE_DISK: BootTarget.DISK, _SETUP: BootTarget.BIOS}

# Completion codes (IPMI 2.0 table 5-2) that are told apart.
_UNKNOWN = {0xC1, 0xC2}
_MEANINGS = {
    0xC0: "it is busy",
    0xC3: "it ran out of time",
    0xD3: "it is starting",
    0xD4: "the user lacks the privilege",
    0xD5: "not in its present state",
}


class FruReader(Protocol):
    """Reads the strings of FRU 0 by name."""

    async def fru(self, target: Target, *, deadline: float) -> dict[str, str]:
        """Empty for a FRU that cannot be read; raises BmcError when the BMC cannot be talked to."""
        ...

    async def close(self) -> None:
        """Give up what it holds."""
        ...


class IpmiDriver:
    """Implements `BmcDriver`."""

    def __init__(self, client: RmcpClient, fru: FruReader) -> None:
        self._client, self._fru = client, fru

    async def close(self) -> None:
        """Log out everywhere and end the processes behind the FRU reader."""
        await asyncio.gather(self._client.close(), self._fru.close())

    async def powered(self, target: Target, *, deadline: float) -> bool:
        """See `BmcDriver`."""
        return (await self._status(target, _until(deadline)))[0] & 1 != 0

    async def set_power(self, target: Target, *, on: bool, deadline: float) -> None:
        """See `BmcDriver`."""
        await self._ask(target, Request(CHASSIS, _CONTROL, _POWER_ON if on else _POWER_OFF), _until(deadline))

    async def reset(self, target: Target, *, deadline: float) -> None:
        """See `BmcDriver`."""
        guard.refuse_in_transaction("a BMC exchange")
        # Whoever does not answer this was not reset, so a dead BMC leaves no doubt about the outcome.
        give_up = _until(deadline)
        await self._status(target, give_up)
        try:
            await self._ask(target, Request(CHASSIS, _CONTROL, _RESET), give_up, once=True)
        except BmcTimeout:
            raise BmcTimeout("the BMC did not confirm the reset; it may have carried it out") from None

    async def set_boot(self, target: Target, boot: BootTarget, *, disk_selector: int, deadline: float) -> BootSetting:
        """See `BmcDriver`."""
        give_up = _until(deadline)
        devices = {BootTarget.PXE: _PXE << 2, BootTarget.DISK: disk_selector, BootTarget.BIOS: _SETUP << 2}
        # Setup is asked for once; PXE and disk stay until changed, because a lost override must not lead elsewhere.
        flags = _VALID | _UEFI | (0 if boot is BootTarget.BIOS else _PERSISTENT)
        await self._courtesy(target, bytes((0, 1)), give_up)
        # Keep the flags valid beyond the 60 s that a BMC otherwise grants them, and mark the BIOS's copy as stale.
        await self._courtesy(target, bytes((3, 0x08)), give_up)
        await self._courtesy(target, bytes((4, 0x01, 0x01)), give_up)
        try:
            order = bytes((5, flags, devices[boot], 0, 0, 0))
            await self._ask(target, Request(CHASSIS, _SET_BOOT, order), give_up)
            await self._courtesy(target, bytes((0, 2)), give_up)
        finally:
            await self._courtesy(target, bytes((0, 0)), give_up)
        return await self._boot(target, give_up)

    async def boot(self, target: Target, *, deadline: float) -> BootSetting:
        """See `BmcDriver`."""
        return await self._boot(target, _until(deadline))

    async def set_identify(self, target: Target, *, on: bool, deadline: float) -> bool | None:
        """See `BmcDriver`."""
        give_up = _until(deadline)
        await self._ask(target, Request(CHASSIS, _IDENTIFY, bytes((0, int(on)))), give_up)
        status = await self._status(target, give_up)
        # Bit 6 of the third byte: the identify state in bits 5:4 is supported.
        if len(status) < 3 or not status[2] & 0x40:
            return None
        return bool(status[2] >> 4 & 3)

    async def inspect(self, target: Target, *, deadline: float) -> DeviceInfo:
        """See `BmcDriver`."""
        give_up = _until(deadline)
        device = await self._ask(target, DEVICE_ID, give_up)
        if len(device) < 11:
            raise BmcBadAnswer("the device id is cut short")
        machine = await self._machine(target, give_up)
        status = await self._status(target, give_up)
        fru = await self._fru.fru(target, deadline=max(0.1, give_up - asyncio.get_running_loop().time()))
        return DeviceInfo(
            machine=machine,
            firmware=f"{device[2] & 0x7F}.{device[3]:02x}",
            manufacturer_id=int.from_bytes(device[6:9], "little"),
            product_id=int.from_bytes(device[9:11], "little"),
            powered=status[0] & 1 != 0,
            fru=fru,
        )

    async def _machine(self, target: Target, give_up: float) -> str:
        try:
            raw = await self._ask(target, SYSTEM_GUID, give_up)
        except (BmcRefused, BmcUnsupported):
            return ""
        # The system GUID is the SMBIOS UUID, whose first three fields are little-endian in memory.
        return str(uuid.UUID(bytes_le=raw[:16])) if len(raw) >= 16 and any(raw) else ""

    async def _status(self, target: Target, give_up: float) -> bytes:
        status = await self._ask(target, CHASSIS_STATUS, give_up)
        if not status:
            raise BmcBadAnswer("the chassis status is empty")
        return status

    async def _courtesy(self, target: Target, data: bytes, give_up: float) -> None:
        """Set a boot parameter that many BMCs lack and none needs; a refusal is no failure, a dead BMC is."""
        try:
            await self._ask(target, Request(CHASSIS, _SET_BOOT, data), give_up)
        except (BmcRefused, BmcUnsupported):
            return

    async def _boot(self, target: Target, give_up: float) -> BootSetting:
        answer = await self._ask(target, Request(CHASSIS, _GET_BOOT, b"\x05\x00\x00"), give_up)
        if len(answer) < 4 or answer[1] & 0x7F != 5:
            raise BmcBadAnswer("the boot flags are cut short")
        flags, device = answer[2], answer[3] >> 2 & 0x0F
        # Bit 7 of the parameter number marks the whole parameter as invalid.
        valid = bool(flags & _VALID) and not answer[1] & 0x80
        return BootSetting(_TARGETS.get(device) if valid else None, bool(flags & _PERSISTENT), bool(flags & _UEFI))

    async def _ask(self, target: Target, request: Request, give_up: float, *, once: bool = False) -> bytes:
        guard.refuse_in_transaction("a BMC exchange")
        login = Login(target.host, target.port, target.user, target.password)
        try:
            response = await self._client.ask(login, request, give_up=give_up, once=once)
        except failures.RmcpFailure as failure:
            raise _error(failure) from None
        code = response.code
        if not code:
            return response.data
        command = f"command {request.netfn:#04x}/{request.command:#04x}"
        if code in _UNKNOWN:
            raise BmcUnsupported(f"the BMC does not know {command}")
        meaning = f": {_MEANINGS[code]}" if code in _MEANINGS else ""
        raise BmcRefused(f"the BMC refuses {command} with code {code:#04x}{meaning}", code)


def _until(deadline: float) -> float:
    return asyncio.get_running_loop().time() + deadline


def _error(failure: failures.RmcpFailure) -> BmcError:
    message = str(failure)
    if isinstance(failure, failures.LoginRefused):
        return BmcAuthFailed(message)
    if isinstance(failure, failures.SlotsFull):
        return BmcSessionsFull(message)
    if isinstance(failure, failures.SessionRefused):
        return BmcRefused(message, failure.status)
    if isinstance(failure, failures.TooOld):
        return BmcUnsupported(message)
    if isinstance(failure, failures.BadAnswer):
        return BmcBadAnswer(message)
    return DriverBusy(message) if isinstance(failure, failures.NoRoom) else BmcTimeout(message)
