"""The complete desired state of one leaf, as plain values.

Everything that the agent does starts from a `Desired`; there are no patches. The module knows the shape and how to
write it to disk and back. It does not judge whether a state makes sense: that is `checks`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from metal_core.records import read_record

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
    # Of no use to anybody: administratively down.
    DOWN = "down"
    # The operator's own bridge port: the agent owns nothing of it but its administrative state.
    ADDITIONAL = "additional"


class Admin(StrEnum):
    """Administrative state of a port. `KEEP` leaves PORT.admin_status to whoever set it."""

    KEEP = ""
    UP = "up"
    DOWN = "down"


class Fec(StrEnum):
    """Forward error correction of a port, as PORT.fec names it. `KEEP` leaves it to whoever set it."""

    KEEP = ""
    NONE = "none"
    RS = "rs"
    FC = "fc"
    AUTO = "auto"


class DriftPolicy(StrEnum):
    """What to do about changes that others made to what the agent owns."""

    REPAIR = "repair"
    REPORT = "report"


@dataclass(frozen=True, slots=True)
class Port:
    """One port that has a role.

    `vrf` is set for machine ports only. `allowed_prefixes` is what the port's neighbour may announce, `vnis` what a
    firewall may exchange EVPN routes for. `mtu` 0 means the usual one of the role, `speed` 0 (Mbit/s) leaves the port's
    own.
    """

    name: str
    role: PortRole
    admin: Admin = Admin.KEEP
    mtu: int = 0
    vrf: str = ""
    allowed_prefixes: tuple[str, ...] = ()
    vnis: tuple[int, ...] = ()
    speed: int = 0
    fec: Fec = Fec.KEEP

    @property
    def effective_mtu(self) -> int:
        """Octets to write, or 0 where the port's own value stays (a port that is down, or an operator's)."""
        if self.mtu:
            return self.mtu
        match self.role:
            case PortRole.UPLINK | PortRole.FIREWALL:
                return MTU_FABRIC
            case PortRole.MACHINE | PortRole.UNPROVISIONED:
                return MTU_TENANT
            case PortRole.DOWN | PortRole.ADDITIONAL:
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
    Both are 0 and empty for a state that is not the plane's but a person's on the leaf.

    `management_gateway` (IPv4) is the next hop of the default route and of `management_routes` in VRF mgmt; without it
    the agent has no routes there. `source_loopback` has the leaf's own packets along BGP routes come from the loopback.
    `bgp_keepalive` and `bgp_hold` are seconds and 0 together for the usual ones. `confirm_seconds` is how long after a
    change the plane may be out of reach before the leaf returns to what it had, 0 for the usual time.
    """

    switch_id: str
    generation: int
    digest: str
    asn: int
    loopback: str
    pxe_vlan: int
    ports: tuple[Port, ...] = ()
    vrfs: tuple[Vrf, ...] = ()
    management_gateway: str = ""
    management_routes: tuple[str, ...] = ()
    source_loopback: bool = False
    bgp_keepalive: int = 0
    bgp_hold: int = 0
    drift_policy: DriftPolicy = DriftPolicy.REPAIR
    confirm_seconds: int = 0

    @property
    def own_ports(self) -> frozenset[str]:
        """The ports of which the agent owns more than the administrative state."""
        return frozenset(port.name for port in self.ports if port.role is not PortRole.ADDITIONAL)

    def with_role(self, *roles: PortRole) -> tuple[Port, ...]:
        """The ports that have one of `roles`, in the natural order of their names."""
        return tuple(sorted((port for port in self.ports if port.role in roles), key=lambda port: natural(port.name)))


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


def from_json(data: object, *, strict: bool = False) -> Desired:
    """The inverse of `to_json`. Raises `records.BadRecord`, a ValueError that names the field; `strict` as there."""
    return read_record(Desired, data, strict=strict)
