"""IP addresses: what can be asked for, and from which prefix each address shall come.

A call for addresses is first spread over prefixes by what their counters say, and then carried out prefix by prefix in
the order of their ids. The order is what keeps calls over several prefixes from deadlocking. The plan may be outrun by
another call; then it is made anew. Pure: reads and writes are the store's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from metal_kit.errors import FailedPrecondition, InvalidArgument, OutOfRange, ResourceExhausted

from metal_ipam.cidr import Address, Prefix, contains
from metal_ipam.networks import FAMILIES, Network

MAX_ADDRESSES_A_CALL = 4096


class IpType(StrEnum):
    """What becomes of an address when its owner lets it go: an ephemeral one is released, a static one stays."""

    EPHEMERAL = "ephemeral"
    STATIC = "static"


@dataclass(frozen=True, slots=True)
class Owner:
    """Who uses an address or a number; the empty owner stands for "only the project"."""

    kind: str = ""
    id: str = ""

    def __bool__(self) -> bool:
        return bool(self.id)

    def __str__(self) -> str:
        return f"{self.kind} {self.id}" if self.id else "nobody"


@dataclass(frozen=True, slots=True)
class Ip:
    """An address in use."""

    address: Address
    namespace_id: int
    network: str
    prefix: Prefix
    project: str = ""
    type: IpType = IpType.EPHEMERAL
    owner: Owner = field(default_factory=Owner)
    name: str = ""
    description: str = ""
    dns_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    version: int = 1
    create_time: datetime | None = None
    namespace: str = ""
    prefix_id: int = 0


class ListedIp(NamedTuple):
    """An address in use as lists show it: as `Ip`, but with address and prefix as text, since they are only written out
    again and a page has hundreds of them."""

    address: str
    network: str
    prefix: str
    project: str
    type: IpType
    owner: Owner
    name: str
    description: str
    dns_name: str
    labels: Mapping[str, str]
    version: int
    create_time: datetime
    namespace: str
    prefix_id: int


@dataclass(frozen=True, slots=True)
class Leaf:
    """A prefix that gives addresses, as its counters stood when they were read. `network` is the source that it belongs
    to: a network, or `Wish.source` of a prefix on its own."""

    id: int
    network: str
    cidr: Prefix
    namespace_id: int
    free: int
    used: int
    size: int
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Wish:
    """Wish for addresses of one network, or of one prefix that belongs to none: a specific one, or `count` in a family
    (0: in each that there is). `reserved`: the specific one may lie in a reserved range.

    The network is named, or (then `network` is empty) chosen by its `labels`.
    """

    network: str
    address: Address | None = None
    family: int = 0
    count: int = 1
    prefix: Prefix | None = None
    namespace: str = ""
    reserved: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Where the addresses come from: the network's id, or words for the prefix, which no id is like (spaces)."""
        return self.network if self.prefix is None else f"prefix {self.prefix} of namespace {self.namespace!r}"

    @property
    def most(self) -> int:
        """How many addresses it can come to, whatever the network."""
        return self.count if self.family or self.address else len(FAMILIES) * self.count


@dataclass(frozen=True, slots=True)
class Unit:
    """One address that is wanted; its place in the answer is its place in the list of units."""

    network: str
    family: int
    address: Address | None = None
    reserved: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """What one prefix is asked for: indexes of units, those with a given address and those with any."""

    prefix_id: int
    specific: tuple[int, ...]
    next_free: tuple[int, ...]


def expand(wishes: Sequence[Wish], networks: Mapping[str, Network]) -> list[Unit]:
    """The single addresses that the wishes stand for: in their order, IPv4 before IPv6.

    Raises:
        InvalidArgument: contradicting wishes, the same address twice, or more than MAX_ADDRESSES_A_CALL addresses.
        FailedPrecondition: the network has no prefix of the family.
    """
    units: list[Unit] = []
    asked: set[tuple[str, Address]] = set()
    for index, wish in enumerate(wishes):
        where = f"wishes[{index}]"
        if wish.address is not None:
            if wish.family or wish.count > 1:
                raise InvalidArgument(
                    "WISH_CONTRADICTS_ITSELF", "a specific address excludes family and count", field=f"{where}.address"
                )
            if (wish.source, wish.address) in asked:
                raise InvalidArgument("ADDRESS_TWICE", f"{wish.address} is asked for twice", field=f"{where}.address")
            asked.add((wish.source, wish.address))
            units.append(Unit(wish.source, wish.address.version, wish.address, wish.reserved))
        else:
            families = _families(wish, networks)
            units += [Unit(wish.source, family) for family in families for _ in range(wish.count)]
        if len(units) > MAX_ADDRESSES_A_CALL:
            raise InvalidArgument(
                "TOO_MANY_ADDRESSES", f"at most {MAX_ADDRESSES_A_CALL} addresses a call", field="wishes"
            )
    return units


