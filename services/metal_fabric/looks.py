"""Looks at the database for all streams of a replica at once.

Each stream looks once a second whether its leaf shall have something newer, in case a notification was lost. A
statement a stream would keep a thousand idle leaves' fabric busy; those that look at the same moment share one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from metal_kit.db import Database

from metal_fabric.store import SyncStore
from metal_fabric.store.syncs import Position

# Seconds in which others may join a look. Streams look at full seconds, so those that were not woken come together.
GATHER = 0.002
_Found = Mapping[str, Position]


class Looks:
    """Shares looks among streams; `close` it when the last one has ended."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._syncs = SyncStore()
        self._ids: set[str] = set()
        self._gathering: asyncio.Task[_Found] | None = None
        self._running: set[asyncio.Task[_Found]] = set()

    async def position(self, switch_id: str) -> Position | None:
        """Where the leaf is now, not before this was asked; None when the switch is gone. Raises as the database."""
        if self._gathering is None:
            self._ids = set()
            self._gathering = asyncio.create_task(self._look(self._ids), name="leaf positions")
            self._running.add(self._gathering)
            self._gathering.add_done_callback(self._ended)
        self._ids.add(switch_id)
        # A stream that ends takes only its own question with it.
        return (await asyncio.shield(self._gathering)).get(switch_id)

    async def close(self) -> None:
        """End what still runs."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _look(self, ids: set[str]) -> _Found:
        try:
            await asyncio.sleep(GATHER)
        finally:
            # Who asks from now on wants to know of what is committed later than this look begins.
            self._gathering = None
        async with self._db.connection() as conn:
            return await self._syncs.positions(conn, ids)

    def _ended(self, task: asyncio.Task[_Found]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            # Whoever asked gets it; when all of them have ended meanwhile, nobody has to.
            task.exception()
