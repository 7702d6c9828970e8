"""Which networks a machine or a firewall may take part in (lifecycle rules 8.5). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

from metal_kit.errors import FailedPrecondition, InvalidArgument, NotFound
from metalplane.ipam.v1.network_pb2 import Network, NetworkType

PRIVATE = frozenset({NetworkType.NETWORK_TYPE_CHILD, NetworkType.NETWORK_TYPE_CHILD_SHARED})
TYPE_NAMES = {
    NetworkType.NETWORK_TYPE_CHILD: "child",
    NetworkType.NETWORK_TYPE_CHILD_SHARED: "child-shared",
    NetworkType.NETWORK_TYPE_EXTERNAL: "external",
    NetworkType.NETWORK_TYPE_UNDERLAY: "underlay",
    NetworkType.NETWORK_TYPE_SUPER: "super",
    NetworkType.NETWORK_TYPE_SUPER_NAMESPACED: "super-namespaced",
}


def check(networks: Sequence[Network], *, project: str, partition: str, firewall: bool) -> None:
    """Raise a Problem for the first rule that the networks of a request break.

    InvalidArgument when the request can never be right, FailedPrecondition when it depends on what the networks are.
    Another project's network is NotFound: a stranger must not learn that it exists.
    """
    seen: set[str] = set()
    for index, network in enumerate(networks):
        field = f"spec.networks[{index}].network"
        if network.id in seen:
            raise InvalidArgument("NETWORK_TWICE", f"network {network.id} is named twice; name it once", field=field)
        seen.add(network.id)
        _check_one(network, project=project, partition=partition, field=field)
    _check_together([network.type for network in networks], firewall=firewall)
    _check_apart(networks)


def _check_one(network: Network, *, project: str, partition: str, field: str) -> None:
    kind = network.type
    if network.project and network.project != project and kind != NetworkType.NETWORK_TYPE_CHILD_SHARED:
        raise NotFound("NOT_FOUND", f"network {network.id} does not exist", field=field)
    if kind not in PRIVATE and kind != NetworkType.NETWORK_TYPE_EXTERNAL:
        name = TYPE_NAMES.get(kind, "network of an unknown type")
        raise InvalidArgument(
            "NETWORK_TYPE", f"network {network.id} is {name}: it takes no machines; name a child or external one",
            field=field,
        )  # fmt: skip
    if network.partition and network.partition != partition:
        raise FailedPrecondition(
            "NETWORK_PARTITION",
            f"network {network.id} is in partition {network.partition}, not in {partition}",
            field=field,
        )


def _check_together(kinds: Sequence[NetworkType.ValueType], *, firewall: bool) -> None:
    private = sum(kind in PRIVATE for kind in kinds)
    if not firewall and private != 1:
        raise InvalidArgument(
            "PRIVATE_NETWORKS", f"a machine needs one private network, not {private}", field="spec.networks"
        )
    if firewall and not private:
        raise InvalidArgument("PRIVATE_NETWORKS", "a firewall needs a private network", field="spec.networks")
    if kinds.count(NetworkType.NETWORK_TYPE_CHILD_SHARED) > 1:
        raise InvalidArgument("SHARED_NETWORKS", "at most one shared network is allowed", field="spec.networks")
    if firewall and NetworkType.NETWORK_TYPE_EXTERNAL not in kinds:
        raise InvalidArgument("EXTERNAL_NETWORK", "a firewall needs an external network", field="spec.networks")


def _check_apart(networks: Sequence[Network]) -> None:
    """One machine cannot tell two networks with the same addresses apart. Children of a namespaced super network may
    have those of an external network, or of what another project shares."""
    seen: list[tuple[str, IPv4Network | IPv6Network]] = []
    for index, network in enumerate(networks):
        own = [ip_network(text) for text in network.prefixes]
        for other, theirs in seen:
            for prefix in own:
                if prefix.version == theirs.version and prefix.overlaps(theirs):
                    raise FailedPrecondition(
                        "NETWORKS_OVERLAP",
                        f"{prefix} of network {network.id} overlaps {theirs} of network {other}; a machine takes part "
                        "in one of them only",
                        field=f"spec.networks[{index}].network",
                    )
        seen += [(network.id, prefix) for prefix in own]
