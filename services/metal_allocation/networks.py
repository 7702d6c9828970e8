"""Which networks a machine or a firewall may take part in (lifecycle rules 8.5). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metal_kit.errors import FailedPrecondition, InvalidArgument, Problem
from metalplane.ipam.v1.network_pb2 import Network, NetworkType

PRIVATE = frozenset({NetworkType.NETWORK_TYPE_CHILD, NetworkType.NETWORK_TYPE_CHILD_SHARED})
TYPE_NAMES = {
    NetworkType.NETWORK_TYPE_CHILD: "child",
    NetworkType.NETWORK_TYPE_CHILD_SHARED: "child-shared",
    NetworkType.NETWORK_TYPE_EXTERNAL: "external",
    NetworkType.NETWORK_TYPE_UNDERLAY: "underlay",
    NetworkType.NETWORK_TYPE_SUPER: "super",
}


@dataclass(frozen=True, slots=True)
class Wish:
    """A network of the request, with the static addresses that were given for it."""

    network: Network
    ips: Sequence[str]


def check(wishes: Sequence[Wish], *, project: str, partition: str, firewall: bool) -> None:
    """Raise a Problem for the first rule that the networks break.

    InvalidArgument when the request can never be right, FailedPrecondition when it depends on what the networks are.
    """
    for index, wish in enumerate(wishes):
        _check_one(wish.network, project=project, partition=partition, field=f"spec.networks[{index}].network")
    _check_together(wishes, firewall=firewall)


def _check_one(network: Network, *, project: str, partition: str, field: str) -> None:
    kind = network.type
    if kind in {NetworkType.NETWORK_TYPE_SUPER, NetworkType.NETWORK_TYPE_UNDERLAY}:
        raise InvalidArgument(
            "NETWORK_TYPE", f"a {TYPE_NAMES[kind]} network takes no machines; name a child or external one", field=field
        )
    if network.project and network.project != project and kind != NetworkType.NETWORK_TYPE_CHILD_SHARED:
        raise _refused("NETWORK_FOREIGN", f"network {network.id} belongs to another project", field)
    if network.partition and network.partition != partition:
        raise _refused(
            "NETWORK_PARTITION", f"network {network.id} is in partition {network.partition}, not in {partition}", field
        )


def _check_together(wishes: Sequence[Wish], *, firewall: bool) -> None:
    kinds = [wish.network.type for wish in wishes]
    private = [kind for kind in kinds if kind in PRIVATE]
    shared = kinds.count(NetworkType.NETWORK_TYPE_CHILD_SHARED)
    if not firewall and len(private) != 1:
        raise InvalidArgument(
            "PRIVATE_NETWORKS",
            f"a machine needs one private network, not {len(private)}",
            field="spec.networks",
        )
    if firewall and not private:
        raise InvalidArgument("PRIVATE_NETWORKS", "a firewall needs a private network", field="spec.networks")
    if shared > 1:
        raise InvalidArgument("SHARED_NETWORKS", "at most one shared network is allowed", field="spec.networks")
    if firewall and NetworkType.NETWORK_TYPE_EXTERNAL not in kinds:
        raise InvalidArgument("EXTERNAL_NETWORK", "a firewall needs an external network", field="spec.networks")


def primary(networks: Sequence[Network]) -> Network:
    """The private network that gives the machine its VRF: the unshared one, else the shared one."""
    order = (NetworkType.NETWORK_TYPE_CHILD, NetworkType.NETWORK_TYPE_CHILD_SHARED)
    for kind in order:
        for network in networks:
            if network.type == kind:
                return network
    raise ValueError("a checked request has a private network")


def _refused(reason: str, message: str, field: str) -> Problem:
    return FailedPrecondition(reason, message, field=field)
