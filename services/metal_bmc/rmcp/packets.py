"""Datagrams on UDP 623: RMCP header and IPMI 2.0 session header (IPMI 2.0 §13.6). Integers are little-endian.

Splits and builds bytes; knows neither keys nor sessions. What is no well-formed packet is None: garbage is dropped.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

RMCP_HEADER = b"\x06\x00\xff\x07"
_RMCP_PLUS = 0x06
_HEAD = struct.Struct("<4sBBIIH")
_BODY = struct.Struct("<BBIIH")
_V15_HEAD = struct.Struct("<4sBIIB")
_ENCRYPTED, _AUTHENTICATED = 0x80, 0x40
_NEXT_HEADER = 0x07
_PADS = (b"\x00\x07", b"\xff\x01\x07", b"\xff\xff\x02\x07", b"\xff\xff\xff\x03\x07")


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


class Packet(NamedTuple):
    """One RMCP+ datagram. `rest` is what follows the payload: the trailer and code of an authenticated one."""

    payload_type: int
    encrypted: bool
    authenticated: bool
    session_id: int
    sequence: int
    payload: bytes
    rest: bytes


def parse(data: bytes) -> Packet | None:
    """Split a datagram; None for another protocol, another version, or a payload that is cut short."""
    if len(data) < _HEAD.size:
        return None
    header, version, kind, session_id, sequence, length = _HEAD.unpack_from(data)
    end = _HEAD.size + length
    # The second byte is reserved and the third the RMCP sequence, which says nothing about IPMI (§13.1.3).
    if header[0] != RMCP_HEADER[0] or header[3] != RMCP_HEADER[3] or version != _RMCP_PLUS or len(data) < end:
        return None
    return Packet(
        kind & 0x3F,
        bool(kind & _ENCRYPTED),
        bool(kind & _AUTHENTICATED),
        session_id,
        sequence,
        data[_HEAD.size : end],
        data[end:],
    )


def plain(payload_type: PayloadType, payload: bytes) -> bytes:
    """A datagram outside of any session."""
    return _HEAD.pack(RMCP_HEADER, _RMCP_PLUS, payload_type, 0, 0, len(payload)) + payload


def plain_v15(message: bytes) -> bytes:
    """An IPMI message outside of any session as IPMI 1.5 frames it, which BMCs of both versions answer (§13.6)."""
    return _V15_HEAD.pack(RMCP_HEADER, 0, 0, 0, len(message)) + message


def parse_v15(data: bytes) -> bytes | None:
    """The IPMI message of such a datagram; None for any other."""
    if len(data) < _V15_HEAD.size:
        return None
    header, kind, sequence, session_id, length = _V15_HEAD.unpack_from(data)
    message = data[_V15_HEAD.size :]
    # An odd pad byte may follow (table 13-8, "legacy PAD").
    fits = len(message) - length in (0, 1)
    return message[:length] if header == RMCP_HEADER and (kind, sequence, session_id) == (0, 0, 0) and fits else None


def signed_part(
    payload: bytes, *, session_id: int, sequence: int, payload_type: PayloadType = PayloadType.IPMI
) -> bytes:
    """An encrypted payload with all that the integrity code covers: session header to next-header byte."""
    kind = payload_type | _ENCRYPTED | _AUTHENTICATED
    body = _BODY.pack(_RMCP_PLUS, kind, session_id, sequence, len(payload)) + payload
    return body + _PADS[-(len(body) + 2) % 4]


def code_of(data: bytes, packet: Packet, code_length: int) -> tuple[bytes, bytes] | None:
    """The part of an authenticated datagram that its code covers, and the code; None when the trailer is malformed.

    The trailer is up to three pad bytes, their number, and the next-header byte (§13.28.4).
    """
    pad = len(packet.rest) - code_length - 2
    if not packet.authenticated or not 0 <= pad <= 3:
        return None
    signed = data[len(RMCP_HEADER) : -code_length]
    if signed[-1] != _NEXT_HEADER or signed[-2] != pad:
        return None
    return signed, data[-code_length:]
