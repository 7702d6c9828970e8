"""States, and what stands for FRR and for a Redis that fails, for tests of the applier on a simulated leaf."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from metal_core.bgp_state import Session
from metal_core.configdb import READ_TABLES, owned, render
from metal_core.desired import Admin, Desired, Port, PortRole, Vrf
from metal_core.frr.dialect import VrfBackend
from metal_core.frr.model import Configuration
from metal_core.frr.parse import parse
from metal_core.sonic import Sonic
from metal_core.vtysh import FrrError, FrrUnavailable
from metal_sim.leaf.frr import FrrRefused, SimFrr

UPLINKS = (Port("Ethernet120", PortRole.UPLINK), Port("Ethernet124", PortRole.UPLINK))
EMPTY = Desired(
    "leaf01",
    1,
    "a",
    4200000011,
    "10.0.0.11",
    4000,
    (*UPLINKS, *(Port(f"Ethernet{number}", PortRole.UNPROVISIONED) for number in (0, 4, 8, 12))),
)
ONE = replace(
    EMPTY,
    generation=2,
    digest="b",
    ports=(
        *UPLINKS,
        Port("Ethernet0", PortRole.MACHINE, vrf="Vrf2000", allowed_prefixes=("10.1.0.1/32",)),
        Port("Ethernet4", PortRole.UNPROVISIONED),
        Port("Ethernet8", PortRole.FIREWALL, allowed_prefixes=("10.0.9.1/32",), vnis=(2000,)),
        Port("Ethernet12", PortRole.UNPROVISIONED, admin=Admin.DOWN),
    ),
    vrfs=(Vrf("Vrf2000", 2000, 1001),),
)
# Everything moves at once: VRF to VRF, firewall to machine, a VLAN that changes its VRF, a VRF that goes.
TWO = replace(
    EMPTY,
    generation=3,
    digest="c",
    ports=(
        *UPLINKS,
        Port("Ethernet0", PortRole.MACHINE, vrf="Vrf2001", allowed_prefixes=("10.1.0.1/32",)),
        Port("Ethernet4", PortRole.MACHINE, vrf="Vrf2002"),
        Port("Ethernet8", PortRole.MACHINE, vrf="Vrf2001"),
        Port("Ethernet12", PortRole.FIREWALL, admin=Admin.UP, vnis=(2001,)),
    ),
    vrfs=(Vrf("Vrf2001", 2001, 1001), Vrf("Vrf2002", 2002, 1002)),
)
STATES = (EMPTY, ONE, TWO)
FOREIGN = {
    "VLAN|Vlan100": {"vlanid": "100"},
    "VRF|Vrf_blue": {"vni": "7"},
    "VLAN_INTERFACE|Vlan100": {"vrf_name": "Vrf_blue"},
    "VLAN_INTERFACE|Vlan100|10.9.0.1/24": {"NULL": "NULL"},
    "VXLAN_TUNNEL_MAP|vtep|map_7_Vlan100": {"vlan": "Vlan100", "vni": "7"},
    "VLAN_MEMBER|Vlan100|Ethernet12": {"tagging_mode": "tagged"},
}
ALL = READ_TABLES | {"DEVICE_METADATA", "LOOPBACK_INTERFACE", "VXLAN_EVPN_NVO"}


class Crash(BaseException):
    """The process is killed: nothing may catch it and tidy up."""


class Crashing(Sonic):
    """Fails once, at the n-th write that it is asked for."""

    def arm(self, after: int, error: BaseException) -> None:
        self.left, self.error = after, error

    def count(self) -> None:
        self.left -= 1
        if self.left == -1:
            raise self.error

    async def delete(self, keys: Iterable[str]) -> None:
        self.count()
        await super().delete(keys)

    async def write(self, rows: Mapping[str, Mapping[str, str]], drop: Mapping[str, Collection[str]]) -> None:
        self.count()
        await super().write(rows, drop)


class RecordingFrr:
    """An FRR that remembers the order of what it was told, and can be made to refuse."""

    present = True
    backend = VrfBackend.LITE

    def __init__(self, sonic: Sonic) -> None:
        self.sonic, self.loaded, self.refuse = sonic, [], ""
        self.rows_at_load: list[set[str]] = []
        self.configuration = Configuration()
        self.loaded: list[str] = []

    async def running(self) -> Configuration:
        return self.configuration

    async def established(self) -> frozenset[str]:
        return frozenset()

    async def sessions(self) -> tuple[Session, ...]:
        return ()

    async def check(self, text: str) -> None:
        if self.refuse and self.refuse in text:
            raise FrrError("line 1: Unknown command")

    async def keep(self, text: str) -> None:
        pass

    async def load(self, commands: str) -> None:
        self.loaded.append(commands)
        self.rows_at_load.append(set(await self.sonic.config()))

    async def forget_vrfs(self, names: Collection[str]) -> None:
        pass


class Frr:
    """The simulated FRR in the place of vtysh. Sessions are established with those of `up` that are neighbours."""

    present = True
    backend = VrfBackend.LITE

    def __init__(self) -> None:
        self.sim = SimFrr()
        self.deltas: list[str] = []
        self.asked: list[str] = []
        self.up = frozenset({"Ethernet120", "Ethernet124"})
        self.away = ""
        self.keeps: set[str] = set()

    async def running(self) -> Configuration:
        self._ask("running")
        return parse(self.sim.running())

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.away:
            raise FrrUnavailable(self.away)

    async def established(self) -> frozenset[str]:
        self._ask("established")
        return self.up & {name for name, _ in self.sim.sessions()}

    async def sessions(self) -> tuple[Session, ...]:
        self._ask("sessions")
        states = {name: "Established" if name in self.up else "Active" for name, _ in self.sim.sessions()}
        return tuple(Session("default", name, state) for name, state in sorted(states.items()))

    async def check(self, text: str) -> None:
        pass

    async def keep(self, text: str) -> None:
        pass

    async def load(self, commands: str) -> None:
        self.deltas.append(commands)
        try:
            self.sim.load(commands)
        except FrrRefused as refused:
            raise FrrError(str(refused)) from refused

    async def forget_vrfs(self, names: Collection[str]) -> None:
        for name in names:
            if name not in self.keeps:
                self.sim.load(f"no vrf {name}\n")

    async def close(self) -> None:
        pass


async def is_at(bench: Any, desired: Desired) -> bool:
    rows = owned(await bench.sonic.config(), desired)
    target = render(desired, "vtep")
    return set(rows) == set(target) and all(rows[key].items() >= target[key].items() for key in target)
