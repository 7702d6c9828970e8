"""The complete desired state of one leaf, as plain values.

Everything that the agent does starts from a `Desired`; there are no patches. The module knows the shape and how to
write it to disk and back. It does not judge whether a state makes sense: that is `checks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

# The plane's VLAN range for layer 3 VNIs on a leaf. Rows of VLANs in it belong to the agent.
FIRST_VLAN = 1001
LAST_VLAN = 2000

# Octets, as SONiC's PORT.mtu counts them. Uplinks carry VXLAN, so they need room above the tenants' 9000.
MTU_FABRIC = 9216
MTU_TENANT = 9000


class PortRole(StrEnum):
    """What a port is for; decides its rows, its peer group and its filters."""

    UPLINK = "uplink"
    UNPROVISIONED = "unprovisioned"
    MACHINE = "machine"
    FIREWALL = "firewall"
    DOWN = "down"


class Admin(StrEnum):
    """Administrative state of a port. `KEEP` leaves PORT.admin_status to whoever set it."""

    KEEP = ""
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Port:
    """One port that has a role.

    `vrf` is set for machine ports only. `allowed_prefixes` is what the port's neighbour may announce, `vnis` what a
    firewall may exchange EVPN routes for. `mtu` 0 means the usual one of the role.
    """

    name: str
    role: PortRole
    admin: Admin = Admin.KEEP
    mtu: int = 0
    vrf: str = ""
    allowed_prefixes: tuple[str, ...] = ()
    vnis: tuple[int, ...] = ()

    @property
    def effective_mtu(self) -> int:
        """Octets to write, or 0 where the port's own value stays (a port that is down)."""
        if self.mtu:
            return self.mtu
        match self.role:
            case PortRole.UPLINK | PortRole.FIREWALL:
                return MTU_FABRIC
            case PortRole.MACHINE | PortRole.UNPROVISIONED:
                return MTU_TENANT
            case PortRole.DOWN:
                return 0

    @property
    def effective_admin(self) -> Admin:
        """The administrative state to write; a port with the role `DOWN` is never left up."""
        return Admin.DOWN if self.role is PortRole.DOWN else self.admin


@dataclass(frozen=True, slots=True)
class Vrf:
    """A tenant's VRF: `name` is always `Vrf<vni>`, `vlan_id` carries its layer 3 VNI on this leaf."""

    name: str
    vni: int
    vlan_id: int


@dataclass(frozen=True, slots=True)
class Desired:
    """Everything that the agent is to bring about on one leaf.

    `generation` grows with each real change; `digest` is fabric's hash of the content and is echoed, never recomputed.
    """

    switch_id: str
    generation: int
    digest: str
    asn: int
    loopback: str
    pxe_vlan: int
    ports: tuple[Port, ...] = ()
    vrfs: tuple[Vrf, ...] = field(default=())

    def with_role(self, *roles: PortRole) -> tuple[Port, ...]:
        """The ports that have one of `roles`, in the natural order of their names."""
        return tuple(sorted((port for port in self.ports if port.role in roles), key=lambda port: natural(port.name)))

    def machines_of(self, vrf: Vrf) -> tuple[Port, ...]:
        """The machine ports that are in `vrf`, in the natural order of their names."""
        return tuple(port for port in self.with_role(PortRole.MACHINE) if port.vrf == vrf.name)


def natural(name: str) -> tuple[str, int, str]:
    """Sort key that puts Ethernet8 before Ethernet12; independent of the order in which fabric lists ports."""
    head = name.rstrip("0123456789")
    tail = name[len(head) :]
    return (head, int(tail) if tail else -1, name)


def split_families(prefixes: Iterable[str]) -> tuple[tuple[IPv4Network, ...], tuple[IPv6Network, ...]]:
    """The v4 and the v6 networks of `prefixes`, each sorted, without duplicates; `ValueError` for a malformed one."""
    networks = {ip_network(prefix) for prefix in prefixes}
    v4 = sorted(network for network in networks if isinstance(network, IPv4Network))
    v6 = sorted(network for network in networks if isinstance(network, IPv6Network))
    return tuple(v4), tuple(v6)


def to_json(desired: Desired) -> dict[str, Any]:
    """The state as JSON-compatible values, for the last-known-good file."""
    return asdict(desired)


def from_json(data: Mapping[str, Any]) -> Desired:
    """The inverse of `to_json`; `KeyError`, `TypeError` or `ValueError` when the data is of another shape."""
    return Desired(
        switch_id=str(data["switch_id"]),
        generation=int(data["generation"]),
        digest=str(data["digest"]),
        asn=int(data["asn"]),
        loopback=str(data["loopback"]),
        pxe_vlan=int(data["pxe_vlan"]),
        ports=tuple(_port(port) for port in data["ports"]),
        vrfs=tuple(Vrf(name=str(v["name"]), vni=int(v["vni"]), vlan_id=int(v["vlan_id"])) for v in data["vrfs"]),
    )


def _port(data: Mapping[str, Any]) -> Port:
    return Port(
        name=str(data["name"]),
        role=PortRole(data["role"]),
        admin=Admin(data["admin"]),
        mtu=int(data["mtu"]),
        vrf=str(data["vrf"]),
        allowed_prefixes=tuple(str(prefix) for prefix in data["allowed_prefixes"]),
        vnis=tuple(int(vni) for vni in data["vnis"]),
    )
