"""What happened to a key, for the question "what is it doing, and does it need me?".

A line says what is new. The same outcome for the same reason in the same phase only counts the last line up, so that an
object that waits for a week has one line and not sixty thousand.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from metal_kit.controller.outcome import Go, Outcome
from metal_kit.db import Connection

MAX_MESSAGE = 1000

_REPEAT = """
    UPDATE reconcile_history AS h
    SET times = times + 1, last_at = clock_timestamp(), message = $6, worker = $8, fence = $9
    FROM (SELECT max(id) AS id FROM reconcile_history WHERE kind = $1 AND key = $2) AS last
    WHERE h.id = last.id AND (h.phase, h.outcome, h.reason, h.overdue) = ($3, $4, $5, $7)
    RETURNING h.id
"""
_ADD = """
    INSERT INTO reconcile_history (kind, key, phase, outcome, reason, message, overdue, worker, fence)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""
_READ = """
    SELECT phase, outcome, reason, message, overdue, worker, times, first_at, last_at FROM reconcile_history
    WHERE kind = $1 AND key = $2 ORDER BY id DESC LIMIT $3
"""


@dataclass(frozen=True)
class HistoryEntry:
    """One line: `outcome` (done, wait, go, failed) came `times` times between `first_at` and `last_at`.

    `phase` is the one the object was in when it came.
    """

    phase: str
    outcome: str
    reason: str
    message: str
    overdue: bool
    worker: str
    times: int
    first_at: datetime
    last_at: datetime


async def record(
    connection: Connection, kind: str, key: str, outcome: Outcome, *, phase: str, overdue: bool, worker: str, fence: int
) -> None:
    """Write down an outcome, in the transaction that makes it true."""
    message = outcome.message or (f"enters {outcome.phase}" if isinstance(outcome, Go) else "")
    name = type(outcome).__name__.lower()
    values = (kind, key, phase, name, outcome.reason, message[:MAX_MESSAGE], overdue, worker, fence)
    if await connection.fetchval(_REPEAT, *values) is None:
        await connection.execute(_ADD, *values)


async def read_history(connection: Connection, kind: str, key: str, *, limit: int = 100) -> list[HistoryEntry]:
    """The newest `limit` lines of a key, newest first."""
    return [HistoryEntry(**dict(row)) for row in await connection.fetch(_READ, kind, key, limit)]
