"""What time alone changes, done in the background: liveliness, expired leases, sender ids that are too old to matter.

Every replica runs it; they step over each other's rows. A pass that fails is logged and tried again at the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

from metal_kit.db import Connection, Database
from metal_kit.errors import Problem
from metal_kit.logs import get_logger

from metal_inventory.store.events import EventStore
from metal_inventory.store.sweeps import SweepStore

log = get_logger(__name__)

RETRY_HORIZON = timedelta(days=1)
"""How long a sender may repeat an event and still have it recorded once."""

Batch = Callable[[Connection], Awaitable[tuple[int, bool]]]


class Upkeep:
    """The background loops of inventory."""

    def __init__(self, db: Database, stopping: asyncio.Event, sweeps: SweepStore, events: EventStore) -> None:
        self._db = db
        self._stopping = stopping
        self._sweeps = sweeps
        self._events = events

    async def liveliness(self, every: timedelta) -> None:
        """Mark machines that fell silent."""
        await self._repeat("liveliness", self._sweeps.liveliness, every)

    async def leases(self, every: timedelta) -> None:
        """End waiting leases that nobody renewed."""
        await self._repeat("waiting leases", self._sweeps.leases, every)

    async def received_ids(self, every: timedelta) -> None:
        """Forget the ids of events that nobody will repeat any more."""

        async def forget(conn: Connection) -> tuple[int, bool]:
            count = await self._events.forget_ids(conn, RETRY_HORIZON)
            return count, count > 0

        await self._repeat("received ids", forget, every)

    async def _repeat(self, name: str, batch: Batch, every: timedelta) -> None:
        while not self._stopping.is_set():
            try:
                await self._drain(name, batch)
            except Problem as problem:
                log.warning("upkeep.failed", what=name, reason=problem.reason)
            try:
                async with asyncio.timeout(every.total_seconds()):
                    await self._stopping.wait()
            except TimeoutError:
                continue

    async def _drain(self, name: str, batch: Batch) -> None:
        total, more = 0, True
        while more and not self._stopping.is_set():
            async with self._db.transaction(purpose=f"upkeep: {name}") as conn:
                changed, more = await batch(conn)
            total += changed
        if total:
            log.info("upkeep.changed", what=name, count=total)
