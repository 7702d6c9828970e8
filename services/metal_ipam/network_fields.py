"""Which fields each type of network needs and forbids, and how they fit together.

Checked on the whole network: at creation, and again on what results from an update. Every fault is reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from metal_kit.errors import InvalidArgument, Violation

from metal_ipam.cidr import overlaps
from metal_ipam.networks import FAMILIES, IPV6, WIDTH, Lengths, Nat, Network, NetworkType, families_of, label

_CHOSEN_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_REQUIRED: dict[NetworkType, tuple[str, ...]] = {
    NetworkType.SUPER: ("id", "prefixes"),
    NetworkType.SUPER_NAMESPACED: ("id", "prefixes"),
    NetworkType.CHILD: ("project",),
    NetworkType.CHILD_SHARED: ("project",),
    NetworkType.EXTERNAL: ("id", "prefixes", "vrf"),
    NetworkType.UNDERLAY: ("id", "partition", "prefixes"),
}
_CHILD_FORBIDDEN = (
    "id", "prefixes", "destination_prefixes", "additional_announcable_prefixes", "default_child_prefix_length",
    "min_child_prefix_length", "nat",
)  # fmt: skip
_FORBIDDEN: dict[NetworkType, tuple[str, ...]] = {
    NetworkType.SUPER: ("parent", "length", "nat"),
    NetworkType.SUPER_NAMESPACED: ("parent", "length", "nat", "partition", "vrf"),
    NetworkType.CHILD: _CHILD_FORBIDDEN,
    NetworkType.CHILD_SHARED: _CHILD_FORBIDDEN,
    NetworkType.EXTERNAL: (
        "parent", "length", "default_child_prefix_length", "min_child_prefix_length", "additional_announcable_prefixes",
    ),
    NetworkType.UNDERLAY: (
        "project", "vrf", "nat", "destination_prefixes", "parent", "length", "default_child_prefix_length",
        "min_child_prefix_length", "additional_announcable_prefixes",
    ),
}  # fmt: skip
# Why, where the type alone does not tell.
_BECAUSE = {
    (NetworkType.SUPER_NAMESPACED, "vrf"): ": children of different projects may have the same addresses, so that each "
    "child gets a VRF of its own",
    (NetworkType.SUPER_NAMESPACED, "partition"): ": it serves all of them, and its children name it as their parent",
}
# Fields whose name in the contract differs from the attribute here.
_ATTRIBUTE = {"default_child_prefix_length": "default_child", "min_child_prefix_length": "min_child"}


def check_new(network: Network, length: Lengths) -> None:
    """The rules for a network that shall be created; `length` is what a child asks for.

    Raises:
        InvalidArgument: reason NETWORK_INVALID with a violation for each field at fault.
    """
    found = _presence(network, length) + _values(network)
    if network.type.is_child and bool(network.parent) == bool(network.partition):
        found.append(
            Violation(
                "network.parent", "name either the parent, or the partition whose super network is to be the parent"
            )
        )
    _raise(network.type, found)


def check_updated(before: Network, after: Network) -> None:
    """The rules for what results from an update; what the contract calls immutable never gets here.

    Raises:
        InvalidArgument: as `check_new`; reason NETWORK_INVALID.
    """
    found: list[Violation] = []
    if after.type.is_child:
        inherits = f"a {label(after.type)} network has them from its parent; they cannot be changed"
        found += [
            Violation(f"network.{name}", inherits)
            for name in ("prefixes", "destination_prefixes", "additional_announcable_prefixes")
            if getattr(after, name) != getattr(before, name)
        ]
        found += [
            Violation(f"network.{name}", f"must not be set on a {label(after.type)} network")
            for name, attribute in _ATTRIBUTE.items()
            if getattr(after, attribute)
        ]
    else:
        found = _presence(after, Lengths()) + _values(after)
    _raise(after.type, found)


def _presence(network: Network, length: Lengths) -> list[Violation]:
    def given(name: str) -> bool:
        if name == "length":
            return bool(length)
        value = getattr(network, _ATTRIBUTE.get(name, name))
        return value is not Nat.NONE if name == "nat" else bool(value)

    def path(name: str) -> str:
        return name if name == "length" else f"network.{name}"

    what = label(network.type)
    missing = [Violation(path(n), f"is required for a {what} network") for n in _REQUIRED[network.type] if not given(n)]
    extra = [
        Violation(path(n), f"must not be set on a {what} network" + _BECAUSE.get((network.type, n), ""))
        for n in _FORBIDDEN[network.type]
        if given(n)
    ]
    return missing + extra


def _values(network: Network) -> list[Violation]:
    found = []
    if network.id and not network.type.is_child and not _CHOSEN_ID.fullmatch(network.id):
        found.append(Violation("network.id", "must be lower-case letters, digits and hyphens, at most 63"))
    found += [
        Violation("network.prefixes", f"{one} overlaps {other}" if one != other else f"{one} is given twice")
        for one, other in overlaps(network.prefixes)
    ]
    if network.type.is_super:
        found += _child_lengths(network)
    if network.type is NetworkType.EXTERNAL:
        found += [
            Violation("network.destination_prefixes", f"IPv{family} cannot be reached: no prefix is of that family")
            for family in sorted(families_of(network.destination_prefixes) - network.families)
        ]
    if network.type is NetworkType.UNDERLAY and IPV6 in network.families:
        found.append(Violation("network.prefixes", "an underlay network has IPv4 prefixes only"))
    return found


def _child_lengths(network: Network) -> list[Violation]:
    found = []
    for family in FAMILIES:
        default, least = network.default_child.of(family), network.min_child.of(family)
        longest = max((p.prefixlen for p in network.prefixes if p.version == family), default=None)
        where = f"network.default_child_prefix_length.ipv{family}"
        where_least = f"network.min_child_prefix_length.ipv{family}"
        if longest is None:
            absent = f"must not be set: no prefix is IPv{family}"
            found += [Violation(path, absent) for path, value in ((where, default), (where_least, least)) if value]
            continue
        if not default:
            found.append(Violation(where, f"is required, because a prefix is IPv{family}"))
        elif not longest < default <= WIDTH[family]:
            found.append(Violation(where, f"must be longer than each prefix: {longest + 1} to {WIDTH[family]}"))
        if least and not longest < least <= (default or WIDTH[family]):
            found.append(Violation(where_least, "must be longer than each prefix and not longer than the default"))
    return found


def _raise(kind: NetworkType, found: Sequence[Violation]) -> None:
    if found:
        text = "; ".join(f"{each.field} {each.description}" for each in found)
        raise InvalidArgument("NETWORK_INVALID", f"no valid {label(kind)} network: {text}", violations=found)
