"""The operations of the driver process, on pyghmi. Imported in that process only."""

from __future__ import annotations

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
    BmcError,
    BmcRefused,
    BmcSessionsFull,
    BmcTimeout,
)

# The library has no type annotations.
Command: Any = pyghmi_command.Command
Session: Any = pyghmi_session.Session
Fru: Any = pyghmi_fru.FRU

_ADMINISTRATOR = 4

# RMCP+ status codes (IPMI 2.0 table 13-15) that pyghmi turns into texts, sorted by what they mean to us.
_SLOTS = {1, 0x0B}
_CREDENTIALS = {9, 0x0A, 0x0C, 0x0D, 0x0E, 0x0F}

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


def _fru(command: Any, _arguments: Arguments) -> dict[str, str]:
    try:
        info = Fru(ipmicmd=command).info or {}
    except (exceptions.IpmiException, exceptions.PyghmiException, IndexError, KeyError, ValueError):
        # A broken FRU is common and no reason to lose the rest of the report.
        return {}
    return {name: value for name, value in info.items() if isinstance(value, str) and value}


OPERATIONS: dict[str, Operation] = {"fru": _fru}
"""What an order may ask for."""
