"""The operations of the driver process, on pyghmi. Imported in that process only.

pyghmi's session layer is used as it is meant (login, raw commands, FRU parser); its power and boot helpers are not,
where they hide the completion code or repeat an order that must be sent once.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pyghmi import exceptions
from pyghmi.ipmi import command as pyghmi_command
from pyghmi.ipmi import fru as pyghmi_fru
from pyghmi.ipmi.private import constants
from pyghmi.ipmi.private import session as pyghmi_session

from metal_bmc.drivers.errors import (
    BmcAuthFailed,
    BmcBadAnswer,
    BmcError,
    BmcRefused,
    BmcSessionsFull,
    BmcTimeout,
    BmcUnsupported,
)

# The library has no type annotations.
Command: Any = pyghmi_command.Command
Session: Any = pyghmi_session.Session
Fru: Any = pyghmi_fru.FRU

_CHASSIS, _APP = 0x00, 0x06
_ADMINISTRATOR = 4
_POWER_OFF, _POWER_ON, _RESET = 0, 1, 3
_VALID, _PERSISTENT, _UEFI = 0x80, 0x40, 0x20
_PXE, _DISK, _REMOTE_DISK, _SETUP = 1, 2, 9, 6
_ONE_SHOT_SECONDS = 5.0

# RMCP+ status codes (IPMI 2.0 table 13-15) that pyghmi turns into texts, sorted by what they mean to us.
_SLOTS = {1, 0x0B}
_CREDENTIALS = {9, 0x0A, 0x0C, 0x0D, 0x0E, 0x0F}
_UNSUPPORTED = {0xC1, 0xC2}

Arguments = Mapping[str, Any]
Operation = Callable[[Any, Arguments], Any]


def run(order: Mapping[str, Any]) -> Any:
    """Carry out one order: `operation`, `target`, `arguments`. Raises BmcError."""
    operation = OPERATIONS[order["operation"]]
    with _session(order["target"]) as command:
        try:
            return operation(command, order["arguments"])
        except exceptions.IpmiException as error:
            raise _failure(error) from None


@contextmanager
def _session(target: Mapping[str, Any]) -> Iterator[Any]:
    try:
        command = Command(
            bmc=target["host"],
            port=target["port"],
            userid=target["user"],
            password=target["password"],
            # Fixed, or pyghmi quietly logs in a second time as operator when a user is refused.
            privlevel=_ADMINISTRATOR,
        )
    except exceptions.IpmiException as error:
        _forget_sessions()
        raise _failure(error) from None
    except OSError:
        _forget_sessions()
        raise BmcTimeout("the BMC's address cannot be reached or resolved") from None
    try:
        yield command
    finally:
        try:
            command.ipmi_session.logout()
        finally:
            _forget_sessions()


def _forget_sessions() -> None:
    """Empty pyghmi's registries: it would hand out the dead session at the next login to the same BMC."""
    for registry in (
        Session.bmc_handlers,
        Session.initting_sessions,
        Session.keepalive_sessions,
        Session.waiting_sessions,
    ):
        registry.clear()


def _failure(error: Exception) -> BmcError:
    text = str(error)
    if "Incorrect password" in text or "integrity code" in text:
        return BmcAuthFailed("the BMC and we do not have the same password")
    for code, words in constants.rmcp_codes.items():
        if not text.startswith(words):
            continue
        if code in _SLOTS:
            return BmcSessionsFull("all session slots of the BMC are taken")
        if code in _CREDENTIALS:
            return BmcAuthFailed("the BMC refuses the user")
        return BmcRefused(f"the BMC refuses the session (RMCP+ status {code:#04x})", code)
    return BmcTimeout("the BMC does not answer")


def _ask(command: Any, netfn: int, number: int, data: tuple[int, ...] = ()) -> bytes:
    """Send a command that may be repeated; returns the response data."""
    response = command.raw_command(netfn=netfn, command=number, data=data)
    return _checked(response, netfn, number)


def _checked(response: Mapping[str, Any], netfn: int, number: int) -> bytes:
    code = int(response.get("code", 0))
    if code == 0xFFFF:
        raise BmcTimeout("the BMC stopped answering")
    if code in _UNSUPPORTED:
        raise BmcUnsupported(f"the BMC does not know command {netfn:#04x}/{number:#04x}")
    if code:
        raise BmcRefused(f"the BMC refuses command {netfn:#04x}/{number:#04x} with code {code:#04x}", code)
    return bytes(response["data"])


def _powered(command: Any, _arguments: Arguments) -> bool:
    status = _ask(command, _CHASSIS, 0x01)
    if not status:
        raise BmcBadAnswer("the chassis status is empty")
    return bool(status[0] & 1)


def _set_power(command: Any, arguments: Arguments) -> None:
    _ask(command, _CHASSIS, 0x02, (_POWER_ON if arguments["on"] else _POWER_OFF,))


