"""A simulated leaf on a Redis of its own, and the agent's parts on top of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from leaf_rack import Rack
from metal_core import databases
from metal_core.apply import Applier
from metal_core.confirm import Trials
from metal_core.known_good import KnownGoodFile
from metal_core.sonic import Sonic
from metal_core.vtysh import Frr, NoFrr
from metal_kit.ca import Authority
from metal_lab.servers import Redis
from metal_sim.leaf import LeafSpec, SimLeaf

SPEC = LeafSpec(
    "leaf01",
    ("Ethernet0", "Ethernet4", "Ethernet8", "Ethernet12", "Ethernet120", "Ethernet124"),
    ("Ethernet120", "Ethernet124"),
    4200000011,
    "10.0.0.11",
)


@dataclass
class Bench:
    """Everything that a test of the applier handles."""

    server: Redis
    leaf: SimLeaf
    sonic: Sonic
    known_good: KnownGoodFile
    frr_conf: Path

    def applier(self, sonic: Sonic | None = None, frr: Frr | None = None, wait_limit: float = 5.0) -> Applier:
        """An applier as a freshly started agent has it."""
        return Applier(
            sonic or self.sonic,
            frr or NoFrr(),
            Trials(self.known_good),
            self.frr_conf,
            wait_limit=wait_limit,
            session_limit=0.5,
        )


@pytest.fixture
async def bench(redis_server: Callable[[], Awaitable[Redis]], tmp_path: Path) -> AsyncIterator[Bench]:
    """A leaf that has booted and has never been configured."""
    server = await redis_server()
    async with SimLeaf(SPEC, server.socket, tmp_path / "leaf") as leaf:
        sonic = Sonic(databases.read(leaf.database_config))
        yield Bench(server, leaf, sonic, KnownGoodFile(tmp_path / "state"), tmp_path / "frr" / "frr.conf")
        await sonic.close()


@pytest.fixture
async def rack(bench: Any, tmp_path: Path) -> AsyncIterator[Rack]:
    """A leaf with its agent stopped and fabric up."""
    async with AsyncExitStack() as stack:
        rack = Rack(bench, tmp_path / "certificates", Authority.create("core tests"))
        await rack.fabric_up()
        stack.push_async_callback(rack.fabric_down)
        stack.push_async_callback(rack.stop_agent)
        yield rack
