"""How a simulated BMC ends a command: completion codes (IPMI 2.0 table 5-2)."""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """Completion codes that commands share; those of one command only stand where they are used."""

    OK = 0x00
    PARAMETER_NOT_SUPPORTED = 0x80
    SET_IN_PROGRESS = 0x81
    INVALID_COMMAND = 0xC1
    OUT_OF_SPACE = 0xC4
    RESERVATION = 0xC5
    LENGTH = 0xC7
    OUT_OF_RANGE = 0xC9
    NOT_PRESENT = 0xCB
    INVALID_FIELD = 0xCC
    PRIVILEGE = 0xD4
    STATE = 0xD5


class Completion(Exception):
    """Ends a command with a completion code other than 0."""

    def __init__(self, code: int) -> None:
        super().__init__(f"{code:#04x}")
        self.code = code


def need(data: bytes, length: int) -> None:
    """Refuse a request that is shorter than its parameters. Raises Completion."""
    if len(data) < length:
        raise Completion(Code.LENGTH)
