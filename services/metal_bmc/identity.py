"""Whether the BMC that answers is the machine's own. Pure.

The system GUID is 16 bytes whose order cannot be told from themselves: SMBIOS 2.6 keeps the first three fields of a
UUID little-endian and most BMCs pass that on; IPMI 2.0 table 20-10 has all of it from the last byte to the first; some
send it as RFC 9562 writes it. So nothing is swapped by a guess: the bytes are kept, and compared in every order with
the UUID that the machine is known by. What a serial number or the BMC's own MAC address says goes before that: boards
share GUIDs, or have one of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from uuid import UUID

# The names of pyghmi's FRU parser.
_SERIALS = ("Serial Number", "Board serial number", "Chassis serial number")


class Match(StrEnum):
    """What makes a BMC the machine's own. The first three are the order of the GUID's bytes in which it fits."""

    UNKNOWN = ""
    SMBIOS = "smbios"
    RFC4122 = "rfc4122"
    IPMI = "ipmi"
    SERIAL = "serial"
    MAC = "mac"
    # Something that is known contradicts it, or its GUID is another one and nothing else speaks for it.
    OTHER = "other"


def readings(guid: bytes, order: str = "") -> dict[Match, str]:
    """The UUIDs that 16 bytes may mean, the most usual first; none for no bytes. `order` is that of the board where it
    is known, and leaves one of them."""
    if len(guid) != 16:
        return {}
    every = {
        Match.SMBIOS: str(UUID(bytes_le=guid)),
        Match.RFC4122: str(UUID(bytes=guid)),
        Match.IPMI: str(UUID(bytes=guid[::-1])),
    }
    return {match: uuid for match, uuid in every.items() if order in ("", match)}


def serials(fru: Mapping[str, str]) -> frozenset[str]:
    """The serial numbers in a FRU, as they are compared."""
    return frozenset(filter(None, (_plain(fru.get(name, "")) for name in _SERIALS)))


def judge(
    machine: str,
    *,
    guid: bytes,
    order: str = "",
    serial: str = "",
    said_serials: Collection[str] = (),
    mac: str = "",
    said_mac: str = "",
) -> Match:
    """Whether a BMC is that of `machine`. `serial` and `mac` are what people know, the others what the BMC says."""
    known_serial, known_mac = _plain(serial), bool(mac and said_mac)
    if (known_mac and mac != said_mac) or (known_serial and said_serials and known_serial not in said_serials):
        return Match.OTHER
    for match, uuid in readings(guid, order).items():
        if uuid == machine:
            return match
    if known_serial and said_serials:
        return Match.SERIAL
    if known_mac:
        return Match.MAC
    return Match.OTHER if guid else Match.UNKNOWN


def _plain(serial: str) -> str:
    return serial.strip().casefold()
