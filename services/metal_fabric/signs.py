"""Writes the signs of life of all streams of a replica together.

Each leaf is heard of every few seconds. A statement a leaf would make hundreds a second of a thousand leaves that have
nothing to say; those of half a second share one. Nobody waits for it: what could not be written is tried again with
what was heard meanwhile.
"""

from __future__ import annotations

import asyncio

import asyncpg
from metal_kit.db import Database
from metal_kit.errors import Problem
from metal_kit.logs import get_logger

from metal_fabric.store import SyncStore

log = get_logger(__name__)

# Seconds; little beside the silence after which a stream counts as gone (`store.syncs.SILENCE`).
GATHER = 0.5
# One statement that is stuck must not make all leaves of the replica seem silent: it is given up, and tried anew.
WRITE_SECONDS = 3.0
# Longest pause after failures, which doubles from GATHER.
MAX_PAUSE = 4.0


class Signs:
    """Collects signs of life and writes them; `close` it when the last stream has ended."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._syncs = SyncStore()
        # One a stream, so it is bounded by their number.
        self._heard: dict[str, str] = {}
        self._writing: asyncio.Task[None] | None = None

    def heard(self, switch_id: str, session: str) -> None:
        """The leaf was heard of on this stream; that is written soon."""
        self._heard[switch_id] = session
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(), name="signs of life")

    def ended(self, switch_id: str, session: str) -> None:
        """Nothing more is written of this stream."""
        if self._heard.get(switch_id) == session:
            del self._heard[switch_id]

    async def close(self) -> None:
        """End what still runs."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait([self._writing])

    async def _write(self) -> None:
        pause = GATHER
        try:
            while self._heard:
                await asyncio.sleep(pause)
                heard, self._heard = self._heard, {}
                try:
                    async with asyncio.timeout(WRITE_SECONDS), self._db.connection() as conn:
                        written = await self._syncs.seen(conn, heard)
                except (Problem, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
                    # The streams look at the database themselves, and end when it stays away. A session that has ended
                    # meanwhile is no row's any more.
                    log.warning("signs.not_written", leaves=len(heard), error=repr(error))
                    self._heard = heard | self._heard
                    pause = min(pause * 2, MAX_PAUSE)
                    continue
                pause = GATHER
                # Somebody holds the rest just now. What was heard since is newer.
                self._heard = {name: heard[name] for name in heard.keys() - written} | self._heard
        finally:
            self._writing = None
