"""Prefix lists and route maps: who may announce what.

Each port has its own set of filters, so that a machine cannot announce the address of its neighbour in the same VRF. A
filter without a permitted prefix is an explicit deny and never an absent object: FRR takes a missing map for "deny all"
in some places and a missing filter for "permit all" in others.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

from metal_core.desired import Port, PortRole, split_families
from metal_core.frr.model import Block

# Keeps the management network out of the fabric.
DENY_MGMT = "DENY_MGMT"
MANAGEMENT_INTERFACE = "eth0"

# Gives what the leaf sends along BGP routes its loopback as source.
SET_SOURCE = "SET_SRC"


def stem(port: Port) -> str:
    """What the names of the port's filters begin with."""
    return f"fw-{port.name}" if port.role is PortRole.FIREWALL else f"{port.vrf}-{port.name}"


def map_v4(port: Port) -> str:
    """Name of the inbound route map for IPv4 unicast."""
    return f"{stem(port)}-in"


def map_v6(port: Port) -> str:
    """Name of the inbound route map for IPv6 unicast."""
    return f"{stem(port)}-in6"


def map_vni(port: Port) -> str:
    """Name of the route map for EVPN routes, used in both directions."""
    return f"{stem(port)}-vni"


def prefix_lists(port: Port) -> list[str]:
    """The port's lists of what it may announce: each prefix and everything inside it."""
    v4, v6 = split_families(port.allowed_prefixes)
    return [*_list("ip", f"{map_v4(port)}-prefixes", v4), *_list("ipv6", f"{map_v6(port)}-prefixes", v6)]


def route_maps(port: Port) -> list[Block]:
    """The port's route maps: both address families always, and for a firewall the VNIs it may exchange routes for."""
    v4, v6 = split_families(port.allowed_prefixes)
    maps = [
        _permit_list(map_v4(port), f"match ip address prefix-list {map_v4(port)}-prefixes", permitted=bool(v4)),
        _permit_list(map_v6(port), f"match ipv6 address prefix-list {map_v6(port)}-prefixes", permitted=bool(v6)),
    ]
    if port.role is PortRole.FIREWALL:
        maps += _vni_map(map_vni(port), port.vnis)
    return maps


def management_map() -> list[Block]:
    """The route map through which connected and kernel routes enter BGP."""
    return [
        Block(f"route-map {DENY_MGMT} deny 10", (f"match interface {MANAGEMENT_INTERFACE}",)),
        Block(f"route-map {DENY_MGMT} permit 20"),
    ]


def source_map(loopback: str) -> Block:
    """The route map that BGP routes take into the kernel, so that they name the source of the leaf's own packets."""
    return Block(f"route-map {SET_SOURCE} permit 10", (f"set src {loopback}",))


def _list(keyword: str, name: str, networks: Iterable[IPv4Network | IPv6Network]) -> list[str]:
    lines = []
    for position, network in enumerate(networks, start=1):
        # FRR wants `le` to be above the prefix length; for a host route there is nothing inside it.
        inside = "" if network.prefixlen == network.max_prefixlen else f" le {network.max_prefixlen}"
        lines.append(f"{keyword} prefix-list {name} seq {5 * position} permit {network}{inside}")
    return lines


def _permit_list(name: str, match: str, *, permitted: bool) -> Block:
    return Block(f"route-map {name} permit 10", (match,)) if permitted else Block(f"route-map {name} deny 10")


def _vni_map(name: str, vnis: Iterable[int]) -> list[Block]:
    wanted = sorted(set(vnis))
    if not wanted:
        return [Block(f"route-map {name} deny 10")]
    return [
        Block(f"route-map {name} permit {10 + position}", (f"match evpn vni {vni}",))
        for position, vni in enumerate(wanted)
    ]
