"""The desired state of one leaf, as a pure and deterministic function of what the plane knows.

Always complete, never a patch. Rows that metal-core does not own (uplink addressing, the PXE VLAN itself, LLDP) are not
in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from metal_fabric.filters import TENANT_ROLES, UNPROVISIONED, PortRole, Wish
from metal_fabric.ports import Fec, LinkState, sort_key
from metal_fabric.settings import NOTHING_SET, DriftPolicy, Settings, ignored
from metal_fabric.switch import Port, Switch

# Bytes. EVPN underlay links carry VXLAN's overhead on top of the tenants' 9000 (metal-core's values).
UNDERLAY_MTU = 9216
ACCESS_MTU = 9000


class DesiredPort(NamedTuple):
    """A port as it shall be; `vrf` is empty for the default VRF and for ports that are not routed. An MTU of 0 leaves
    the port's own alone, and so does a speed of 0 Mbit/s."""

    name: str
    role: PortRole
    admin: LinkState | None
    mtu: int
    vrf: str = ""
    allowed_prefixes: tuple[str, ...] = ()
    vnis: tuple[int, ...] = ()
    speed: int = 0
    fec: Fec = Fec.UNSET


class DesiredVrf(NamedTuple):
    """A tenant VRF as it shall be."""

    name: str
    vni: int
    vlan: int


@dataclass(frozen=True)
class DesiredState:
    """Everything that a leaf shall have: its ports by lane, its VRFs by VNI, and its part of the partition's settings
    (times in seconds; empty and 0 leave a thing as the leaf has it by itself)."""

    switch_id: str
    asn: int
    loopback: str
    pxe_vlan: int
    ports: tuple[DesiredPort, ...]
    vrfs: tuple[DesiredVrf, ...]
    management_gateway: str = ""
    management_routes: tuple[str, ...] = ()
    source_loopback: bool = False
    bgp_keepalive: int = 0
    bgp_hold: int = 0
    report_drift_only: bool = False
    confirm_seconds: int = 0


@lru_cache(maxsize=1 << 12)
def vrf_name(vni: int) -> str:
    """Name of the VRF with number `vni`; SONiC demands the capital letter. Empty for 0."""
    return f"Vrf{vni}" if vni else ""


def vnis_needed(wishes: Mapping[str, Wish]) -> frozenset[int]:
    """VNIs of the VRFs that a leaf with these wishes (by port) carries."""
    return frozenset(wish.vrf for wish in wishes.values() if wish.role is PortRole.MACHINE)


def role_of(port: Port, wish: Wish, *, occupied: bool, additional: Collection[str] = ()) -> PortRole:
    """What a port is for when the machine on it, if there is one (`occupied`), has `wish`; `additional` names the
    operator's own ports."""
    if port.uplink:
        return PortRole.UPLINK
    if wish.role in TENANT_ROLES:
        return wish.role
    if port.name in additional and not occupied:
        return PortRole.ADDITIONAL
    if port.admin.wish is LinkState.DOWN and not occupied:
        # Nobody is there who would want to boot, and whoever is plugged in gets nowhere.
        return PortRole.UNUSED
    return PortRole.UNPROVISIONED


def desired_state(
    switch: Switch,
    wishes: Mapping[str, Wish],
    vlans: Mapping[int, int],
    *,
    occupied: Collection[str] = (),
    settings: Settings = NOTHING_SET,
) -> DesiredState:
    """State that `switch` shall have when the machines on its ports have `wishes`, VNIs have `vlans`, machines hang on
    the ports `occupied`, and its partition has `settings`.

    Ports without a wish, and wishes for ports that the switch does not have, are no error: the first are nobody's, the
    second are left out. Raises KeyError when a VNI has no VLAN.
    """
    ports = sorted(switch.ports.values(), key=lambda port: sort_key(port.name, switch.facts.os))
    additional = settings.additional_bridge_ports
    shapes = {each.name: each for each in settings.ports if not ignored(each, additional, switch.facts.partition)}
    shaped = []
    for port in ports:
        wish = wishes.get(port.name, UNPROVISIONED)
        role = role_of(port, wish, occupied=port.name in occupied, additional=additional)
        desired = _port(port, wish, role)
        own = shapes.get(port.name)
        shaped.append(desired._replace(speed=own.speed, fec=own.fec) if own else desired)
    vnis = vnis_needed({port.name: wishes[port.name] for port in ports if port.name in wishes and not port.uplink})
    return DesiredState(
        switch_id=switch.id,
        asn=switch.facts.asn,
        loopback=switch.facts.loopback,
        pxe_vlan=settings.pxe_vlan or switch.facts.pxe_vlan,
        ports=tuple(shaped),
        vrfs=tuple(DesiredVrf(vrf_name(vni), vni, vlans[vni]) for vni in sorted(vnis)),
        management_gateway=settings.management_gateway,
        management_routes=settings.management_routes,
        source_loopback=settings.source_loopback,
        bgp_keepalive=settings.bgp_keepalive,
        bgp_hold=settings.bgp_hold,
        report_drift_only=settings.drift_policy is DriftPolicy.REPORT,
        confirm_seconds=settings.confirm_seconds,
    )


def _port(port: Port, wish: Wish, role: PortRole) -> DesiredPort:
    match role:
        case PortRole.UPLINK:
            # Never shut by the plane: it would cut the leaf off from the plane itself.
            return DesiredPort(port.name, role, None, UNDERLAY_MTU)
        case PortRole.UNUSED | PortRole.ADDITIONAL:
            return DesiredPort(port.name, role, port.admin.wish, 0)
        case _:
            return DesiredPort(
                port.name,
                role,
                port.admin.wish,
                UNDERLAY_MTU if role is PortRole.FIREWALL else ACCESS_MTU,
                vrf_name(wish.vrf),
                wish.allowed_prefixes,
                wish.vnis,
            )
