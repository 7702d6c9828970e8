"""Linux as the hardware of a simulated leaf: network namespaces for VRFs, bridges for VLANs, VXLAN devices for VNIs.

This is what FRR's netns backend expects (`zebra -n`): a VRF is a named namespace. It needs neither VRF devices nor VLAN
filtering of the kernel. The leaf itself is a namespace as well, and its ports are ends of veth pairs that exist there
already; this module moves them, and it makes and removes everything else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address

# Runs a shell script inside the leaf's namespaces (network, mount and pid); raises when a command of it fails.
Run = Callable[[str], Awaitable[None]]
Noticed = Callable[[str], Awaitable[None]]

# IANA's port for VXLAN (RFC 7348), and octets that fit through uplinks of 9216 with VXLAN's 50 (70 over IPv6) around.
_VXLAN_PORT = 4789
_TENANT_MTU = 9000

# A leaf is a router in each of its namespaces; RFC 3704's filter would drop what comes in by the other leg of a pair.
FORWARDING = (
    "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 "
    "net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0"
)


class Kernel:
    """The kernel of the leaf that `run` enters; `loopback` is where its VXLAN tunnels end.

    A VLAN that is not routed in a VRF is a bridge in the leaf's own namespace. Bridges cannot be moved, so a VLAN that
    becomes routed gets another one in the VRF.

    `noticed` returns when FRR has a VRF. zebra looks at a new namespace only after a second, and an L3 VNI whose device
    it finds in it then, having been told of the VNI before, stays down for good (FRR 8.4).
    """

    def __init__(self, run: Run, loopback: str, noticed: Noticed) -> None:
        self._run, self._loopback, self._noticed = run, loopback, noticed
        # EVPN's router MAC, which the peers send to; one a leaf, locally administered.
        self._mac = "02:00:" + ":".join(f"{octet:02x}" for octet in IPv4Address(loopback).packed)
        self._vrf_of: dict[str, str] = {}
        self._settings: dict[str, str] = {}

    async def add_vrf(self, vrf: str) -> None:
        """Make the namespace; it forwards from the start."""
        await self._run(f"ip netns add {vrf}; ip netns exec {vrf} sh -ec 'ip link set lo up; {FORWARDING}'")
        await self._noticed(vrf)

    async def remove_vrf(self, vrf: str) -> None:
        """Remove the namespace. A port in it would vanish with it, cable and all; none may be left."""
        left = sorted(name for name, where in self._vrf_of.items() if where == vrf)
        if left:
            raise RuntimeError(f"{vrf} still has {', '.join(left)}")
        await self._run(f"ip netns del {vrf}")

    async def add_vlan(self, vlan: str) -> None:
        """Make the bridge."""
        await self._run(self._bridge(vlan, ""))

    async def remove_vlan(self, vlan: str) -> None:
        """Remove the bridge."""
        await self._run(f"{_ip('')} link del {vlan}")

    async def route(self, name: str, vrf: str) -> None:
        """Move the port, or have the VLAN's bridge in the VRF."""
        self._vrf_of[name] = vrf
        if name.startswith("Vlan"):
            if vrf:
                await self._run(f"{_ip('')} link del {name}; {self._bridge(name, vrf)}")
        elif vrf:
            await self._run(f"ip link set {name} netns {vrf}; {self._set(name)}")
        else:
            await self._run(self._set(name))

    async def unroute(self, name: str, vrf: str) -> None:
        """Bring the port back, or the VLAN's bridge."""
        self._vrf_of.pop(name, None)
        if name.startswith("Vlan"):
            if vrf:
                await self._run(f"{_ip(vrf)} link del {name}; {self._bridge(name, '')}")
        elif vrf:
            # 1 is the leaf's first process, so its namespace is the leaf's own.
            await self._run(f"{_ip(vrf)} link set {name} netns 1; {self._set(name)}")

    async def bridge(self, port: str, vlan: str) -> None:
        """Enslave the port."""
        await self._run(f"ip link set {port} master {vlan}")

    async def unbridge(self, port: str) -> None:
        """Free the port."""
        await self._run(f"ip link set {port} nomaster")

    async def add_vni(self, vlan: str, vni: int) -> None:
        """Make the VXLAN device where the bridge is, with its socket in the leaf's namespace.

        It is not made there and moved: zebra has one socket for each namespace, and may hear of its end in the one
        after it has heard of its beginning in the other.
        """
        vrf = self._vrf_of[vlan]
        device, ip = f"vni{vni}", _ip(vrf)
        await self._run(
            f"ip link add {device} {f'netns {vrf}' if vrf else ''} type vxlan id {vni} local {self._loopback} "
            f"dstport {_VXLAN_PORT} nolearning; "
            f"{ip} link set {device} addrgenmode none; "
            f"{ip} link set {device} master {vlan}; "
            f"{ip} link set {device} type bridge_slave neigh_suppress on learning off; "
            f"{ip} link set {device} mtu {_TENANT_MTU} up"
        )

    async def remove_vni(self, vlan: str, vni: int) -> None:
        """Remove the VXLAN device."""
        await self._run(f"{_ip(self._vrf_of.get(vlan, ''))} link del vni{vni}")

    async def set_port(self, port: str, mtu: int, up: bool) -> None:
        """Set the port where it is, and remember it for when it moves."""
        self._settings[port] = (f"mtu {mtu} " if mtu else "") + ("up" if up else "down")
        await self._run(self._set(port))

    def _set(self, port: str) -> str:
        return f"{_ip(self._vrf_of.get(port, ''))} link set {port} {self._settings.get(port, 'down')}"

    def _bridge(self, vlan: str, vrf: str) -> str:
        ip = _ip(vrf)
        return (
            f"{ip} link add {vlan} address {self._mac} type bridge; {ip} link set {vlan} addrgenmode none; "
            f"{ip} link set {vlan} mtu {_TENANT_MTU} up"
        )


def _ip(vrf: str) -> str:
    return f"ip -n {vrf}" if vrf else "ip"
