"""The lease files of Kea's memfile backend, kea-leases4.csv and kea-leases6.csv.

A file is a log: a header that names the columns, then a line for every change, the latest one of an address being
right. Kea writes a comma inside of a value as `&#x2c`, so that a plain split is right. A released or deleted lease is
written with another state than 0, or with a lifetime of 0. The last line may be half written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from ipaddress import IPv6Address, ip_address

from metal_bmc.sources.lease import BadRecord, Lease, LeaseFile, Problems

_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_ESCAPE = re.compile(r"&#x([0-9a-fA-F]{2})")
_ETHERNET_DUIDS = ("00:01:00:01:", "00:03:00:01:")
"""DUID-LLT and DUID-LL of Ethernet (RFC 8415 §11.2, §11.4): they end in the MAC address."""
_INFINITE = 0xFFFFFFFF
_HELD = 0
_PREFIX_DELEGATION = "2"
_STATES = {_HELD: "active", 1: "declined", 2: "expired", 3: "released", 4: "registered"}
_NEEDED = ("address", "valid_lifetime", "expire")


def parse(lines: Iterable[str]) -> LeaseFile:
    """Read a whole file, whose lines end in a newline each. Never raises for its content."""
    leases: list[Lease] = []
    problems = Problems()
    header: Sequence[str] | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            if not line.endswith("\n"):
                raise BadRecord("the line has no end")
            if header is None:
                header = _header(line)
                continue
            lease = _lease(header, line, number)
        except BadRecord as bad:
            problems.add(number, str(bad))
            if header is None:
                # Nothing can be known of the other lines without it.
                break
        else:
            leases += [lease] if lease is not None else []
    return LeaseFile(tuple(leases), tuple(problems.noted), problems.count)


def _header(line: str) -> Sequence[str]:
    columns = [name.strip() for name in line.split(",")]
    missing = [name for name in _NEEDED if name not in columns]
    if "hwaddr" not in columns and "duid" not in columns:
        missing.append("hwaddr or duid")
    if missing:
        raise BadRecord(f"the header does not name {', '.join(missing)}: is it a lease file of Kea?")
    if len(set(columns)) != len(columns):
        raise BadRecord("the header names a column twice")
    return columns


def _lease(header: Sequence[str], line: str, number: int) -> Lease | None:
    """The lease of a line; None for a delegated prefix, which is nobody's address."""
    values = line.rstrip("\r\n").split(",")
    if len(values) != len(header):
        raise BadRecord(f"{len(values)} fields, where the header names {len(header)}")
    row = dict(zip(header, map(_unescaped, values), strict=True))
    if row.get("lease_type", "") == _PREFIX_DELEGATION:
        return None
    try:
        address = ip_address(row["address"])
    except ValueError:
        raise BadRecord("`address` is not an IP address") from None
    lifetime, expire = _number(row, "valid_lifetime"), _number(row, "expire")
    state = _number(row, "state") if row.get("state") else _HELD
    held = "released" if lifetime == 0 else _STATES.get(state, "unknown")
    mac = _mac(row)
    if not mac:
        # Records of a lease that ended may leave the client out; they still end what is before them.
        if held == "active":
            raise BadRecord("no Ethernet address: neither `hwaddr` nor a `duid` made of one")
        mac = ""
    ends = None if lifetime == _INFINITE else _time(expire, "expire")
    starts = _time(max(0, expire - lifetime), "expire")
    if isinstance(address, IPv6Address) and address.scope_id:
        raise BadRecord("`address` has a zone")
    return Lease(address, mac, starts, ends, held, number)


def _unescaped(value: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), value)


def _mac(row: dict[str, str]) -> str:
    hardware = row.get("hwaddr", "").strip().lower()
    if _MAC.fullmatch(hardware):
        return hardware
    if hardware:
        raise BadRecord("`hwaddr` is not an Ethernet address")
    duid = row.get("duid", "").strip().lower()
    tail = duid[-17:]
    return tail if duid.startswith(_ETHERNET_DUIDS) and _MAC.fullmatch(tail) else ""


def _number(row: dict[str, str], name: str) -> int:
    text = row[name].strip()
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        raise BadRecord(f"`{name}` is not a number")
    return int(text)


def _time(seconds: int, name: str) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        raise BadRecord(f"`{name}` is not a time") from None
