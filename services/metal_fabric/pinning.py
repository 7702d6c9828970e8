"""A leaf that is held at an older desired state.

Pure rules. A pin holds back what the plane would like to change on a leaf, but never at a tenant's cost: it gives no
port more of a tenant's network than the plane wants it to have now. So a machine that is freed leaves its network on a
pinned leaf as on any other, and one that comes waits until the pin is released.

The leaf's own facts (its ASN, its loopback, which ports it has and which are uplinks) always are the present ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_network

from metal_fabric.desired import DesiredPort, DesiredState, DesiredVrf
from metal_fabric.filters import TENANT_ROLES, PortRole
from metal_fabric.problems import Refused
from metal_fabric.settings import is_speed

_SHOWN = 5


@dataclass(frozen=True)
class Returning:
    """A leaf on its way to an older content, or back from it when it is not `pinned`: it has yet to apply `wanted`."""

    switch_id: str
    wanted: int
    pinned: bool


def check_turn(switch_id: str, other: Returning | None) -> None:
    """Raise Refused `OTHER_LEAF_RETURNING` while another leaf of the rack is on its way to or from an older content.

    As with settings (`rollout`): content that a leaf does not survive must not reach the other one, which carries the
    rack meanwhile.
    """
    if other is None:
        return
    remedy = f"or unpin {other.switch_id}" if other.pinned else f"or pin {other.switch_id} again"
    raise Refused(
        "OTHER_LEAF_RETURNING",
        f"{other.switch_id} of the same rack has not applied its generation {other.wanted} yet, by which it goes to an "
        f"older content or back; change {switch_id} when it has, {remedy}",
        field="switch_id",
    )


def check_return(old: DesiredState, live: DesiredState, vlans: Mapping[int, int]) -> None:
    """Raise Refused unless the content `old` can be had as it is, when the plane wants `live` now and `vlans` are the
    leaf's VLANs by VNI: `ROLLBACK_CROSSES_TENANTS`, `VLAN_NOT_ITS_OWN`."""
    now = {port.name: port for port in live.ports}
    crossing = [port.name for port in old.ports if port.name in now and not _permitted(port, now[port.name])]
    if crossing:
        more = f" and {len(crossing) - _SHOWN} more" if len(crossing) > _SHOWN else ""
        raise Refused(
            "ROLLBACK_CROSSES_TENANTS",
            f"that content would give {', '.join(crossing[:_SHOWN])}{more} of {old.switch_id} a part in a tenant's "
            "network that the machines there are no longer wanted to have; choose a later generation",
            field="generation",
        )
    carries = {number: vni for vni, number in vlans.items()}
    for vrf in old.vrfs:
        if vlans.get(vrf.vni, vrf.vlan) != vrf.vlan or carries.get(vrf.vlan, vrf.vni) != vrf.vni:
            raise Refused(
                "VLAN_NOT_ITS_OWN",
                f"{vrf.name} had VLAN {vrf.vlan} of {old.switch_id}, which carries VNI {carries.get(vrf.vlan, 'none')} "
                f"now, and VNI {vrf.vni} has VLAN {vlans.get(vrf.vni, 'none')}; choose a later generation",
                field="generation",
            )


def held(old: DesiredState, live: DesiredState, vlans: Mapping[int, int]) -> DesiredState:
    """What a leaf shall have that is held at `old` while the plane wants `live`; `vlans` are its VLANs by VNI.

    Raises KeyError when a VNI of a port has no VLAN.
    """
    before = {port.name: port for port in old.ports}
    ports = tuple(_held_port(before.get(port.name), port) for port in live.ports)
    vnis = {vrf.name: vrf.vni for vrf in (*old.vrfs, *live.vrfs)}
    needed = sorted({vnis[port.vrf] for port in ports if port.vrf})
    names = {vni: name for name, vni in vnis.items()}
    return replace(
        old,
        switch_id=live.switch_id,
        asn=live.asn,
        loopback=live.loopback,
        ports=ports,
        vrfs=tuple(DesiredVrf(names[vni], vni, vlans[vni]) for vni in needed),
    )


def lacking(state: DesiredState, live: DesiredState) -> frozenset[str]:
    """Ports that have another part in tenants' networks in `state` than the plane wants them to have."""
    now = {port.name: _part(port) for port in live.ports}
    return frozenset(port.name for port in state.ports if now.get(port.name) != _part(port))


def _held_port(old: DesiredPort | None, live: DesiredPort) -> DesiredPort:
    if old is None or PortRole.UPLINK in {old.role, live.role} or not _permitted(old, live):
        return live
    # What was made before the rule against it must not keep the leaf from all else.
    return old if is_speed(old.speed) else old._replace(speed=live.speed, fec=live.fec)


def _part(port: DesiredPort) -> tuple[object, ...]:
    if port.role not in TENANT_ROLES:
        return ()
    return (port.role, port.vrf, port.allowed_prefixes, port.vnis)


def _permitted(old: DesiredPort, live: DesiredPort) -> bool:
    """Whether a port may be as it was, when the plane wants it to be as `live` is."""
    if old.role not in TENANT_ROLES:
        return True
    return (
        (old.role, old.vrf) == (live.role, live.vrf)
        and set(old.vnis) <= set(live.vnis)
        and _covered(old.allowed_prefixes, live.allowed_prefixes)
    )


def _covered(inner: tuple[str, ...], outer: tuple[str, ...]) -> bool:
    # Both are minimal, so what covers a prefix is a single one.
    around = [ip_network(each) for each in outer]
    return all(any(_within(ip_network(each), other) for other in around) for each in inner)


def _within(inner: IPv4Network | IPv6Network, outer: IPv4Network | IPv6Network) -> bool:
    if isinstance(inner, IPv4Network):
        return isinstance(outer, IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, IPv6Network) and inner.subnet_of(outer)
