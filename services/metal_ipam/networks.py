"""Networks: which fields each type needs, forbids and inherits, and who may see, use and cut it.

Pure rules; what is free, and whether a number or an id is taken, is the store's to say. Rules are checked on the whole
network, at creation and again on what results from an update.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from metal_kit.errors import FailedPrecondition, InvalidArgument, Violation

from metal_ipam.cidr import Prefix, overlaps

IPV4, IPV6 = 4, 6
FAMILIES = (IPV4, IPV6)
WIDTH = {IPV4: 32, IPV6: 128}

_CHOSEN_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


class NetworkType(StrEnum):
    """What a network is for."""

    SUPER = "super"
    CHILD = "child"
    CHILD_SHARED = "child_shared"
    EXTERNAL = "external"
    UNDERLAY = "underlay"

    @property
    def is_child(self) -> bool:
        """Whether it is cut from a super network."""
        return self in {NetworkType.CHILD, NetworkType.CHILD_SHARED}


class Nat(StrEnum):
    """Address translation on the way out."""

    NONE = "none"
    IPV4_MASQUERADE = "ipv4_masquerade"


@dataclass(frozen=True, slots=True)
class Lengths:
    """A prefix length per family; 0 where a family has none."""

    ipv4: int = 0
    ipv6: int = 0

    def of(self, family: int) -> int:
        """The length in the family, 4 or 6."""
        return self.ipv4 if family == IPV4 else self.ipv6

    def __bool__(self) -> bool:
        return bool(self.ipv4 or self.ipv6)


@dataclass(frozen=True, slots=True)
class Network:
    """A network. `vrf` 0 means none; `vrf_owned` tells its own number from an inherited one."""

    id: str
    type: NetworkType
    project: str = ""
    partition: str = ""
    parent: str = ""
    prefixes: tuple[Prefix, ...] = ()
    destination_prefixes: tuple[Prefix, ...] = ()
    additional_announcable_prefixes: tuple[Prefix, ...] = ()
    default_child: Lengths = field(default_factory=Lengths)
    min_child: Lengths = field(default_factory=Lengths)
    vrf: int = 0
    vrf_owned: bool = False
    nat: Nat = Nat.NONE
    quarantine: timedelta = timedelta(0)
    name: str = ""
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    version: int = 0
    create_time: datetime | None = None
    update_time: datetime | None = None

    @property
    def families(self) -> frozenset[int]:
        """The families of its prefixes."""
        return families_of(self.prefixes)


def families_of(prefixes: Sequence[Prefix]) -> frozenset[int]:
    """The address families, 4 and 6, that occur."""
    return frozenset(prefix.version for prefix in prefixes)


# --- which fields -----------------------------------------------------------------------------------------------------

_REQUIRED: dict[NetworkType, tuple[str, ...]] = {
    NetworkType.SUPER: ("id", "prefixes"),
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
    extra = [Violation(path(n), f"must not be set on a {what} network") for n in _FORBIDDEN[network.type] if given(n)]
    return missing + extra


def _values(network: Network) -> list[Violation]:
    found = []
    if network.id and not network.type.is_child and not _CHOSEN_ID.fullmatch(network.id):
        found.append(Violation("network.id", "must be lower-case letters, digits and hyphens, at most 63"))
    found += [
        Violation("network.prefixes", f"{one} overlaps {other}" if one != other else f"{one} is given twice")
        for one, other in overlaps(network.prefixes)
    ]
    if network.type is NetworkType.SUPER:
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


def label(kind: NetworkType) -> str:
    """The type as people write it."""
    return kind.value.replace("_", "-")


def _raise(kind: NetworkType, found: Sequence[Violation]) -> None:
    if found:
        text = "; ".join(f"{each.field} {each.description}" for each in found)
        raise InvalidArgument("NETWORK_INVALID", f"no valid {label(kind)} network: {text}", violations=found)


# --- children ---------------------------------------------------------------------------------------------------------


def child_lengths(parent: Network, asked: Lengths) -> dict[int, int]:
    """Length of the child prefix in each family that the child gets.

    With nothing asked for, each family of the parent in its default length; else the families that were asked for.

    Raises:
        InvalidArgument: a family that the parent has not, or a length that the parent does not allow.
    """
    result: dict[int, int] = {}
    for family in FAMILIES:
        length = asked.of(family)
        if asked and not length:
            continue
        where = f"length.ipv{family}"
        if family not in parent.families:
            if length:
                raise InvalidArgument(
                    "FAMILY_NOT_IN_PARENT", f"network {parent.id} has no IPv{family} prefix", field=where
                )
            continue
        length = length or parent.default_child.of(family)
        shortest = min(p.prefixlen for p in parent.prefixes if p.version == family) + 1
        least = max(parent.min_child.of(family), shortest)
        if length < least:
            raise InvalidArgument(
                "LENGTH_NOT_ALLOWED",
                f"a child of {parent.id} must be /{least} or longer in IPv{family}, not /{length}",
                field=where,
                metadata={"min_length": str(least)},
            )
        result[family] = length
    return result


def inherited(child: Network, parent: Network) -> Network:
    """The child with what it has from its parent: partition, destination prefixes, NAT and, if the parent has one, VRF.

    Raises:
        InvalidArgument: the parent is no super network, or a VRF is given although the parent has one.
        FailedPrecondition: the parent serves another project only.
    """
    if parent.type is not NetworkType.SUPER:
        raise InvalidArgument(
            "PARENT_NOT_SUPER",
            f"network {parent.id} is of type {label(parent.type)}; only a super network can be a parent",
            field="network.parent",
        )
    if parent.project and parent.project != child.project:
        raise FailedPrecondition("PARENT_OF_OTHER_PROJECT", f"network {parent.id} serves another project only")
    if child.vrf and parent.vrf:
        raise InvalidArgument(
            "VRF_INHERITED",
            f"children of {parent.id} are in its VRF {parent.vrf}; give none",
            field="network.vrf",
            metadata={"vrf": str(parent.vrf)},
        )
    return Network(
        id=child.id,
        type=child.type,
        project=child.project,
        partition=parent.partition,
        parent=parent.id,
        destination_prefixes=parent.destination_prefixes,
        vrf=parent.vrf or child.vrf,
        nat=parent.nat,
        quarantine=parent.quarantine,
        name=child.name,
        description=child.description,
        labels=child.labels,
    )


# --- who --------------------------------------------------------------------------------------------------------------


def serves(network: Network, project: str) -> bool:
    """Whether the project may have addresses of the network, or children in the case of a super network.

    A child serves its own project; a shared child every one; external and super networks every one unless they belong
    to a project; the underlay none.
    """
    match network.type:
        case NetworkType.CHILD:
            return network.project == project
        case NetworkType.CHILD_SHARED:
            return True
        case NetworkType.EXTERNAL | NetworkType.SUPER:
            return network.project in {"", project}
        case NetworkType.UNDERLAY:
            return False


def check_acquire(network: Network, project: str, *, plane: bool) -> None:
    """Whether addresses of the network may be acquired for the project; `plane` tells services and plane operators.

    Raises:
        FailedPrecondition: NETWORK_HAS_NO_ADDRESSES for super networks, NETWORK_OF_OTHER_PROJECT,
            NETWORK_OF_THE_FABRIC for the underlay.
    """
    if network.type is NetworkType.SUPER:
        raise FailedPrecondition(
            "NETWORK_HAS_NO_ADDRESSES", f"network {network.id} is cut into children; take addresses from one of those"
        )
    if network.type is NetworkType.UNDERLAY:
        if not plane:
            raise FailedPrecondition("NETWORK_OF_THE_FABRIC", f"network {network.id} is for the fabric itself")
        return
    if not serves(network, project):
        raise FailedPrecondition("NETWORK_OF_OTHER_PROJECT", f"network {network.id} serves another project only")


def check_deletable(network: Network, *, children: Sequence[str], addresses: int) -> None:
    """A network goes only without children and without addresses in use.

    Raises:
        FailedPrecondition: NETWORK_IN_USE, naming what is in the way.
    """
    parts = []
    if children:
        more = ", …" if len(children) > 5 else ""
        parts.append(f"{len(children)} child network(s) ({', '.join(children[:5])}{more})")
    if addresses:
        parts.append(f"{addresses} address(es) in use")
    if parts:
        raise FailedPrecondition(
            "NETWORK_IN_USE",
            f"network {network.id} has {' and '.join(parts)}",
            metadata={"children": str(len(children)), "addresses": str(addresses)},
        )


def check_announcable_update(before: Network, after: Network, *, has_children: bool) -> None:
    """Prefixes that children may be announcing are not taken back under their feet.

    Raises:
        FailedPrecondition: ANNOUNCABLE_PREFIXES_IN_USE.
    """
    removed = set(before.additional_announcable_prefixes) - set(after.additional_announcable_prefixes)
    if removed and has_children:
        gone = ", ".join(sorted(map(str, removed)))
        raise FailedPrecondition(
            "ANNOUNCABLE_PREFIXES_IN_USE",
            f"{gone} may be announced by machines in children of {before.id}; delete the children first",
        )
