"""Packets on UDP 623: RMCP header, IPMI 1.5 and 2.0 session headers, IPMI LAN messages (IPMI 2.0 §13.6, §13.8).

Parses and builds bytes. Knows nothing of keys or sessions: the caller checks and appends the integrity trailer.
Multi-byte integers are little-endian on the wire. A parser returns None for whatever is not a well-formed packet,
because a BMC drops garbage in silence.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

RMCP_HEADER = b"\x06\x00\xff\x07"
_FORMAT_NONE = 0x00
_FORMAT_RMCP_PLUS = 0x06
_CLASS_ASF, _ASF = 0x06, (4542).to_bytes(4, "big")
_PRESENCE_PING, _PRESENCE_PONG = 0x80, 0x40
_ENCRYPTED = 0x80
_AUTHENTICATED = 0x40
_NEXT_HEADER = 0x07
BMC_ADDRESS = 0x20


class PayloadType(IntEnum):
    """RMCP+ payload types (IPMI 2.0 table 13-16)."""

    IPMI = 0x00
    SOL = 0x01
    OPEN_SESSION_REQUEST = 0x10
    OPEN_SESSION_RESPONSE = 0x11
    RAKP_1 = 0x12
    RAKP_2 = 0x13
    RAKP_3 = 0x14
    RAKP_4 = 0x15


@dataclass(frozen=True)
class Packet:
    """One RMCP packet without its IPMI meaning. `version` is 15 or 20; `signed` are the bytes the code covers."""

    version: int
    payload_type: int
    encrypted: bool
    authenticated: bool
    session_id: int
    sequence: int
    payload: bytes
    signed: bytes = b""
    code: bytes = b""


def parse_packet(data: bytes, *, code_length: int = 0) -> Packet | None:
    """Split a datagram. `code_length` is the length of the session's integrity code, 0 outside of a session."""
    if len(data) < 14 or data[:4] != RMCP_HEADER:
        return None
    if data[4] == _FORMAT_NONE:
        sequence, session_id, length = struct.unpack_from("<IIB", data, 5)
        payload = data[14 : 14 + length]
        return (
            Packet(15, PayloadType.IPMI, False, False, session_id, sequence, payload)
            if len(payload) == length
            else None
        )
    if data[4] != _FORMAT_RMCP_PLUS or len(data) < 16:
        return None
    kind, session_id, sequence, length = struct.unpack_from("<BIIH", data, 5)
    payload = data[16 : 16 + length]
    if len(payload) != length:
        return None
    encrypted, authenticated = bool(kind & _ENCRYPTED), bool(kind & _AUTHENTICATED)
    signed = code = b""
    if authenticated:
        if code_length == 0 or len(data) < 18 + length + code_length:
            return None
        signed, code = data[4:-code_length], data[-code_length:]
        if len(signed) % 4 or signed[-1] != _NEXT_HEADER:
            return None
    return Packet(20, kind & 0x3F, encrypted, authenticated, session_id, sequence, payload, signed, code)


def session_id_of(data: bytes) -> int:
    """The session id of a datagram, 0 when it is outside of a session or too short to say."""
    if len(data) < 16 or data[:4] != RMCP_HEADER or data[4] != _FORMAT_RMCP_PLUS:
        return 0
    return int.from_bytes(data[6:10], "little")


def build_plain(payload: bytes, payload_type: int = PayloadType.IPMI, *, version: int = 20) -> bytes:
    """A packet outside of any session, in the framing (`version` 15 or 20) that the request came in."""
    if version == 15:
        return RMCP_HEADER + struct.pack("<BIIB", _FORMAT_NONE, 0, 0, len(payload)) + payload
    return RMCP_HEADER + struct.pack("<BBIIH", _FORMAT_RMCP_PLUS, payload_type, 0, 0, len(payload)) + payload


def build_sealed(payload: bytes, *, session_id: int, sequence: int, payload_type: int = PayloadType.IPMI) -> bytes:
    """What the integrity code covers of an encrypted, authenticated packet; the caller adds RMCP header and code."""
    kind = payload_type | _ENCRYPTED | _AUTHENTICATED
    body = struct.pack("<BBIIH", _FORMAT_RMCP_PLUS, kind, session_id, sequence, len(payload)) + payload
    pad = -(len(body) + 2) % 4
    return body + b"\xff" * pad + bytes((pad, _NEXT_HEADER))


def checksum(data: bytes) -> int:
    """Two's complement of the byte sum (IPMI 2.0 §13.8)."""
    return -sum(data) & 0xFF


@dataclass(frozen=True)
class Request:
    """An IPMI LAN request message. `raw_sequence` is the rqSeq/rqLUN byte, given back unchanged in the response."""

    netfn: int
    command: int
    data: bytes
    requester: int = 0x81
    raw_sequence: int = 0
    lun: int = 0

    def response(self, code: int, data: bytes = b"") -> bytes:
        """The bytes of the response message with completion `code`."""
        head = bytes((self.requester, (self.netfn + 1) << 2 | (self.raw_sequence & 3)))
        tail = bytes((BMC_ADDRESS, (self.raw_sequence & 0xFC) | self.lun, self.command, code)) + data
        return head + bytes((checksum(head),)) + tail + bytes((checksum(tail),))


def parse_request(message: bytes) -> Request | None:
    """Read a request message; None for a wrong checksum, another address than the BMC's, or a response."""
    if len(message) < 7 or checksum(message[:2]) != message[2] or checksum(message[3:-1]) != message[-1]:
        return None
    netfn = message[1] >> 2
    if message[0] != BMC_ADDRESS or netfn & 1:
        return None
    return Request(netfn, message[5], message[6:-1], message[3], message[4], message[1] & 3)


def is_presence_ping(data: bytes) -> bool:
    """Whether it is an ASF presence ping (IPMI 2.0 §13.2.4)."""
    return len(data) >= 12 and data[3] & 0x1F == _CLASS_ASF and data[4:8] == _ASF and data[8] == _PRESENCE_PING


def presence_pong(ping: bytes) -> bytes:
    """The answer of a BMC that speaks IPMI and supports no security extensions."""
    head = bytes((0x06, 0x00, 0xFF, _CLASS_ASF)) + _ASF + bytes((_PRESENCE_PONG, ping[9], 0, 16))
    return head + _ASF + bytes(4) + bytes((0x81, 0)) + bytes(6)
