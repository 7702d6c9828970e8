"""What hangs on the leaves and above them: machines of tenants, and the exit with the outside behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from metal_sim.leaf.kernel import FORWARDING

from netns_fabric import frr
from netns_fabric.namespace import Box
from netns_fabric.probe import Listener, listen

_ADVERTISE = " ipv6 nd ra-interval 6\n no ipv6 nd suppress-ra\n"


def session(group: str, ports: Sequence[str]) -> str:
    """Unnumbered external neighbours, as the leaves have them on their side."""
    lines = [f"neighbor {group} peer-group", f"neighbor {group} remote-as external", f"neighbor {group} timers 2 8"]
    lines += [f"neighbor {port} interface peer-group {group}" for port in ports]
    return "".join(f" {line}\n" for line in lines)


def advertised(ports: Sequence[str]) -> str:
    """Router advertisements, by which unnumbered neighbours find each other."""
    return "".join(f"interface {port}\n{_ADVERTISE}exit\n" for port in ports)


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


class Exit:
    """The exit switch, which is the leaves' spine as well: configured by hand, not by the plane."""

    ASN, LOOPBACK = 4200000001, "10.0.0.254"

    def __init__(self, ports: Sequence[str]) -> None:
        self.ports = tuple(ports)
        self.box = Box("exit01")

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
            " address-family l2vpn evpn\n  neighbor FABRIC activate\n exit-address-family\n"
            "exit\n",
            vrfs=True,
        )

    async def plug(self, port: str) -> None:
        """Put the cable of a port in."""
        await self.box.run(f"ip link set {port} up")

    async def stop(self) -> None:
        """Switch it off."""
        await self.box.stop()
