"""A leaf of the lab: a real Redis, the simulated SONiC on it, and the real metal-core."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from metal_core.service import NAME, CoreSettings
from metal_core.service import run as run_core
from metal_kit.agent import Agent
from metal_kit.client import Peers
from metal_kit.logs import get_logger
from metal_kit.tls import Identity
from metal_sim.leaf import LeafSpec, SimLeaf

from metal_lab.rack.wiring import PlacedLeaf
from metal_lab.servers import Redis
from metal_lab.state import short

log = get_logger(__name__)
RESTART = 1.0


class LabLeaf:
    """One leaf. `directory` keeps what a switch keeps on its disk; the agent is started anew when it falls over."""

    def __init__(
        self,
        placed: PlacedLeaf,
        *,
        partition: str,
        pxe_vlan: int,
        directory: Path,
        sockets: Path,
        identity: Identity,
        fabric: str,
    ) -> None:
        self.placed = placed
        name = placed.leaf.name
        spec = LeafSpec(
            name=name,
            ports=(*placed.machine_ports, *placed.uplinks),
            uplinks=placed.uplinks,
            asn=placed.leaf.asn,
            loopback=placed.leaf.loopback,
            pxe_vlan=pxe_vlan,
        )
        self.redis = Redis(sockets / short(name))
        self.switch = SimLeaf(spec, self.redis.socket, directory)
        self._identity = identity
        self._fabric = fabric
        self._settings = CoreSettings(
            tls_ca=str(identity.ca),
            tls_cert=str(identity.cert),
            tls_key=str(identity.key),
            peers={"fabric": fabric},
            partition=partition,
            rack=placed.rack,
            uplinks=placed.uplinks,
            pxe_vlan=pxe_vlan,
            state_directory=directory / "metal_core",
            frr_conf=directory / "frr.conf",
            vtysh="",
            database_config=self.switch.database_config,
            observe_seconds=0.5,
        )
        self._core: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._crashes = 0

    @property
    def activity(self) -> str:
        """In a few words, how the leaf is."""
        if self.switch.faults.dead:
            return "no power"
        return f"up, its agent fell over {self._crashes} times" if self._crashes else "up"

    async def start(self) -> None:
        """Power on: Redis, the switch's daemons, the agent."""
        await self.redis.start()
        await self.switch.start()
        self._start_core()

    async def stop(self) -> None:
        """Power off, orderly."""
        await self._stop_core()
        await self.switch.stop()
        await self.redis.stop()

    async def set_dead(self, dead: bool) -> None:
        """Take the power away, or give it back."""
        if dead:
            await self._stop_core()
            await self.switch.die()
        else:
            await self.switch.revive()
            self._start_core()

    def _start_core(self) -> None:
        if self._core is None:
            self._stopping = asyncio.Event()
            self._core = asyncio.create_task(self._run_core(), name=f"metal-core {self.placed.leaf.name}")

    async def _stop_core(self) -> None:
        if self._core is not None:
            self._stopping.set()
            self._core.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._core
            self._core = None

    async def _run_core(self) -> None:
        """What systemd does on a switch: start the agent, and again when it ends."""
        while not self._stopping.is_set():
            agent = Agent(NAME, self._settings, self._connect, self._stopping, log)
            try:
                await run_core(agent)
            except Exception:
                self._crashes += 1
                log.exception("leaf.core_failed", leaf=self.placed.leaf.name)
            finally:
                await agent.close()
            await asyncio.sleep(RESTART)

    def _connect(self) -> Peers:
        return Peers({"fabric": self._fabric}, self._identity)
