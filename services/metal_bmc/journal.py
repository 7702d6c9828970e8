"""Answers of BMCs that say what was known: kept for a moment and written together, in one statement for all.

Nobody decides by them, for nothing is new, so nobody waits for them. A process that is killed loses a second of
"it still answers"; the next poll says it again.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from metal_kit.db import Database

from metal_bmc.endpoint import Endpoint
from metal_bmc.store import ScheduleStore, Unchanged

_MOST = 20_000


class Journal:
    """`write` it now and then. At most 20,000 BMCs are in it: beyond, the oldest answers are dropped."""

    def __init__(self, db: Database) -> None:
        self._db, self._schedule = db, ScheduleStore()
        self._answers: dict[str, Unchanged] = {}

    def add(self, endpoint: Endpoint, at: datetime, after: timedelta | None) -> None:
        """A BMC answered as before; `after` is when it is to be polled again, None leaves that as it is."""
        earlier = self._answers.pop(endpoint.machine, None)
        if after is None and earlier is not None:
            after = earlier.after
        if len(self._answers) >= _MOST:
            del self._answers[next(iter(self._answers))]
        self._answers[endpoint.machine] = Unchanged(endpoint, at, after)

    async def write(self) -> None:
        """Write all. If that fails they are lost: a claim of a poll runs out, and the machine is due again."""
        if self._answers:
            answers, self._answers = list(self._answers.values()), {}
            async with self._db.connection() as connection:
                await self._schedule.unchanged(connection, answers)
