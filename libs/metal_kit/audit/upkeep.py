"""What a service does for its audit log beside the calls: note the head where the database does not reach, and remove
what has been kept long enough.

A line with the head's hash every ten minutes is an anchor in the service's logs: whoever rewrites the chain would have
to rewrite them too. Every replica does both; a second removal finds nothing to do.
"""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime, timedelta

import asyncpg
from metalplane.audit.v1.audit_pb2 import AuditEntry, AuditPhase

from metal_kit.audit import store
from metal_kit.audit.chain import LEAST_KEPT
from metal_kit.backoff import pause
from metal_kit.db import Database, is_outage
from metal_kit.errors import Problem
from metal_kit.ids import uuid7
from metal_kit.logs import get_logger

log = get_logger("audit")

EVERY = timedelta(minutes=10)
# Entries are removed a day's worth at a time: each removal is an entry itself.
SLACK = timedelta(days=1)


async def run(db: Database, keep: timedelta, stopping: asyncio.Event, *, every: timedelta = EVERY) -> None:
    """Note the head and remove old entries until `stopping` is set, once more at the end. Raises ValueError when
    entries were to be kept for less than the time in which anchors are relied on."""
    if keep < LEAST_KEPT:
        raise ValueError(f"the audit log is kept for at least {LEAST_KEPT.days} days")
    noted = -1
    while True:
        try:
            noted = await note_head(db, noted)
            if not stopping.is_set():
                await retain(db, keep)
        except (Problem, asyncpg.PostgresError, OSError, TimeoutError) as error:
            if is_outage(error):
                log.warning("audit.upkeep_waits", service=db.schema, error=str(error))
            else:
                log.exception("audit.upkeep_failed", service=db.schema)
        if stopping.is_set():
            return
        await pause(stopping, every * random.uniform(0.5, 1.5))


async def note_head(db: Database, noted: int = -1) -> int:
    """Log the head of the chain when it has moved; its sequence number."""
    async with db.connection() as connection:
        ends = await store.ends(connection)
    if ends.head_sequence != noted:
        log.info("audit.head", service=db.schema, sequence=ends.head_sequence, hash=ends.head_hash.hex())
    return ends.head_sequence


async def retain(db: Database, keep: timedelta) -> int:
    """Remove what is older than `keep`, once a day's worth has gathered; the number of entries removed."""
    limit = datetime.fromtimestamp(time.time(), UTC) - keep
    async with db.connection() as connection:
        oldest = await store.oldest(connection)
    if oldest is None or oldest >= limit - SLACK:
        return 0
    removed = 0
    while True:
        entry = AuditEntry(call=uuid7(), phase=AuditPhase.AUDIT_PHASE_PRUNED, service=db.schema)
        entry.time.GetCurrentTime()
        async with db.transaction(purpose="audit retention") as connection:
            batch = await store.prune(connection, limit, entry)
        removed += batch
        if not batch:
            log.info("audit.pruned", service=db.schema, entries=removed)
            return removed
