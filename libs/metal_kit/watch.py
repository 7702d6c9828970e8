"""Follow the changes of a service's objects from a position on; what the Watch RPCs stand on.

A position is `xid:id` and means "everything up to here is known". Read in the order (xid, id) and only below the oldest
running transaction, the log is final: nothing can appear before a position that was handed out. The order of one
object's changes is the order of their ids; where an overlapping transaction would show them the other way round, the
older one is left out, so that a watcher never goes back in time.

Changes are kept for a while (`metal_kit.sweep`). Whoever comes later is told to list again. This is for clients of the
same service; other services consume events.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from asyncpg import Record

from metal_kit.db import Connection, Database
from metal_kit.errors import InvalidArgument, OutOfRange
from metal_kit.listen import wake_at
from metal_kit.outbox import EVENTS_TOPIC

BATCH = 200
POLL_SECONDS = 2.0
_HIDDEN_POLL_SECONDS = 0.02
_POSITION = re.compile(r"(\d{1,20}):(\d{1,19})", re.ASCII)

# One statement, so that rows, horizon and floor are of one snapshot; without rows there is one line of nulls.
_READ = """
    WITH edge AS (
        SELECT pg_snapshot_xmin(pg_current_snapshot()) AS xmin, floor.xid AS floor_xid, floor.id AS floor_id,
            EXISTS (
                SELECT FROM change WHERE entity = $1 AND xid >= pg_snapshot_xmin(pg_current_snapshot())
            ) AS hidden
        FROM change_floor AS floor
    )
    SELECT edge.*, c.*,
        EXISTS (
            SELECT FROM change AS later
            WHERE later.entity = $1 AND later.entity_id = c.entity_id AND later.id > c.id AND later.xid < c.xid
        ) AS overtaken
    FROM edge LEFT JOIN LATERAL (
        SELECT xid, id, entity_id, version, scope, deleted, payload FROM change
        WHERE entity = $1 AND (xid, id) > ($2::xid8, $3::bigint) AND xid < edge.xmin
        ORDER BY xid, id LIMIT $4
    ) AS c ON true
    ORDER BY c.xid, c.id
"""


@dataclass(frozen=True)
class Change:
    """One change; `position` resumes after it, `payload` is the serialised message that was emitted."""

    position: str
    entity_id: str
    version: int
    scope: str
    deleted: bool
    payload: bytes


async def current_position(connection: Connection) -> str:
    """The position of now. Ask before listing: then nothing falls between the list and the watch."""
    xmin = await connection.fetchval("SELECT pg_snapshot_xmin(pg_current_snapshot())")
    return f"{xmin}:0"


async def follow(
    db: Database, stopping: asyncio.Event, *, entity: str, position: str, poll_seconds: float = POLL_SECONDS
) -> AsyncIterator[list[Change]]:
    """Yield the changes of `entity` after `position` in batches, as they come, until `stopping` is set.

    Args:
        position: of a Change or of `current_position`; empty for "from now on".

    Raises:
        InvalidArgument: INVALID_WATCH_POSITION, not a position.
        OutOfRange: WATCH_POSITION_EXPIRED, changes after it were removed (or it is of another database): list again.
    """
    with db.listener.subscribe(EVENTS_TOPIC) as wakeup:
        stopper = asyncio.create_task(wake_at(stopping, wakeup), name=f"watch {entity} stop")
        try:
            if not position:
                async with db.connection() as connection:
                    position = await current_position(connection)
            place = parse_position(position)
            while not stopping.is_set():
                async with db.connection() as connection:
                    rows = await connection.fetch(_READ, entity, *place, BATCH)
                edge = rows[0]
                if place < (edge["floor_xid"], edge["floor_id"]) or place[0] > edge["xmin"]:
                    raise OutOfRange("WATCH_POSITION_EXPIRED", "changes after this position are gone; list again")
                found = [row for row in rows if row["id"] is not None]
                # After an unfilled batch everything below the horizon is known. Standing still at the last row of a
                # quiet entity would let retention, which the busy ones drive, overtake us.
                full = len(found) == BATCH
                place = (found[-1]["xid"], found[-1]["id"]) if full else max(place, (edge["xmin"], 0))
                changes = [_change(row) for row in found if not row["overtaken"]]
                if changes:
                    yield changes
                if not full and not stopping.is_set():
                    wait = _HIDDEN_POLL_SECONDS if edge["hidden"] else poll_seconds
                    await wakeup.wait(wait * random.uniform(0.8, 1.2))
        finally:
            stopper.cancel()


def parse_position(text: str) -> tuple[int, int]:
    """The two numbers of a position. Raises InvalidArgument INVALID_WATCH_POSITION."""
    match = _POSITION.fullmatch(text)
    if match is None or int(match[1]) >= 1 << 64 or int(match[2]) >= 1 << 63:
        raise InvalidArgument(
            "INVALID_WATCH_POSITION", "must be a position that a list or a watch returned", field="position"
        )
    return int(match[1]), int(match[2])


def _change(row: Record) -> Change:
    return Change(
        position=f"{row['xid']}:{row['id']}",
        entity_id=row["entity_id"],
        version=row["version"],
        scope=row["scope"],
        deleted=row["deleted"],
        payload=row["payload"],
    )
