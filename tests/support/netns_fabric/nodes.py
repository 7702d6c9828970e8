"""What hangs on the leaves and above them: machines of tenants, and the exit with the outside behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from metal_sim.leaf.kernel import FORWARDING, Kernel

from netns_fabric import frr
from netns_fabric.namespace import Box, wire
from netns_fabric.probe import Listener, listen

# VNI of the VRF that leads outside, and who answers there.
INTERNET = 104009
OUTSIDE = ("203.0.113.1", "2001:db8:ffff::1")
_ADVERTISE = " ipv6 nd ra-interval 6\n no ipv6 nd suppress-ra\n"


def session(group: str, ports: Sequence[str]) -> str:
    """Unnumbered external neighbours, as the leaves have them on their side."""
    lines = [f"neighbor {group} peer-group", f"neighbor {group} remote-as external", f"neighbor {group} timers 2 8"]
    lines += [f"neighbor {port} interface peer-group {group}" for port in ports]
    return "".join(f" {line}\n" for line in lines)


def advertised(ports: Sequence[str]) -> str:
    """Router advertisements, by which unnumbered neighbours find each other."""
    return "".join(f"interface {port}\n{_ADVERTISE}exit\n" for port in ports)


async def carry(box: Box, vni: int, asn: int, loopback: str) -> None:
    """Have a box that runs FRR take part in a VNI: its VRF announces the routes that the kernel has in it."""

    async def run(script: str) -> None:
        await box.run(script)

    async def noticed(vrf: str) -> None:
        await frr.until_vrf(box, vrf)

    vrf, vlan = f"Vrf{vni}", f"Vlan{vni}"
    kernel = Kernel(run, loopback, noticed)
    await kernel.add_vrf(vrf)
    await kernel.add_vlan(vlan)
    await kernel.route(vlan, vrf)
    await kernel.add_vni(vlan, vni)
    families = "".join(
        f" address-family {family} unicast\n  redistribute kernel\n exit-address-family\n"
        for family in ("ipv4", "ipv6")
    )
    await frr.load(
        box,
        f"vrf {vrf}\n vni {vni}\nexit-vrf\n"
        f"router bgp {asn} vrf {vrf}\n bgp router-id {loopback}\n{families}"
        " address-family l2vpn evpn\n  advertise ipv4 unicast\n  advertise ipv6 unicast\n exit-address-family\n"
        "exit\n",
    )


@dataclass
class Machine:
    """A tenant's machine with a leg on each leaf, that routes to the host: its addresses are on lo and it announces
    them. It answers to whoever reaches it by its name. `stolen` are addresses that it has no right to."""

    name: str
    asn: int
    addresses: tuple[str, ...]
    stolen: tuple[str, ...] = ()
    legs: tuple[str, ...] = ("lan0", "lan1")
    box: Box = field(init=False)
    listeners: list[Listener] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.box = Box(self.name)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What it may announce."""
        return tuple(f"{address}/{ip_address(address).max_prefixlen}" for address in self.addresses)

    async def start(self) -> None:
        """Boot it; its cables are there already."""
        everywhere = (*self.addresses, *self.stolen)
        v4 = next(address for address in self.addresses if ip_address(address).version == 4)
        lines = [f"ip addr add {address} dev lo" for address in everywhere]
        lines += [f"ip link set {leg} mtu 9000 up" for leg in self.legs]
        await self.box.run("; ".join([FORWARDING, *lines]))
        await frr.start(
            self.box,
            "frr defaults datacenter\n"
            f"{advertised(self.legs)}"
            f"router bgp {self.asn}\n"
            f" bgp router-id {v4}\n"
            " bgp bestpath as-path multipath-relax\n"
            f"{session('LEAF', self.legs)}"
            " address-family ipv4 unicast\n  redistribute connected\n exit-address-family\n"
            " address-family ipv6 unicast\n  redistribute connected\n  neighbor LEAF activate\n exit-address-family\n"
            "exit\n",
        )
        self.listeners += [await listen(self.box, address, self.name) for address in everywhere]

    async def plug(self, leg: str) -> None:
        """Put the cable of a leg in."""
        await self.box.run(f"ip link set {leg} mtu 9000 up")

    async def unplug(self, leg: str) -> None:
        """Pull the cable of a leg."""
        await self.box.run(f"ip link set {leg} down")

    async def stop(self) -> None:
        """Switch it off."""
        for listener in self.listeners:
            listener.close()
        self.listeners.clear()
        await self.box.stop()


