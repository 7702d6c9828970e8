"""LLDP frames to and from bytes (IEEE 802.1AB-2016, clause 8). Pure: no socket, no clock.

Only the TLVs that cabling needs are understood: chassis id, port id, time to live, port description, system name and
system description. All others are skipped, as clause 8.4 asks of a receiver. Frames come from the network and are not
trusted: whatever does not parse raises `LldpError` and nothing else.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

ETHERTYPE = 0x88CC
"""EtherType of LLDP (clause 7.3)."""

MULTICAST = bytes.fromhex("0180c200000e")
"""Nearest-bridge group address (table 7-1); never forwarded by a bridge."""

_ETHERNET = struct.Struct("!6s6sH")
_VLAN_ETHERTYPE = 0x8100
_MAX_VALUE = 511  # a TLV's length has nine bits

_END, _CHASSIS, _PORT, _TTL, _PORT_DESCRIPTION, _SYSTEM_NAME, _SYSTEM_DESCRIPTION = range(7)

_CHASSIS_MAC, _CHASSIS_ADDRESS = 4, 5
_PORT_MAC, _PORT_ADDRESS, _PORT_NAME, _PORT_LOCAL = 3, 4, 5, 7


class LldpError(ValueError):
    """The bytes are not an LLDP frame."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What a neighbour says of itself. `ttl` is in seconds, 0..65535; 0 means that the neighbour is going away."""

    chassis_id: str
    port_id: str
    ttl: int
    port_description: str = ""
    system_name: str = ""
    system_description: str = ""


def parse(packet: bytes) -> Frame:
    """Parse an Ethernet frame that carries LLDP, with or without one VLAN tag. Raises LldpError."""
    if len(packet) < _ETHERNET.size:
        raise LldpError("shorter than an Ethernet header")
    ethertype = _ETHERNET.unpack_from(packet)[2]
    body = packet[_ETHERNET.size :]
    if ethertype == _VLAN_ETHERTYPE and len(body) >= 4:
        ethertype, body = int.from_bytes(body[2:4], "big"), body[4:]
    if ethertype != ETHERTYPE:
        raise LldpError(f"EtherType {ethertype:#06x} is not LLDP")
    return parse_payload(body)


def parse_payload(body: bytes) -> Frame:
    """Parse the TLVs behind the Ethernet header. Raises LldpError."""
    tlvs = _split(body)
    if [kind for kind, _ in tlvs[:3]] != [_CHASSIS, _PORT, _TTL]:
        raise LldpError("chassis id, port id and time to live must come first, in this order")
    if sum(kind in (_CHASSIS, _PORT, _TTL) for kind, _ in tlvs) != 3:
        raise LldpError("a mandatory TLV is repeated")
    ttl = tlvs[2][1]
    if len(ttl) < 2:
        raise LldpError("time to live is shorter than two bytes")
    texts = {kind: _text(value) for kind, value in reversed(tlvs)}
    return Frame(
        chassis_id=_identifier(tlvs[0][1], mac=_CHASSIS_MAC, address=_CHASSIS_ADDRESS),
        port_id=_identifier(tlvs[1][1], mac=_PORT_MAC, address=_PORT_ADDRESS),
        ttl=int.from_bytes(ttl[:2], "big"),
        port_description=texts.get(_PORT_DESCRIPTION, ""),
        system_name=texts.get(_SYSTEM_NAME, ""),
        system_description=texts.get(_SYSTEM_DESCRIPTION, ""),
    )


def encode(frame: Frame, *, source: bytes) -> bytes:
    """The Ethernet frame for `frame`, sent from the six-byte MAC `source`.

    A chassis or port id that looks like a MAC is sent with the MAC subtype, any other as locally assigned (chassis) or
    as an interface name (port). Raises LldpError for a value that does not fit.
    """
    if not 0 <= frame.ttl <= 0xFFFF:
        raise LldpError("time to live must be 0..65535 seconds")
    parts = [
        _tlv(_CHASSIS, _encode_identifier(frame.chassis_id, mac=_CHASSIS_MAC, other=7)),
        _tlv(_PORT, _encode_identifier(frame.port_id, mac=_PORT_MAC, other=_PORT_NAME)),
        _tlv(_TTL, frame.ttl.to_bytes(2, "big")),
    ]
    for kind, text in (
        (_PORT_DESCRIPTION, frame.port_description),
        (_SYSTEM_NAME, frame.system_name),
        (_SYSTEM_DESCRIPTION, frame.system_description),
    ):
        if text:
            parts.append(_tlv(kind, text.encode()))
    parts.append(_tlv(_END, b""))
    return _ETHERNET.pack(MULTICAST, source, ETHERTYPE) + b"".join(parts)


def _split(body: bytes) -> list[tuple[int, bytes]]:
    tlvs: list[tuple[int, bytes]] = []
    at = 0
    while at < len(body):
        if at + 2 > len(body):
            raise LldpError("a TLV header is cut off")
        header = int.from_bytes(body[at : at + 2], "big")
        kind, length = header >> 9, header & _MAX_VALUE
        at += 2
        if kind == _END:
            break
        if at + length > len(body):
            raise LldpError(f"TLV {kind} is cut off")
        tlvs.append((kind, body[at : at + length]))
        at += length
    return tlvs


def _identifier(value: bytes, *, mac: int, address: int) -> str:
    if len(value) < 2:
        raise LldpError("an identifier is empty")
    subtype, content = value[0], value[1:]
    if subtype == mac:
        if len(content) != 6:
            raise LldpError("a MAC identifier is not six bytes long")
        return content.hex(":")
    if subtype == address:
        return _network_address(content)
    return _text(content)


def _network_address(content: bytes) -> str:
    """An IANA address family number and an address; families other than IPv4 and IPv6 are given in hex."""
    sizes = {1: 4, 2: 16}
    if sizes.get(content[0]) == len(content) - 1:
        return str(ipaddress.ip_address(content[1:]))
    return content.hex()


def _encode_identifier(text: str, *, mac: int, other: int) -> bytes:
    pairs = text.split(":")
    if len(pairs) == 6 and all(len(pair) == 2 and set(pair) <= set("0123456789abcdef") for pair in pairs):
        return bytes([mac]) + bytes.fromhex("".join(pairs))
    if not text:
        raise LldpError("an identifier must not be empty")
    return bytes([other]) + text.encode()


def _tlv(kind: int, value: bytes) -> bytes:
    if len(value) > _MAX_VALUE:
        raise LldpError(f"TLV {kind} is longer than {_MAX_VALUE} bytes")
    return (kind << 9 | len(value)).to_bytes(2, "big") + value


def _text(value: bytes) -> str:
    """Text for people and keys: undecodable and control characters must not travel on into logs and databases."""
    decoded = value.decode("utf-8", errors="replace").rstrip("\x00")
    return "".join(char if char.isprintable() else "\ufffd" for char in decoded)
