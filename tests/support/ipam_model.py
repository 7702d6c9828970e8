"""What ipam must do, said with sets: every address, prefix and number is looked at one by one, nothing is clever.

The model of a leaf knows what is taken and finds free addresses by walking from the first; that of a container tries
every aligned block. Slow and plain, so that it can be believed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Prefix: TypeAlias = IPv4Network | IPv6Network


@dataclass
class Held:
    """An address that somebody has. `owner` is empty when only the project has it."""

    project: str
    owner: str = ""
    static: bool = False


@dataclass
class Leaf:
    """A prefix that gives addresses."""

    cidr: Prefix
    rests: bool = False
    """Whether released addresses rest."""
    held: dict[Address, Held] = field(default_factory=dict)
    reserved: set[Address] = field(default_factory=set)
    resting: set[Address] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.cidr.max_prefixlen - self.cidr.prefixlen >= 2:
            self.reserved.add(self.cidr.network_address)
            if self.cidr.version == 4:
                self.reserved.add(self.cidr.broadcast_address)

    @property
    def free(self) -> int:
        """How many addresses can be had."""
        return self.cidr.num_addresses - len(self.held) - len(self.reserved) - len(self.resting)

    def is_free(self, address: Address) -> bool:
        return address not in self.held and address not in self.reserved and address not in self.resting

    def free_addresses(self, besides: set[Address]) -> Iterator[Address]:
        """Those that can be had, the lowest first."""
        return (each for each in self.cidr if self.is_free(each) and each not in besides)

    def release(self, address: Address) -> None:
        del self.held[address]
        if self.rests:
            self.resting.add(address)


@dataclass(frozen=True)
class Unit:
    """One wanted address: a given one, or any of the family."""

    network: str
    family: int
    address: Address | None = None


@dataclass
class Model:
    """All of ipam: leaves by network in the order of their creation, children of one super network, numbers by pool."""

    leaves: dict[str, list[Leaf]] = field(default_factory=dict)
    supers: tuple[Prefix, ...] = ()
    children: dict[str, list[Prefix]] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    """ASN by owner."""

    def home(self, network: str, address: Address) -> Leaf | None:
        return next((leaf for leaf in self.leaves[network] if address in leaf.cidr), None)

    def families(self, network: str) -> list[int]:
        return sorted({leaf.cidr.version for leaf in self.leaves[network]})

    def plan(self, units: Sequence[Unit]) -> list[Address] | None:
        """Which addresses the units get, None when not all can be served: given ones first, then the lowest."""
        got: dict[int, Address] = {}
        for index, unit in enumerate(units):
            if unit.address is not None:
                leaf = self.home(unit.network, unit.address)
                if leaf is None or not leaf.is_free(unit.address) or unit.address in got.values():
                    return None
                got[index] = unit.address
        given = set(got.values())
        for index, unit in enumerate(units):
            if unit.address is None:
                of_family = [leaf for leaf in self.leaves[unit.network] if leaf.cidr.version == unit.family]
                besides = given | set(got.values())
                found = next((each for leaf in of_family for each in leaf.free_addresses(besides)), None)
                if found is None:
                    return None
                got[index] = found
        return [got[index] for index in range(len(units))]

    def hold(self, units: Sequence[Unit], addresses: Sequence[Address], held: Held) -> None:
        for unit, address in zip(units, addresses, strict=True):
            leaf = self.home(unit.network, address)
            assert leaf is not None
            leaf.held[address] = Held(held.project, held.owner, held.static)

    def cut(self, parent: Prefix, length: int) -> Prefix | None:
        """Where a child of the length goes: into the smallest free block that fits, the lowest of these."""
        taken = [cidr for cidrs in self.children.values() for cidr in cidrs if cidr.version == parent.version]

        def is_free(block: Prefix) -> bool:
            return not any(block.overlaps(each) for each in taken)

        def room(block: Prefix) -> int:
            """Length of the largest free block around it."""
            while block.prefixlen > parent.prefixlen and is_free(block.supernet()):
                block = block.supernet()
            return block.prefixlen

        candidates = [block for block in parent.subnets(new_prefix=length) if is_free(block)]
        return min(candidates, key=lambda block: (-room(block), block), default=None)

    def held(self) -> dict[tuple[str, str], tuple[str, str, bool]]:
        """Everything that is held, as a list of addresses shows it."""
        return {
            (network, str(address)): (held.project, held.owner, held.static)
            for network, leaves in self.leaves.items()
            for leaf in leaves
            for address, held in leaf.held.items()
        }

    def fill(self) -> dict[str, tuple[int, int, int]]:
        """Used, reserved and free of each leaf; resting addresses count as used."""
        return {
            str(leaf.cidr): (
                len(leaf.held) + len(leaf.resting), len(leaf.reserved), min(leaf.free, 2**63 - 1)
            )
            for leaves in self.leaves.values()
            for leaf in leaves
        }  # fmt: skip


def leaf(cidr: str, *, rests: bool = False) -> Leaf:
    """A leaf with nothing in it."""
    return Leaf(ip_network(cidr), rests)
