"""Desired state → the whole FRR configuration of a leaf.

The default VRF is the underlay: uplinks in the peer group FABRIC, firewalls in FIREWALL. Each tenant VRF has its own
BGP instance with the group MACHINE. All sessions are unnumbered and external. What the agent deliberately does not
render: passwords, debugging, host names; they belong to whoever builds the leaf.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from metal_core.desired import Desired, Port, PortRole, Vrf, split_families
from metal_core.frr.dialect import VrfBackend, spelled
from metal_core.frr.filters import (
    DENY_MGMT,
    SET_SOURCE,
    management_map,
    map_v4,
    map_v6,
    map_vni,
    prefix_lists,
    route_maps,
    source_map,
)
from metal_core.frr.managed import ROUTE_MARK
from metal_core.frr.model import Block, Configuration

V4 = "address-family ipv4 unicast"
V6 = "address-family ipv6 unicast"
EVPN = "address-family l2vpn evpn"

# Seconds between keepalives and until a silent neighbour is given up, where the partition does not say otherwise.
KEEPALIVE, HOLD = 2, 8

# More prefixes than any tenant has; what exceeds it is a neighbour that leaks a routing table.
MAXIMUM_PREFIXES = 24000

# Lines before all contexts. They are written to the file for boot and never taken away from a running FRR.
PREAMBLE = ("frr defaults datacenter", "log syslog informational", "log facility local4")


def render(desired: Desired, backend: VrfBackend = VrfBackend.LITE) -> Configuration:
    """The configuration for `desired`; the same value gives the same text whatever the order of its ports and VRFs.
    `backend` is what VRFs are to FRR.

    Lists and maps come before the instances that use them: a map that does not exist yet denies everything.
    """
    firewalls = desired.with_role(PortRole.FIREWALL)
    vrfs = sorted(desired.vrfs, key=lambda vrf: vrf.vni)
    machines: dict[str, list[Port]] = {vrf.name: [] for vrf in vrfs}
    for port in desired.with_role(PortRole.MACHINE):
        machines.setdefault(port.vrf, []).append(port)
    filtered = [*firewalls, *(port for vrf in vrfs for port in machines[vrf.name])]
    routed = desired.with_role(PortRole.UPLINK, PortRole.FIREWALL, PortRole.MACHINE)
    configuration = Configuration(
        lines=(*PREAMBLE, *_leafs_own(desired), *(line for port in filtered for line in prefix_lists(port))),
        blocks=(
            *management_map(),
            *((source_map(desired.loopback),) if desired.source_loopback else ()),
            *(entry for port in filtered for entry in route_maps(port)),
            *(Block(f"vrf {vrf.name}", (f"vni {vrf.vni}",)) for vrf in vrfs),
            *(Block(f"interface {port.name}", ("ipv6 nd ra-interval 6", "no ipv6 nd suppress-ra")) for port in routed),
            _underlay(desired, firewalls),
            *(_tenant(desired, vrf, machines[vrf.name]) for vrf in vrfs),
        ),
    )
    return spelled(configuration, backend)


def _leafs_own(desired: Desired) -> tuple[str, ...]:
    """How the leaf itself reaches others: the management network, and which address it uses in the fabric."""
    gateway = desired.management_gateway
    prefixes = (
        ["0.0.0.0/0", *(str(prefix) for prefix in split_families(desired.management_routes)[0])] if gateway else []
    )
    return (
        *(f"ip route {prefix} {gateway} {ROUTE_MARK}" for prefix in dict.fromkeys(prefixes)),
        *((f"ip protocol bgp route-map {SET_SOURCE}",) if desired.source_loopback else ()),
    )


def _underlay(desired: Desired, firewalls: tuple[Port, ...]) -> Block:
    uplinks = desired.with_role(PortRole.UPLINK)
    redistribute = (f"redistribute kernel route-map {DENY_MGMT}", f"redistribute connected route-map {DENY_MGMT}")
    return Block(
        f"router bgp {desired.asn}",
        (
            *_instance(desired),
            *_group("FABRIC", desired),
            *_group("FIREWALL", desired),
            *_neighbours("FABRIC", uplinks),
            *_neighbours("FIREWALL", firewalls),
        ),
        (
            Block(V4, (*redistribute, "neighbor FIREWALL allowas-in 2", *(_inbound(p, map_v4(p)) for p in firewalls))),
            Block(
                V6,
                (
                    *redistribute,
                    "neighbor FIREWALL activate",
                    "neighbor FIREWALL allowas-in 2",
                    *(_inbound(port, map_v6(port)) for port in firewalls),
                ),
            ),
            Block(
                EVPN,
                (
                    "neighbor FABRIC activate",
                    "neighbor FABRIC allowas-in 2",
                    "neighbor FIREWALL activate",
                    "neighbor FIREWALL allowas-in 2",
                    *(line for port in firewalls for line in _evpn_filters(port)),
                    "advertise-all-vni",
                ),
            ),
        ),
    )


def _tenant(desired: Desired, vrf: Vrf, machines: Sequence[Port]) -> Block:
    """Both families stay active and filtered whether or not the VRF has prefixes in them.

    So a VRF without prefixes lets nothing in, and the first prefix of a family changes a filter instead of
    renegotiating, that is resetting, the session.
    """
    v4, v6 = split_families(prefix for port in machines for prefix in port.allowed_prefixes)
    limit = f"neighbor MACHINE maximum-prefix {MAXIMUM_PREFIXES}"
    advertise = [f"advertise {family} unicast" for family, used in (("ipv4", v4), ("ipv6", v6)) if used]
    children = [
        Block(V4, (*_connected(bool(v4)), limit, *(_inbound(port, map_v4(port)) for port in machines))),
        Block(
            V6,
            (
                *_connected(bool(v6)),
                "neighbor MACHINE activate",
                limit,
                *(_inbound(port, map_v6(port)) for port in machines),
            ),
        ),
    ]
    if advertise:
        children.append(Block(EVPN, tuple(advertise)))
    return Block(
        f"router bgp {desired.asn} vrf {vrf.name}",
        (*_instance(desired), *_group("MACHINE", desired), *_neighbours("MACHINE", machines)),
        tuple(children),
    )


def _instance(desired: Desired) -> tuple[str, ...]:
    return (f"bgp router-id {desired.loopback}", "bgp bestpath as-path multipath-relax")


def _group(name: str, desired: Desired) -> tuple[str, ...]:
    keepalive, hold = (desired.bgp_keepalive, desired.bgp_hold) if desired.bgp_hold else (KEEPALIVE, HOLD)
    return (
        f"neighbor {name} peer-group",
        f"neighbor {name} remote-as external",
        f"neighbor {name} timers {keepalive} {hold}",
    )


def _neighbours(group: str, ports: Iterable[Port]) -> tuple[str, ...]:
    return tuple(f"neighbor {port.name} interface peer-group {group}" for port in ports)


def _inbound(port: Port, route_map: str) -> str:
    return f"neighbor {port.name} route-map {route_map} in"


def _evpn_filters(port: Port) -> tuple[str, str]:
    return (f"neighbor {port.name} route-map {map_vni(port)} in", f"neighbor {port.name} route-map {map_vni(port)} out")


def _connected(used: bool) -> tuple[str, ...]:
    return ("redistribute connected",) if used else ()
