"""What a port may announce: the prefixes and VNIs of its BGP filter.

Pure rules, after metal-stack's per-port filter. Which prefixes a machine has is decided by those who allocate; here
they are only made canonical and minimal, so that equal wishes give equal states. metal-core compacts the machines'
prefixes alone and skips what it cannot parse; here both roles are compacted and nothing is skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

from metal_fabric.problems import Invalid

# RFC 7348: 24 bits; 0 is not used.
MAX_VNI = (1 << 24) - 1


class PortRole(Enum):
    """What a port is for."""

    UPLINK = "uplink"
    UNPROVISIONED = "unprovisioned"
    MACHINE = "machine"
    FIREWALL = "firewall"
    UNUSED = "unused"
    ADDITIONAL = "additional"

    # As of the other values of ports: Enum's own is a call in Python.
    __hash__ = object.__hash__


# Roles that give whoever is behind the port a part in a tenant's network.
TENANT_ROLES = frozenset({PortRole.MACHINE, PortRole.FIREWALL})


@dataclass(frozen=True)
class Wish:
    """What the ports of a machine shall be: `vrf` is the VRF's number and VNI, 0 for none."""

    role: PortRole = PortRole.UNPROVISIONED
    vrf: int = 0
    allowed_prefixes: tuple[str, ...] = ()
    vnis: tuple[int, ...] = ()


# Nobody holds the machine: it is in the PXE VLAN, without BGP and thus without a filter.
UNPROVISIONED = Wish()


def minimal(prefixes: Iterable[str], *, field: str = "allowed_prefixes") -> tuple[str, ...]:
    """The fewest prefixes that cover the same addresses, IPv4 first and in ascending order.

    Raises Invalid `PREFIX_INVALID` for what is no prefix or has host bits set.
    """
    v4: list[IPv4Network] = []
    v6: list[IPv6Network] = []
    for index, text in enumerate(prefixes):
        network = _parsed(text, f"{field}[{index}]")
        if isinstance(network, IPv4Network):
            v4.append(network)
        else:
            v6.append(network)
    return (*map(str, collapse_addresses(v4)), *map(str, collapse_addresses(v6)))


def wish(role: PortRole, vrf: int, allowed_prefixes: Iterable[str], vnis: Iterable[int]) -> Wish:
    """The canonical wish. Raises Invalid `PREFIX_INVALID`, `VRF_MISSING`, `VRF_UNEXPECTED`, `VNIS_UNEXPECTED`,
    `VNI_INVALID`, `ROLE_INVALID`."""
    numbers = tuple(sorted(set(vnis)))
    if role is PortRole.MACHINE:
        if not 0 < vrf <= MAX_VNI:
            raise Invalid("VRF_MISSING", f"a machine needs a VRF from 1 to {MAX_VNI}", field="vrf")
        if numbers:
            raise Invalid("VNIS_UNEXPECTED", "only firewalls take part in VNIs; leave them empty", field="vnis")
    elif role is PortRole.FIREWALL:
        if vrf:
            raise Invalid("VRF_UNEXPECTED", "a firewall's ports are in the default VRF; leave it 0", field="vrf")
        if numbers and not 0 < numbers[0] <= numbers[-1] <= MAX_VNI:
            raise Invalid("VNI_INVALID", f"VNIs run from 1 to {MAX_VNI}", field="vnis")
    else:
        raise Invalid("ROLE_INVALID", "a machine is attached as a machine or as a firewall", field="role")
    return Wish(role=role, vrf=vrf, allowed_prefixes=minimal(allowed_prefixes), vnis=numbers)


def networks(wish: Wish, named: Mapping[int, str]) -> dict[int, str]:
    """Whose the VNIs of a wish are. Raises Invalid `NETWORK_WITHOUT_VNI` for a number that is none of them."""
    strange = sorted(named.keys() - {wish.vrf, *wish.vnis} | named.keys() & {0})
    if strange:
        raise Invalid(
            "NETWORK_WITHOUT_VNI",
            f"{strange[0]} is neither the VRF nor among the VNIs; leave it out, or add it there",
            field="networks",
        )
    return dict(named)


def _parsed(text: str, field: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(text, strict=True)
    except ValueError:
        raise Invalid("PREFIX_INVALID", "not a prefix without host bits, such as 10.0.0.0/24", field=field) from None
    if "/" not in text or "%" in text:
        raise Invalid("PREFIX_INVALID", "give a length and no zone, such as 10.0.0.1/32", field=field)
    return network
