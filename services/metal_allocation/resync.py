"""Safety net under the events: the projection of machines is compared with inventory now and then.

An event that was lost costs one interval, and nothing else; one about the ports of an allocation that runs, as many as
it takes until its turn comes. One replica does it for all. Old released allocations are forgotten here too.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from metal_kit.backoff import pause
from metal_kit.db import Database
from metal_kit.errors import FailedPrecondition, NotFound, Problem
from metal_kit.lease import Lease, new_holder
from metal_kit.logs import get_logger
from metalplane.inventory.v1.machine_pb2 import Machine, StreamMachinesRequest, UnbindMachineRequest

from metal_allocation.clients import Clients
from metal_allocation.consumers import facts_of, wake
from metal_allocation.store import AllocationStore, PlacementStore
from metal_allocation.telemetry import UNKNOWN_BINDINGS

log = get_logger(__name__)
STREAM_TIMEOUT = 300.0
# Allocations that run and are looked at with each comparison; all of them by and by.
RUNNING_AT_ONCE = 50
NOBODY = str(UUID(int=0))
AFTER_FAILURE = timedelta(seconds=5)


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
    looked: str = NOBODY

    async def run(self) -> None:
        """Compare at once, then every `interval` with a jitter of a fifth; a failure is logged and tried again.

        The lease outlives the pause, so that the same replica goes on; another takes over when it is gone.
        """
        lease = Lease(self.db, "resync", new_holder(), ttl=1.5 * self.interval)
        try:
            while not self.stopping.is_set():
                await pause(self.stopping, await self._turn(lease))
        finally:
            await self._give_up(lease)

    async def _turn(self, lease: Lease) -> timedelta:
        """Compare, if it is ours to do; answers when to look again."""
        delay = self.interval * random.uniform(0.9, 1.1)
        try:
            if await lease.take():
                log.debug("allocation.resynced", machines=await self.once())
        except Problem as problem:
            log.warning("allocation.resync_failed", reason=problem.reason, message=problem.message)
            delay = min(delay, AFTER_FAILURE)
        return delay

    async def _give_up(self, lease: Lease) -> None:
        try:
            await lease.release()
        except Problem as problem:
            log.debug("allocation.resync_lease_kept", reason=problem.reason)

    async def once(self) -> int:
        """One comparison; answers how many machines inventory has."""
        # The database's clock, which the rows carry too: another one may be skewed and forget what was just seen.
        async with self.db.connection() as conn:
            began = await conn.fetchval("SELECT clock_timestamp()")
        seen = 0
        stream: Any = self.clients.machines.StreamMachines(StreamMachinesRequest(), timeout=STREAM_TIMEOUT)
        async for batch in stream:
            await self._take_over(batch.machines)
            seen += len(batch.machines)
        async with self.db.transaction(purpose="forget what is gone") as conn:
            await self.placements.forget_unseen(conn, began)
            await self.allocations.forget_released(conn, began - self.keep_released)
            running = await self.allocations.running(conn, after=self.looked, limit=RUNNING_AT_ONCE)
            await wake(conn, running, running=True)
        self.looked = running[-1] if len(running) == RUNNING_AT_ONCE else NOBODY
        return seen

    async def _take_over(self, machines: Sequence[Machine]) -> None:
        bound = {machine.binding.allocation: machine.id for machine in machines if machine.binding.allocation}
        async with self.db.transaction(purpose="resync machines") as conn:
            await self.placements.upsert(conn, [facts_of(machine) for machine in machines])
            unknown = await wake(conn, bound)
            left = await self.allocations.elsewhere(conn, bound)
        for allocation, machine in left.items():
            # Bound by a late call after the request had gone on to another machine. The allocation itself, which is
            # woken as well, only lets go of the machine that it had last. One that is locked is asked for again.
            log.warning("allocation.left_binding", machine=machine, allocation=allocation)
            with suppress(NotFound, FailedPrecondition):
                await self.clients.machines.UnbindMachine(UnbindMachineRequest(machine=machine, allocation=allocation))
        for allocation in unknown:
            # Not undone: after a restored backup these may be tenants' machines.
            UNKNOWN_BINDINGS.inc()
            log.error("allocation.unknown_binding", machine=bound[allocation], allocation=allocation)
