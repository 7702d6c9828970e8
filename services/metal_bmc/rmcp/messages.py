"""IPMI LAN messages (IPMI 2.0 §13.8): requests to a BMC and its responses, as bytes. A malformed response is None."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

_BMC, _CONSOLE = 0x20, 0x81
CHASSIS, APP = 0x00, 0x06


@dataclass(frozen=True, slots=True)
class Request:
    """A command. `netfn` is even; responses carry the odd one that follows."""

    netfn: int
    command: int
    data: bytes = b""

    def encode(self, sequence: int) -> bytes:
        """The message with `sequence`, rqSeq, from 0 to 63."""
        head = bytes((_BMC, self.netfn << 2))
        tail = bytes((_CONSOLE, sequence << 2, self.command)) + self.data
        return head + bytes((_checksum(head),)) + tail + bytes((_checksum(tail),))


class Response(NamedTuple):
    """An answer; `code` is the completion code, 0 for success."""

    netfn: int
    command: int
    sequence: int
    code: int
    data: bytes


def parse_response(message: bytes) -> Response | None:
    """Read a response; None for a wrong checksum, a request, other addresses, or one that is too short."""
    if len(message) < 8 or sum(message[:3]) & 0xFF or sum(message[3:]) & 0xFF:
        return None
    netfn = message[1] >> 2
    if message[0] != _CONSOLE or message[3] != _BMC or not netfn & 1:
        return None
    return Response(netfn, message[5], message[4] >> 2, message[6], message[7:-1])


def _checksum(data: bytes) -> int:
    return -sum(data) & 0xFF


CHASSIS_STATUS = Request(CHASSIS, 0x01)
DEVICE_ID = Request(APP, 0x01)
SYSTEM_GUID = Request(APP, 0x37)
BE_ADMINISTRATOR = Request(APP, 0x3B, b"\x04")


# This channel, administrator, and please with what IPMI 2.0 added (table 22-15).
CHANNEL_CAPABILITIES = Request(APP, 0x38, b"\x8e\x04")


def speaks_rmcp_plus(capabilities: Response) -> bool:
    """Whether the answer to Get Channel Authentication Capabilities names IPMI 2.0; a short one does not."""
    data = capabilities.data
    return len(data) >= 4 and bool(data[1] & 0x80 and data[3] & 0x02)


# The one instance of the serial console; traffic encrypted and authenticated (§24.1, table 24-2).
ACTIVATE_SOL = Request(APP, 0x48, b"\x01\x01\xc0\x00\x00\x00")
DEACTIVATE_SOL = Request(APP, 0x49, b"\x01\x01\x00\x00\x00\x00")
SOL_OWNER = Request(APP, 0x4B, b"\x01\x01")
"""Get Payload Instance Info (§24.5): which session has the serial console."""


def close_session(managed_id: int) -> Request:
    """Close Session (§22.19)."""
    return Request(APP, 0x3C, managed_id.to_bytes(4, "little"))
