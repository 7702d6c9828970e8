"""Networks: what they are, what children inherit, and who may use them, cut them and delete them.

Pure rules; what is free, and whether a number or an id is taken, is the store's to say. Which fields a type needs is in
`network_fields`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from metal_kit.errors import FailedPrecondition, InvalidArgument

from metal_ipam.cidr import Prefix

IPV4, IPV6 = 4, 6
FAMILIES = (IPV4, IPV6)
WIDTH = {IPV4: 32, IPV6: 128}


class NetworkType(StrEnum):
    """What a network is for."""

    SUPER = "super"
    SUPER_NAMESPACED = "super_namespaced"
    CHILD = "child"
    CHILD_SHARED = "child_shared"
    EXTERNAL = "external"
    UNDERLAY = "underlay"

    @property
    def is_child(self) -> bool:
        """Whether it is cut from a super network."""
        return self in {NetworkType.CHILD, NetworkType.CHILD_SHARED}

    @property
    def is_super(self) -> bool:
        """Whether children are cut from it."""
        return self in {NetworkType.SUPER, NetworkType.SUPER_NAMESPACED}


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
    """A network. `vrf` 0 means none; `vrf_owned` tells its own number from an inherited one. `namespace` is that of its
    prefixes; empty for a namespaced super network, of whose prefixes each project has a copy."""

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
    namespace: str = ""

    @property
    def families(self) -> frozenset[int]:
        """The families of its prefixes."""
        return families_of(self.prefixes)


def families_of(prefixes: Sequence[Prefix]) -> frozenset[int]:
    """The address families, 4 and 6, that occur."""
    return frozenset(prefix.version for prefix in prefixes)


def label(kind: NetworkType) -> str:
    """The type as people write it."""
    return kind.value.replace("_", "-")


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
    if not parent.type.is_super:
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
        case NetworkType.EXTERNAL | NetworkType.SUPER | NetworkType.SUPER_NAMESPACED:
            return network.project in {"", project}
        case NetworkType.UNDERLAY:
            return False


def check_acquire(network: Network, project: str, *, plane: bool) -> None:
    """Whether addresses of the network may be acquired for the project; `plane` tells services and plane operators.

    Raises:
        FailedPrecondition: NETWORK_HAS_NO_ADDRESSES for super networks, NETWORK_OF_OTHER_PROJECT,
            NETWORK_OF_THE_FABRIC for the underlay.
    """
    if network.type.is_super:
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


def check_announcable_update(before: Network, after: Network, *, has_children: bool, force: bool = False) -> None:
    """Prefixes that children may be announcing are not taken back under their feet, unless it is forced.

    Raises:
        FailedPrecondition: ANNOUNCABLE_PREFIXES_IN_USE.
    """
    removed = set(before.additional_announcable_prefixes) - set(after.additional_announcable_prefixes)
    if removed and has_children and not force:
        gone = ", ".join(sorted(map(str, removed)))
        raise FailedPrecondition(
            "ANNOUNCABLE_PREFIXES_IN_USE",
            f"{gone} may be announced by machines in children of {before.id}; delete the children first, or force it",
        )
