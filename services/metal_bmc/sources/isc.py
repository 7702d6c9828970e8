"""The lease file of ISC dhcpd (dhcpd.leases(5)).

The file is a log that dhcpd appends to: a later record for an address replaces the earlier ones, and the last record
may be half written. A record that cannot be read is reported with its line and skipped; it never costs the others.
IPv6 leases (ia-na blocks) and every other declaration are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Address, ip_address

from metal_bmc.sources.lease import BadRecord, Lease, LeaseFile, Problems

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{};]|#.*|"|[^\s{};"#]+')
_MAC = re.compile(r"[0-9a-f]{1,2}(?::[0-9a-f]{1,2}){5}")
_HELD = frozenset({"active", "bootp"})

# What dhcpd writes besides leases. A file with none of it is no lease file.
_OTHERS = frozenset(
    {"authoring-byte-order", "server-duid", "default-duid", "ia-na", "ia-ta", "ia-pd", "failover", "host", "group"}
    | {"class", "subclass", "option"}
)


@dataclass
class _Record:
    line: int
    address: str
    depth: int = 1
    words: list[str] = field(default_factory=list)
    statements: list[list[str]] = field(default_factory=list)
    broken: str = ""


def parse(lines: Iterable[str]) -> LeaseFile:
    """Read a whole file. Never raises for its content."""
    leases: list[Lease] = []
    problems = Problems()
    reader = _Reader()
    for number, line in enumerate(lines, start=1):
        for record in reader.feed(number, line):
            _finish(record, leases, problems)
    if reader.record is not None:
        problems.add(reader.record.line, "the record has no end")
    if reader.strange and not reader.known:
        problems.add(reader.strange, "nothing that dhcpd writes: is it the lease file of ISC dhcpd?")
    return LeaseFile(tuple(leases), tuple(problems.noted), problems.count)


class _Reader:
    """Splits lines into lease records. A new `lease … {` inside of a record means that the old one was cut off."""

    def __init__(self) -> None:
        self.record: _Record | None = None
        # The first line that means nothing to us, and whether any line meant something.
        self.strange, self.known = 0, False

    def feed(self, number: int, line: str) -> list[_Record]:
        """The records that end on this line."""
        tokens = [token for token in _TOKEN.findall(line) if not token.startswith("#")]
        done: list[_Record] = []
        if len(tokens) >= 3 and tokens[0] == "lease" and tokens[2] == "{":
            if self.record is not None:
                self.record.broken = "the record has no end"
                done.append(self.record)
            self.record, self.known = _Record(number, tokens[1]), True
            tokens = tokens[3:]
        elif tokens and self.record is None:
            self.known = self.known or tokens[0] in _OTHERS
            self.strange = self.strange or number
        for part in tokens:
            if self.record is not None and self._take(self.record, part):
                done.append(self.record)
                self.record = None
        return done

    @staticmethod
    def _take(record: _Record, part: str) -> bool:
        if part == "{":
            record.depth += 1
            record.words.clear()
        elif part == "}":
            record.depth -= 1
            record.words.clear()
            return record.depth == 0
        elif part == '"':
            record.broken = "a quoted text has no end"
        elif part == ";":
            # Statements of nested blocks (`on expiry { … }`) do not describe the lease.
            if record.depth == 1:
                record.statements.append(list(record.words))
            record.words.clear()
        else:
            record.words.append(part)
        return False


def _finish(record: _Record, leases: list[Lease], problems: Problems) -> None:
    try:
        if record.broken:
            raise BadRecord(record.broken)
        leases.append(_lease(record))
    except BadRecord as bad:
        problems.add(record.line, str(bad))


def _lease(record: _Record) -> Lease:
    try:
        address = ip_address(record.address)
    except ValueError:
        raise BadRecord("the address is not an IP address") from None
    if not isinstance(address, IPv4Address):
        raise BadRecord("the address is not an IPv4 address")
    mac, state = "", "active"
    starts, ends, seen_end = None, None, False
    for words in record.statements:
        if words[:2] == ["hardware", "ethernet"]:
            mac = _mac(words[2:])
        elif words[:2] == ["binding", "state"] and len(words) == 3:
            state = "active" if words[2] in _HELD else words[2]
        elif words[:1] == ["starts"]:
            starts = _time(words[1:], "starts")
        elif words[:1] == ["ends"]:
            ends, seen_end = _time(words[1:], "ends"), True
    if not mac:
        raise BadRecord("no Ethernet address")
    if not seen_end:
        raise BadRecord("no end time")
    return Lease(address, mac, starts or datetime.fromtimestamp(0, UTC), ends, state, record.line)


def _mac(words: list[str]) -> str:
    text = words[0].lower() if len(words) == 1 else ""
    if not _MAC.fullmatch(text):
        raise BadRecord("the Ethernet address is malformed")
    return ":".join(part.rjust(2, "0") for part in text.split(":"))


def _time(words: list[str], name: str) -> datetime | None:
    """`never`, `epoch <seconds>` or `<weekday> <year>/<month>/<day> <hour>:<minute>:<second>` in UTC."""
    try:
        if words == ["never"]:
            return None
        if len(words) == 2 and words[0] == "epoch":
            return datetime.fromtimestamp(int(words[1]), UTC)
        if len(words) == 3:
            return datetime.strptime(" ".join(words[1:]), "%Y/%m/%d %H:%M:%S").replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        pass
    raise BadRecord(f"`{name}` is not a time")
