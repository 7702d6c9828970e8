"""A leaf that forwards: SONiC's databases in a real Redis, Linux for the ASIC, FRR, and the agent that drives them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from live_rack import LiveRack
from metal_core.frr.dialect import VrfBackend
from metal_lab.servers import Redis
from metal_sim.leaf import Kernel, LeafSpec, SimLeaf
from metal_sim.leaf.kernel import FORWARDING

from netns_fabric import frr
from netns_fabric.namespace import Box

# How a leaf's FRR is configured before the agent has ever run.
INSTALLED = "frr defaults datacenter\n"


class RealLeaf:
    """One leaf of `rack`. Each boot finds kernel and Redis empty; frr.conf and the agent's memory are kept."""

    def __init__(self, rack: LiveRack, spec: LeafSpec, new_redis: Callable[[], Awaitable[Redis]]) -> None:
        self.spec, self._rack, self._new_redis = spec, rack, new_redis
        self.directory: Path = rack.directory / spec.name
        self.box = Box(spec.name)
        self.switch: SimLeaf | None = None
        self._redis: Redis | None = None

    async def power_on(self) -> None:
        """The kernel is there; the cables are plugged next."""
        await self.box.start()

    async def boot(self) -> None:
        """What follows when the cables are there: loopback, FRR, the switch's databases, the agent."""
        ports = "; ".join(f"ip link set {port} up" for port in self.spec.ports)
        await self.box.run(f"{FORWARDING}; ip addr add {self.spec.loopback}/32 dev lo; {ports}")
        saved = self.directory / "frr.conf"
        await frr.start(self.box, saved.read_text() if saved.exists() else INSTALLED, saved=str(saved), vrfs=True)
        self._redis = await self._new_redis()
        hardware = Kernel(self._run, self.spec.loopback, self._noticed)
        self.switch = SimLeaf(self.spec, self._redis.socket, self.directory, hardware=hardware)
        await self.switch.start()
        self._rack.start_agent(
            self.spec,
            self.switch.database_config,
            vtysh=" ".join(frr.vtysh(self.box)),
            vrf_backend=VrfBackend.NETNS,
        )

    async def power_off(self) -> None:
        """The power goes: agent, daemons, kernel and Redis end at once."""
        await self._rack.kill_agent(self.spec.name)
        await self.box.stop()
        switch, self.switch = self.switch, None
        if switch is not None:
            await switch.stop()
        redis, self._redis = self._redis, None
        if redis is not None:
            await redis.stop()

    async def vlan_of(self, port: str) -> int | None:
        """The VLAN of a port by CONFIG_DB, None without one or without power."""
        return await self.switch.vlan_of(port) if self.switch is not None else None

    async def _run(self, script: str) -> None:
        await self.box.run(script)

    async def _noticed(self, vrf: str) -> None:
        await frr.until_vrf(self.box, vrf)