class Firewall(Machine):
    """A machine that joins the VRF of one tenant to the one that leads outside.

    VRFs that are namespaces cannot import each other's routes, so a veth pair joins them, with routes of the kernel.
    """

    loopback = "10.0.1.1"

    def __init__(self, name: str, asn: int, vni: int) -> None:
        super().__init__(name, asn, ())
        self.vni = vni

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What it may announce to the underlay."""
        return (f"{self.loopback}/32",)

    async def start(self) -> None:
        """Boot it; its cables are there already."""
        legs = "; ".join(f"ip link set {leg} up" for leg in self.legs)
        await self.box.run(f"{FORWARDING}; ip addr add {self.loopback}/32 dev lo; {legs}")
        await frr.start(
            self.box,
            "frr defaults datacenter\n"
            f"{advertised(self.legs)}"
            f"router bgp {self.asn}\n"
            f" bgp router-id {self.loopback}\n"
            " bgp bestpath as-path multipath-relax\n"
            f"{session('LEAF', self.legs)}"
            " address-family ipv4 unicast\n  redistribute connected\n exit-address-family\n"
            " address-family l2vpn evpn\n  neighbor LEAF activate\n  advertise-all-vni\n exit-address-family\n"
            "exit\n",
            vrfs=True,
        )
        for vni in (self.vni, INTERNET):
            await carry(self.box, vni, self.asn, self.loopback)
        inner, outer = f"Vrf{self.vni}", f"Vrf{INTERNET}"
        await self.box.run(
            f"ip link add outer netns {inner} type veth peer name inner netns {outer}; "
            f"ip -n {inner} link set outer up; ip -n {outer} link set inner up; "
            f"ip -n {inner} addr add 172.31.0.0/31 dev outer; ip -n {outer} addr add 172.31.0.1/31 dev inner; "
            f"ip -n {inner} addr add fd00:2::1/64 dev outer nodad; "
            f"ip -n {outer} addr add fd00:2::2/64 dev inner nodad; "
            f"ip -n {inner} route add 203.0.113.0/24 via 172.31.0.1; "
            f"ip -n {inner} route add 2001:db8:ffff::/48 via fd00:2::2; "
            f"ip -n {outer} route add 10.1.0.0/16 via 172.31.0.0; "
            f"ip -n {outer} route add 2001:db8:1::/48 via fd00:2::1"
        )


class Exit:
    """The exit switch, which is the leaves' spine as well: configured by hand, not by the plane.

    Whoever is in the VRF of the VNI `INTERNET` gets outside, where a host answers as "outside".
    """

    ASN, LOOPBACK = 4200000001, "10.0.0.254"

    def __init__(self, ports: Sequence[str]) -> None:
        self.ports = tuple(ports)
        self.box, self.outside = Box("exit01"), Box("outside")
        self._listeners: list[Listener] = []

    async def power_on(self) -> None:
        """The kernels are there; the cables are plugged next."""
        await asyncio.gather(self.box.start(), self.outside.start())

    async def start(self) -> None:
        """Boot it; its cables are there already."""
        lines = [f"ip addr add {self.LOOPBACK}/32 dev lo"] + [f"ip link set {port} up" for port in self.ports]
        await self.box.run("; ".join([FORWARDING, *lines]))
        await frr.start(
            self.box,
            "frr defaults datacenter\n"
            f"{advertised(self.ports)}"
            f"router bgp {self.ASN}\n"
            f" bgp router-id {self.LOOPBACK}\n"
            " bgp bestpath as-path multipath-relax\n"
            f"{session('FABRIC', self.ports)}"
            " address-family ipv4 unicast\n  redistribute connected\n exit-address-family\n"
            " address-family l2vpn evpn\n  neighbor FABRIC activate\n  advertise-all-vni\n exit-address-family\n"
            "exit\n",
            vrfs=True,
        )
        await wire(self.box, "out0", self.outside, "eth0")
        await carry(self.box, INTERNET, self.ASN, self.LOOPBACK)
        vrf = f"Vrf{INTERNET}"
        await self.box.run(
            f"ip link set out0 netns {vrf}; ip -n {vrf} link set out0 up; "
            f"ip -n {vrf} addr add 198.51.100.0/31 dev out0; ip -n {vrf} addr add fd00:1::1/64 dev out0 nodad; "
            f"ip -n {vrf} route add 203.0.113.0/24 via 198.51.100.1; "
            f"ip -n {vrf} route add 2001:db8:ffff::/48 via fd00:1::2"
        )
        await self.outside.run(
            "ip link set eth0 up; ip addr add 198.51.100.1/31 dev eth0; ip addr add fd00:1::2/64 dev eth0 nodad; "
            f"{'; '.join(f'ip addr add {address} dev lo' for address in OUTSIDE)}; "
            "ip route add default via 198.51.100.0; ip route add default via fd00:1::1"
        )
        self._listeners += [await listen(self.outside, address, "outside") for address in OUTSIDE]

    async def plug(self, port: str) -> None:
        """Put the cable of a port in."""
        await self.box.run(f"ip link set {port} up")

    async def stop(self) -> None:
        """Switch it off."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        await asyncio.gather(self.box.stop(), self.outside.stop())
