"""Removes what has served its time: remembered answers, the watchers' log, history, traces of objects that are gone.

Every replica does it; the statements are small, skip what another removes, and can be repeated. Parked events and the
outbox are never swept: both wait for somebody.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from datetime import timedelta

import asyncpg

from metal_kit.backoff import pause
from metal_kit.db import Connection, Database, is_outage
from metal_kit.errors import Problem
from metal_kit.idempotency import RETENTION as IDEMPOTENCY
from metal_kit.logs import get_logger

log = get_logger(__name__)

EVERY = timedelta(minutes=1)
_BATCH = 2000


@dataclass(frozen=True)
class Retention:
    """How long things are kept."""

    idempotency: timedelta = IDEMPOTENCY
    changes: timedelta = timedelta(hours=1)
    history: timedelta = timedelta(days=90)
    # Longer than the bus keeps events, so that none can come back from before an object's end.
    ended: timedelta = timedelta(days=14)


_OLD_ANSWERS = """
    DELETE FROM idempotency WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM idempotency WHERE created_at < now() - $1::interval LIMIT $2 FOR UPDATE SKIP LOCKED
    ))
"""
_OLD_HISTORY = """
    DELETE FROM reconcile_history WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM reconcile_history WHERE last_at < now() - $1::interval LIMIT $2 FOR UPDATE SKIP LOCKED
    ))
"""
_OLD_ENDS = """
    DELETE FROM consumed WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM consumed WHERE deleted AND event_time < now() - $1::interval LIMIT $2 FOR UPDATE SKIP LOCKED
    ))
"""
# The floor rises in the same statement: a watcher either sees the rows or that they are gone. By age, as the index is,
# and not by position: where the two differ, a watcher that is as late as this is told so a moment too early.
_OLD_CHANGES = """
    WITH old AS (
        DELETE FROM change WHERE id = ANY (ARRAY(
            SELECT id FROM change WHERE created_at < now() - $1::interval ORDER BY created_at LIMIT $2
            FOR UPDATE SKIP LOCKED
        )) RETURNING xid, id
    ), top AS (SELECT xid, id FROM old ORDER BY xid DESC, id DESC LIMIT 1), raised AS (
        UPDATE change_floor AS floor SET xid = top.xid, id = top.id
        FROM top WHERE (floor.xid, floor.id) < (top.xid, top.id)
    )
    SELECT count(*) FROM old
"""


async def run(
    db: Database, stopping: asyncio.Event, *, retention: Retention | None = None, every: timedelta = EVERY
) -> None:
    """Sweep at intervals until `stopping` is set; a task of every replica."""
    kept = retention or Retention()
    while not stopping.is_set():
        # First the pause: replicas that start together should not sweep together.
        await pause(stopping, every * random.uniform(0.5, 1.5))
        try:
            while not stopping.is_set() and await sweep(db, kept) >= _BATCH:
                pass
        except (Problem, asyncpg.PostgresError, OSError, TimeoutError) as error:
            if is_outage(error):
                log.warning("sweep.waits", service=db.schema, error=str(error))
            else:
                log.exception("sweep.failed", service=db.schema)


async def sweep(db: Database, retention: Retention) -> int:
    """Remove one batch of each; the largest number that one statement removed."""
    counts: list[int] = []
    for statement, span in (
        (_OLD_ANSWERS, retention.idempotency),
        (_OLD_HISTORY, retention.history),
        (_OLD_ENDS, retention.ended),
    ):
        async with db.connection() as connection:
            status = await connection.execute(statement, span, _BATCH)
        counts.append(int(status.rpartition(" ")[2]))
    async with db.transaction(purpose="sweep changes") as connection:
        counts.append(await _sweep_changes(connection, retention.changes))
    return max(counts)


async def _sweep_changes(connection: Connection, span: timedelta) -> int:
    removed: int = await connection.fetchval(_OLD_CHANGES, span, _BATCH)
    return removed
