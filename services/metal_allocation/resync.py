"""Safety net under the events: the projection of machines is compared with inventory now and then.

An event that was lost costs one interval, and nothing else. Old released allocations are forgotten here too.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from metal_kit.db import Database
from metal_kit.errors import Problem
from metal_kit.logs import get_logger
from metalplane.inventory.v1.machine_pb2 import StreamMachinesRequest

from metal_allocation.clients import Clients
from metal_allocation.consumers import facts_of
from metal_allocation.store import AllocationStore, PlacementStore

log = get_logger(__name__)
STREAM_TIMEOUT = 300.0


@dataclass(slots=True)
class Resync:
    """Runs until the service stops."""

    db: Database
    clients: Clients
    stopping: asyncio.Event
    interval: timedelta
    keep_released: timedelta
    allocations: AllocationStore = field(default_factory=AllocationStore)
    placements: PlacementStore = field(default_factory=PlacementStore)

    async def run(self) -> None:
        """Compare at once, then every `interval` with a jitter of a fifth; a failure is logged and tried again."""
        while not self.stopping.is_set():
            delay = self.interval.total_seconds() * random.uniform(0.9, 1.1)
            try:
                count = await self.once()
                log.debug("allocation.resynced", machines=count)
            except Problem as problem:
                log.warning("allocation.resync_failed", reason=problem.reason, message=problem.message)
                delay = min(delay, 5.0)
            try:
                async with asyncio.timeout(delay):
                    await self.stopping.wait()
            except TimeoutError:
                continue

    async def once(self) -> int:
        """One comparison; answers how many machines inventory has."""
        # The database's clock, which the rows carry too: another one may be skewed and forget what was just seen.
        async with self.db.connection() as conn:
            began = await conn.fetchval("SELECT clock_timestamp()")
        seen = 0
        stream: Any = self.clients.machines.StreamMachines(StreamMachinesRequest(), timeout=STREAM_TIMEOUT)
        async for batch in stream:
            async with self.db.transaction(purpose="resync machines") as conn:
                for machine in batch.machines:
                    await self.placements.upsert(conn, facts_of(machine))
            seen += len(batch.machines)
        async with self.db.transaction(purpose="forget what is gone") as conn:
            await self.placements.forget_unseen(conn, began)
            await self.allocations.forget_released(conn, began - self.keep_released)
        return seen
