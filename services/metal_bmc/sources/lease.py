"""Leases whatever DHCP server wrote them, and which BMC has which address by them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address
MOST_PROBLEMS = 50
"""Of one file: a file of garbage has as many as it has lines, and nobody reads the thousandth."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One record. `ends` is None for one that never ends; `state` is `active` when the client holds the address."""

    address: Address
    mac: str
    starts: datetime
    ends: datetime | None
    state: str
    line: int


@dataclass(frozen=True, slots=True)
class LeaseProblem:
    """What could not be read; `line` is where it begins, 0 for the file as a whole."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class LeaseFile:
    """What a file holds, in its order. `problem_count` counts those too that `problems` leaves out."""

    leases: tuple[Lease, ...]
    problems: tuple[LeaseProblem, ...]
    problem_count: int = 0


@dataclass(slots=True)
class Problems:
    """Collects problems: the first ones in full, of the others how many there are."""

    noted: list[LeaseProblem] = field(default_factory=list)
    count: int = 0

    def add(self, line: int, reason: str) -> None:
        """Note one."""
        self.count += 1
        if len(self.noted) < MOST_PROBLEMS:
            self.noted.append(LeaseProblem(line, reason))


class BadRecord(Exception):
    """A record cannot be read; the text says why, without quoting it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a BMC is, and since when. `also` has an older or other address that it holds at the same time."""

    host: str
    also: tuple[str, ...] = ()

    def has(self, host: str) -> bool:
        """Whether it may be reached there."""
        return host == self.host or host in self.also


def current(
    leases: Iterable[Lease],
    now: datetime,
    *,
    networks: Sequence[Network] = (),
    ignored_macs: Collection[str] = (),
) -> dict[str, Place]:
    """Where each MAC is now, by leases that are held, not ended and inside one of `networks` (none: any).

    Of each family of addresses the latest start counts. A BMC that has both is asked over IPv4, and is not taken for
    one that moved because it renewed the other.
    """
    last_of_address = {lease.address: lease for lease in leases}
    chosen: dict[str, dict[int, Address]] = {}
    for lease in sorted(last_of_address.values(), key=lambda each: (each.starts, each.line)):
        over = lease.ends is not None and lease.ends <= now
        outside = bool(networks) and not any(lease.address in network for network in networks)
        if over or outside or lease.state != "active" or lease.mac in ignored_macs:
            continue
        chosen.setdefault(lease.mac, {})[lease.address.version] = lease.address
    return {mac: _place(of_family) for mac, of_family in chosen.items()}


def _place(of_family: dict[int, Address]) -> Place:
    first, *others = (str(of_family[version]) for version in sorted(of_family))
    return Place(first, tuple(others))