def spread(units: Sequence[Unit], leaves: Sequence[Leaf]) -> list[Share]:
    """Which prefix shall serve which unit: each network's prefixes in the order of their ids, shares in that order too.

    A specific address comes before those that may be any, lest one of these takes it.

    Raises:
        OutOfRange: a specific address lies in no prefix of its network.
        ResourceExhausted: the counters already say that there is not enough; names network, prefixes and fill.
    """
    specific: dict[int, list[int]] = defaultdict(list)
    next_free: dict[int, list[int]] = defaultdict(list)
    free = {leaf.id: leaf.free for leaf in leaves}
    by_network: dict[tuple[str, int], list[Leaf]] = defaultdict(list)
    for leaf in sorted(leaves, key=lambda each: each.id):
        by_network[leaf.network, leaf.cidr.version].append(leaf)

    for index, unit in enumerate(units):
        if unit.address is not None:
            home = _home(unit, unit.address, by_network[unit.network, unit.family])
            specific[home.id].append(index)
            free[home.id] -= not unit.reserved
    for index, unit in enumerate(units):
        if unit.address is None:
            candidates = by_network[unit.network, unit.family]
            chosen = next((leaf for leaf in candidates if free[leaf.id] > 0), None)
            if chosen is None:
                wanted = sum(u.network == unit.network and u.family == unit.family for u in units)
                raise exhausted(unit.network, unit.family, candidates, wanted)
            next_free[chosen.id].append(index)
            free[chosen.id] -= 1
    return [
        Share(prefix_id, tuple(specific[prefix_id]), tuple(next_free[prefix_id]))
        for prefix_id in sorted(specific.keys() | next_free.keys())
    ]


def exhausted(network: str, family: int, leaves: Sequence[Leaf], wanted: int) -> ResourceExhausted:
    """The error for a network without enough free addresses in a family."""
    fill = ", ".join(f"{leaf.cidr} {leaf.used} used and {leaf.free} free of {leaf.size}" for leaf in leaves)
    return ResourceExhausted(
        "NETWORK_FULL",
        f"{_called(network)} has not the {wanted} free IPv{family} address(es) that are wanted: {fill or 'no prefix'}",
        metadata={
            "network": network,
            "prefixes": ",".join(str(leaf.cidr) for leaf in leaves),
            "wanted": str(wanted),
            "free": str(sum(leaf.free for leaf in leaves)),
            "used": str(sum(leaf.used for leaf in leaves)),
        },
    )


def _families(wish: Wish, networks: Mapping[str, Network]) -> list[int]:
    present = networks[wish.network].families if wish.prefix is None else {wish.prefix.version}
    if wish.family and wish.family not in present:
        raise FailedPrecondition(
            "FAMILY_NOT_IN_NETWORK",
            f"{_called(wish.source)} has no IPv{wish.family} prefix",
            metadata={"network": wish.network},
        )
    return [wish.family] if wish.family else [family for family in FAMILIES if family in present]


def _home(unit: Unit, address: Address, leaves: Sequence[Leaf]) -> Leaf:
    for leaf in leaves:
        if contains(leaf.cidr, address):
            return leaf
    has = ", ".join(str(leaf.cidr) for leaf in leaves) or f"no IPv{unit.family} prefix"
    raise OutOfRange(
        "ADDRESS_OUTSIDE_NETWORK",
        f"{address} lies in no prefix of {_called(unit.network)}, which has {has}",
        metadata={"network": unit.network, "address": str(address)},
    )


def _called(source: str) -> str:
    return source if " " in source else f"network {source}"