def _reset(command: Any, _arguments: Arguments) -> None:
    """Send the reset once. pyghmi's normal path repeats a command whose answer is lost, which would reset twice."""
    session = command.ipmi_session
    answers: list[Mapping[str, Any]] = []
    session.raw_command(netfn=_CHASSIS, command=0x02, data=(_RESET,), retry=False, callback=answers.append)
    give_up = time.monotonic() + _ONE_SHOT_SECONDS
    while not answers and time.monotonic() < give_up:
        Session.wait_for_rsp(timeout=0.1)
    session.incommand = False
    if not answers:
        raise BmcTimeout("the BMC did not confirm the reset; it may have carried it out")
    _checked(answers[0], _CHASSIS, 0x02)


def _set_boot(command: Any, arguments: Arguments) -> dict[str, Any]:
    device = {"pxe": _PXE << 2, "disk": arguments["disk_selector"], "bios": _SETUP << 2}[arguments["boot"]]
    # Setup is asked for once; PXE and disk stay until changed, because a lost override must not lead elsewhere.
    flags = _VALID | _UEFI | (0 if arguments["boot"] == "bios" else _PERSISTENT)
    _courtesy(command, (0, 1))
    # Keep the flags valid beyond the 60 s that a BMC otherwise grants them, and mark the BIOS's copy as stale.
    _courtesy(command, (3, 0x08))
    _courtesy(command, (4, 0x01, 0x01))
    try:
        _ask(command, _CHASSIS, 0x08, (5, flags, device, 0, 0, 0))
        _courtesy(command, (0, 2))
    finally:
        _courtesy(command, (0, 0))
    return _boot(command, arguments)


def _courtesy(command: Any, data: tuple[int, ...]) -> None:
    """Set a boot parameter that many BMCs lack and none needs; a refusal is no failure, a dead BMC is."""
    try:
        _ask(command, _CHASSIS, 0x08, data)
    except (BmcRefused, BmcUnsupported):
        return


def _boot(command: Any, _arguments: Arguments) -> dict[str, Any]:
    answer = _ask(command, _CHASSIS, 0x09, (5, 0, 0))
    if len(answer) < 4 or answer[1] & 0x7F != 5:
        raise BmcBadAnswer("the boot flags are cut short")
    flags, device = answer[2], answer[3] >> 2 & 0x0F
    names = {_PXE: "pxe", _DISK: "disk", _REMOTE_DISK: "disk", _SETUP: "bios"}
    # Bit 7 of the parameter number marks the whole parameter as invalid.
    valid = bool(flags & _VALID) and not answer[1] & 0x80
    return {
        "target": names.get(device) if valid else None,
        "persistent": bool(flags & _PERSISTENT),
        "uefi": bool(flags & _UEFI),
    }


def _set_identify(command: Any, arguments: Arguments) -> bool | None:
    _ask(command, _CHASSIS, 0x04, (0, 1 if arguments["on"] else 0))
    status = _ask(command, _CHASSIS, 0x01)
    # Bit 6 of the third byte: the identify state in bits 5:4 is supported.
    if len(status) < 3 or not status[2] & 0x40:
        return None
    return bool(status[2] >> 4 & 3)


def _inspect(command: Any, arguments: Arguments) -> dict[str, Any]:
    device = _ask(command, _APP, 0x01)
    if len(device) < 11:
        raise BmcBadAnswer("the device id is cut short")
    return {
        "machine": _machine(command),
        "firmware": f"{device[2] & 0x7F}.{device[3]:02x}",
        "manufacturer_id": int.from_bytes(device[6:9], "little"),
        "product_id": int.from_bytes(device[9:11], "little"),
        "powered": _powered(command, arguments),
        "fru": _fru(command),
    }


def _machine(command: Any) -> str:
    try:
        raw = _ask(command, _APP, 0x37)
    except (BmcRefused, BmcUnsupported):
        return ""
    # The system GUID is the SMBIOS UUID, whose first three fields are little-endian in memory.
    return str(uuid.UUID(bytes_le=raw[:16])) if len(raw) >= 16 and any(raw) else ""


def _fru(command: Any) -> dict[str, str]:
    try:
        info = Fru(ipmicmd=command).info or {}
    except (exceptions.IpmiException, exceptions.PyghmiException, IndexError, KeyError, ValueError):
        # A broken FRU is common and no reason to lose the rest of the report.
        return {}
    return {name: value for name, value in info.items() if isinstance(value, str) and value}


OPERATIONS: dict[str, Operation] = {
    "powered": _powered,
    "set_power": _set_power,
    "reset": _reset,
    "set_boot": _set_boot,
    "boot": _boot,
    "set_identify": _set_identify,
    "inspect": _inspect,
}
"""What an order may ask for."""
