"""Answers of BMCs that say what was known: kept for a moment and written together, in one statement for all.

Nobody decides by them, for nothing is new, so nobody waits for them. A process that is killed loses a second of
"it still answers"; the next poll says it again.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from metal_kit.db import Database

from metal_bmc.endpoint import Endpoint
from metal_bmc.ownership import Ownership
from metal_bmc.sharing import Tenure
from metal_bmc.store import ScheduleStore, Unchanged

_MOST = 20_000


class Journal:
    """`write` it now and then. At most 20,000 BMCs are in it: beyond, the oldest answers are dropped."""

    def __init__(self, db: Database, ownership: Ownership) -> None:
        self._db, self._ownership, self._schedule = db, ownership, ScheduleStore()
        self._answers: dict[str, Unchanged] = {}

    def add(self, endpoint: Endpoint, tenure: Tenure, at: datetime, after: timedelta | None) -> None:
        """A BMC answered as before; `after` is when it is to be polled again, None leaves that as it is."""
        earlier = self._answers.pop(endpoint.machine, None)
        if after is None and earlier is not None:
            after = earlier.after
        if len(self._answers) >= _MOST:
            del self._answers[next(iter(self._answers))]
        self._answers[endpoint.machine] = Unchanged(endpoint, tenure, at, after)

    async def write(self) -> None:
        """Write all. If that fails they are lost: a claim of a poll runs out, and the machine is due again."""
        if self._answers:
            answers, self._answers = list(self._answers.values()), {}
            async with self._db.transaction(purpose="note that BMCs still say the same") as connection:
                held = await self._ownership.still_held(connection, {each.tenure for each in answers})
                await self._schedule.unchanged(connection, [each for each in answers if each.tenure in held])
