"""The lease file of ISC dhcpd (dhcpd.leases(5)): which BMC has which address now.

The file is a log that dhcpd appends to: a later record for an address replaces the earlier ones, and the last record
may be half written. A record that cannot be read is reported with its line and skipped; it never costs the others.
IPv6 leases (ia-na blocks) and every other declaration are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{};]|#.*|"|[^\s{};"#]+')
_MAC = re.compile(r"[0-9a-f]{1,2}(?::[0-9a-f]{1,2}){5}")
_HELD = frozenset({"active", "bootp"})

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Lease:
    """One record. `ends` is None for `ends never`; `state` is the binding state, `active` when the record has none."""

    address: IPv4Address
    mac: str
    starts: datetime
    ends: datetime | None
    state: str
    line: int


@dataclass(frozen=True, slots=True)
class LeaseProblem:
    """A record that was skipped; `line` is where it begins."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class LeaseFile:
    """What a file holds, in its order."""

    leases: tuple[Lease, ...]
    problems: tuple[LeaseProblem, ...]


@dataclass
class _Record:
    line: int
    address: str
    depth: int = 1
    words: list[str] = field(default_factory=list)
    statements: list[list[str]] = field(default_factory=list)
    broken: str = ""


def parse(text: str) -> LeaseFile:
    """Read a whole file. Never raises for its content."""
    leases: list[Lease] = []
    problems: list[LeaseProblem] = []
    reader = _Reader()
    for number, line in enumerate(text.splitlines(), start=1):
        for record in reader.feed(number, line):
            _finish(record, leases, problems)
    if reader.record is not None:
        problems.append(LeaseProblem(reader.record.line, "the record has no end"))
    return LeaseFile(tuple(leases), tuple(problems))


def current(
    leases: Iterable[Lease],
    now: datetime,
    *,
    networks: Sequence[Network] = (),
    ignored_macs: Collection[str] = (),
) -> dict[str, Lease]:
    """The lease in force of each MAC: held, not ended, inside one of `networks` (none: any); the latest start wins."""
    last_of_address = {lease.address: lease for lease in leases}
    chosen: dict[str, Lease] = {}
    for lease in sorted(last_of_address.values(), key=lambda each: (each.starts, each.line)):
        over = lease.ends is not None and lease.ends <= now
        outside = bool(networks) and not any(lease.address in network for network in networks)
        if over or outside or lease.state not in _HELD or lease.mac in ignored_macs:
            continue
        chosen[lease.mac] = lease
    return chosen


class _Reader:
    """Splits lines into lease records. A new `lease … {` inside of a record means that the old one was cut off."""

    def __init__(self) -> None:
        self.record: _Record | None = None

    def feed(self, number: int, line: str) -> list[_Record]:
        """The records that end on this line."""
        tokens = [token for token in _TOKEN.findall(line) if not token.startswith("#")]
        done: list[_Record] = []
        if len(tokens) >= 3 and tokens[0] == "lease" and tokens[2] == "{":
            if self.record is not None:
                self.record.broken = "the record has no end"
                done.append(self.record)
            self.record = _Record(number, tokens[1])
            tokens = tokens[3:]
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


def _finish(record: _Record, leases: list[Lease], problems: list[LeaseProblem]) -> None:
    try:
        if record.broken:
            raise _BadRecord(record.broken)
        leases.append(_lease(record))
    except _BadRecord as bad:
        problems.append(LeaseProblem(record.line, str(bad)))


class _BadRecord(Exception):
    pass


def _lease(record: _Record) -> Lease:
    try:
        address = ip_address(record.address)
    except ValueError:
        raise _BadRecord("the address is not an IP address") from None
    if not isinstance(address, IPv4Address):
        raise _BadRecord("the address is not an IPv4 address")
    mac, state = "", "active"
    starts, ends, seen_end = None, None, False
    for words in record.statements:
        if words[:2] == ["hardware", "ethernet"]:
            mac = _mac(words[2:])
        elif words[:2] == ["binding", "state"] and len(words) == 3:
            state = words[2]
        elif words[:1] == ["starts"]:
            starts = _time(words[1:], "starts")
        elif words[:1] == ["ends"]:
            ends, seen_end = _time(words[1:], "ends"), True
    if not mac:
        raise _BadRecord("no Ethernet address")
    if not seen_end:
        raise _BadRecord("no end time")
    return Lease(address, mac, starts or datetime.fromtimestamp(0, UTC), ends, state, record.line)


def _mac(words: list[str]) -> str:
    text = words[0].lower() if len(words) == 1 else ""
    if not _MAC.fullmatch(text):
        raise _BadRecord("the Ethernet address is malformed")
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
    raise _BadRecord(f"`{name}` is not a time")
