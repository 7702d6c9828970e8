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
from metal_bmc.drivers.interface import BootMode, BootSetting, BootTarget, BootWish, Capability, DeviceInfo, Target
from metal_bmc.rmcp import failures
from metal_bmc.rmcp.client import RmcpClient
from metal_bmc.rmcp.handshake import Login
from metal_bmc.rmcp.messages import CHASSIS, CHASSIS_STATUS, DEVICE_ID, SYSTEM_GUID, Request

_CONTROL, _IDENTIFY, _SET_BOOT, _GET_BOOT = 0x02, 0x04, 0x08, 0x09
_POWER_OFF, _POWER_ON, _RESET, _INTERRUPT, _SOFT_OFF = b"\x00", b"\x01", b"\x03", b"\x04", b"\x05"
_VALID, _PERSISTENT, _UEFI = 0x80, 0x40, 0x20
_PXE, _DISK, _REMOTE_DISK, _SETUP = 1, 2, 9, 6
_TARGETS = {_PXE: BootTarget.PXE, _DISK: BootTarget.DISK, _REMOTE_DISK: BootTarget.DISK, _SETUP: BootTarget.BIOS}

_BOOT_FLAGS = Request(CHASSIS, _GET_BOOT, b"\x05\x00\x00")
# Get Power Reading, mode "system power statistics", for the group extension DCMI (DCMI 1.5 §6.6.1).
_DCMI_POWER = Request(0x2C, 0x02, b"\xdc\x01\x00\x00")
# Get LAN Configuration Parameters of the channel that we come by: MAC address (IPMI 2.0 tables 23-4 and 6-3).
_LAN_MAC = Request(0x0C, 0x02, b"\x0e\x05\x00\x00")
# Get SOL Configuration Parameters of this channel: whether it is enabled (IPMI 2.0 table 26-5).
_SOL_ENABLED = Request(0x0C, 0x22, b"\x0e\x01\x00\x00")
# Additional device support in the answer to Get Device ID (IPMI 2.0 table 20-2).
_SUPPORTS = {0x01: Capability.SENSORS, 0x04: Capability.SEL, 0x08: Capability.FRU}
# IPMI has no question for these: they are taken as there until an order fails.
_UNASKED = (
    Capability.POWER_ON,
    Capability.POWER_OFF,
    Capability.POWER_CYCLE,
    Capability.POWER_RESET,
    Capability.POWER_SOFT_OFF,
    Capability.NMI,
    Capability.IDENTIFY,
    Capability.USERS,
)
_BOOTS = (Capability.BOOT_ONCE, Capability.BOOT_PERSISTENT, Capability.BOOT_UEFI, Capability.BOOT_BIOS)
# Get System Boot Options: parameter not supported. Group extensions: requested one not supported, as invalid data.
_NO_SUCH_PARAMETER = {0x80, 0xCC}

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

    async def soft_off(self, target: Target, *, deadline: float) -> None:
        """See `BmcDriver`."""
        await self._ask(target, Request(CHASSIS, _CONTROL, _SOFT_OFF), _until(deadline))

    async def reset(self, target: Target, *, deadline: float) -> None:
        """See `BmcDriver`."""
        await self._shoot(target, _RESET, "reset", deadline)

    async def interrupt(self, target: Target, *, deadline: float) -> None:
        """See `BmcDriver`."""
        await self._shoot(target, _INTERRUPT, "interrupt", deadline)

    async def _shoot(self, target: Target, order: bytes, name: str, deadline: float) -> None:
        guard.refuse_in_transaction("a BMC exchange")
        # Whoever does not answer this got no order, so a dead BMC leaves no doubt about the outcome.
        give_up = _until(deadline)
        await self._status(target, give_up)
        try:
            await self._ask(target, Request(CHASSIS, _CONTROL, order), give_up, once=True)
        except BmcTimeout:
            raise BmcTimeout(f"the BMC did not confirm the {name}; it may have carried it out") from None

    async def set_boot(self, target: Target, wish: BootWish, *, deadline: float) -> BootSetting:
        """See `BmcDriver`."""
        give_up = _until(deadline)
        disk = target.quirks.disk_selector
        devices = {BootTarget.PXE: _PXE << 2, BootTarget.DISK: disk, BootTarget.BIOS: _SETUP << 2}
        uefi = 0 if wish.mode is BootMode.BIOS else _UEFI
        flags = _VALID | uefi | (_PERSISTENT if wish.persistent else 0)
        await self._courtesy(target, bytes((0, 1)), give_up)
        # Keep the flags valid beyond the 60 s that a BMC otherwise grants them, and mark the BIOS's copy as stale.
        await self._courtesy(target, bytes((3, 0x08)), give_up)
        await self._courtesy(target, bytes((4, 0x01, 0x01)), give_up)
        try:
            order = bytes((5, flags, devices[wish.target], 0, 0, 0))
            await self._ask(target, Request(CHASSIS, _SET_BOOT, order), give_up)
            await self._courtesy(target, bytes((0, 2)), give_up)
        finally:
            await self._courtesy(target, bytes((0, 0)), give_up)
        if target.quirks.settle_seconds:
            await asyncio.sleep(target.quirks.settle_seconds)
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
        guid = await self._guid(target, give_up)
        mac = await self._mac(target, give_up)
        status = await self._status(target, give_up)
        able = await self._capabilities(target, device, give_up)
        fru = await self._fru.fru(target, deadline=max(0.1, give_up - asyncio.get_running_loop().time()))
        return DeviceInfo(
            # The system GUID is the SMBIOS UUID, whose first three fields are little-endian in memory.
            machine=str(uuid.UUID(bytes_le=guid)) if guid else "",
            firmware=f"{device[2] & 0x7F}.{device[3]:02x}",
            manufacturer_id=int.from_bytes(device[6:9], "little"),
            product_id=int.from_bytes(device[9:11], "little"),
            powered=status[0] & 1 != 0,
            fru=fru,
            guid=guid,
            mac=mac,
            capabilities=able,
        )

    async def _guid(self, target: Target, give_up: float) -> bytes:
        try:
            raw = await self._ask(target, SYSTEM_GUID, give_up)
        except (BmcRefused, BmcUnsupported):
            return b""
        return raw[:16] if len(raw) >= 16 and any(raw[:16]) else b""

    async def _mac(self, target: Target, give_up: float) -> str:
        try:
            answer = await self._ask(target, _LAN_MAC, give_up)
        except (BmcRefused, BmcUnsupported):
            return ""
        return answer[1:7].hex(":") if len(answer) >= 7 and any(answer[1:7]) else ""

    async def _capabilities(self, target: Target, device: bytes, give_up: float) -> frozenset[Capability]:
        able = set(_UNASKED)
        able.update(capability for bit, capability in _SUPPORTS.items() if device[5] & bit)
        if await self._knows(target, _BOOT_FLAGS, give_up):
            able.update(_BOOTS)
        if await self._knows(target, _DCMI_POWER, give_up):
            able.add(Capability.POWER_METRICS)
        if await self._has_console(target, give_up):
            able.add(Capability.CONSOLE)
        return frozenset(each for each in able if each not in target.quirks.lacks)

    async def _has_console(self, target: Target, give_up: float) -> bool:
        try:
            answer = await self._ask(target, _SOL_ENABLED, give_up)
        except BmcUnsupported:
            return False
        except BmcRefused as refusal:
            return refusal.code not in _NO_SUCH_PARAMETER
        return len(answer) >= 2 and bool(answer[1] & 1)

    async def _knows(self, target: Target, request: Request, give_up: float) -> bool:
        """Whether the BMC knows a command and its parameter; one that is only busy does."""
        try:
            await self._ask(target, request, give_up)
        except BmcUnsupported:
            return False
        except BmcRefused as refusal:
            return refusal.code not in _NO_SUCH_PARAMETER
        return True

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
        answer = await self._ask(target, _BOOT_FLAGS, give_up)
        if len(answer) < 4 or answer[1] & 0x7F != 5:
            raise BmcBadAnswer("the boot flags are cut short")
        flags, device = answer[2], answer[3] >> 2 & 0x0F
        # Bit 7 of the parameter number marks the whole parameter as invalid.
        valid = bool(flags & _VALID) and not answer[1] & 0x80
        mode = BootMode.UEFI if flags & _UEFI else BootMode.BIOS
        return BootSetting(_TARGETS.get(device) if valid else None, bool(flags & _PERSISTENT), mode)

    async def _ask(self, target: Target, request: Request, give_up: float, *, once: bool = False) -> bytes:
        guard.refuse_in_transaction("a BMC exchange")
        login = Login(target.host, target.port, target.user, target.password)
        try:
            response = await self._client.ask(login, request, give_up=give_up, once=once)
        except failures.RmcpFailure as failure:
            raise bmc_error(failure) from None
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


def bmc_error(failure: failures.RmcpFailure) -> BmcError:
    """What a failure of the exchange means to the service."""
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
