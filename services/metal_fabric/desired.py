"""The desired state of one leaf, as a pure and deterministic function of what the plane knows.

Always complete, never a patch. Rows that metal-core does not own (uplink addressing, the PXE VLAN itself, LLDP) are not
in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from metal_fabric.filters import UNPROVISIONED, PortRole, Wish
from metal_fabric.ports import LinkState, sort_key
from metal_fabric.switch import Port, Switch

# Bytes. EVPN underlay links carry VXLAN's overhead on top of the tenants' 9000 (metal-core's values).
UNDERLAY_MTU = 9216
ACCESS_MTU = 9000


@dataclass(frozen=True)
class DesiredPort:
    """A port as it shall be; `vrf` is empty for the default VRF and for ports that are not routed."""

    name: str
    role: PortRole
    admin: LinkState | None
    mtu: int
    vrf: str = ""
    allowed_prefixes: tuple[str, ...] = ()
    vnis: tuple[int, ...] = ()


@dataclass(frozen=True)
class DesiredVrf:
    """A tenant VRF as it shall be."""

    name: str
    vni: int
    vlan: int


@dataclass(frozen=True)
class DesiredState:
    """Everything that a leaf shall have: its ports by lane, its VRFs by VNI."""

    switch_id: str
    asn: int
    loopback: str
    pxe_vlan: int
    ports: tuple[DesiredPort, ...]
    vrfs: tuple[DesiredVrf, ...]


def vrf_name(vni: int) -> str:
    """Name of the VRF with number `vni`; SONiC demands the capital letter. Empty for 0."""
    return f"Vrf{vni}" if vni else ""


def vnis_needed(wishes: Mapping[str, Wish]) -> frozenset[int]:
    """VNIs of the VRFs that a leaf with these wishes (by port) carries."""
    return frozenset(wish.vrf for wish in wishes.values() if wish.role is PortRole.MACHINE)


def desired_state(switch: Switch, wishes: Mapping[str, Wish], vlans: Mapping[int, int]) -> DesiredState:
    """State that `switch` shall have when the machines on its ports have `wishes` and VNIs have `vlans`.

    Ports without a wish, and wishes for ports that the switch does not have, are no error: the first are unprovisioned,
    the second are left out. Raises KeyError when a VNI has no VLAN.
    """
    ports = sorted(switch.ports.values(), key=lambda port: sort_key(port.name, switch.facts.os))
    shaped = tuple(_port(port, wishes.get(port.name, UNPROVISIONED)) for port in ports)
    vnis = vnis_needed({port.name: wishes[port.name] for port in ports if port.name in wishes and not port.uplink})
    return DesiredState(
        switch_id=switch.id,
        asn=switch.facts.asn,
        loopback=switch.facts.loopback,
        pxe_vlan=switch.facts.pxe_vlan,
        ports=shaped,
        vrfs=tuple(DesiredVrf(vrf_name(vni), vni, vlans[vni]) for vni in sorted(vnis)),
    )


def _port(port: Port, wish: Wish) -> DesiredPort:
    if port.uplink:
        # Never shut by the plane: it would cut the leaf off from the plane itself.
        return DesiredPort(port.name, PortRole.UPLINK, None, UNDERLAY_MTU)
    return DesiredPort(
        name=port.name,
        role=wish.role,
        admin=port.admin.wish,
        mtu=UNDERLAY_MTU if wish.role is PortRole.FIREWALL else ACCESS_MTU,
        vrf=vrf_name(wish.vrf),
        allowed_prefixes=wish.allowed_prefixes,
        vnis=wish.vnis,
    )
