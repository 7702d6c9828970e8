"""Things in a table and a reconciler for them: what the tests of the controller work with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from metal_kit.backoff import Backoff
from metal_kit.controller import (
    Go,
    Outcome,
    StaleSnapshot,
    enqueue,
)
from metal_kit.db import Connection, Database
from metal_kit.errors import Unavailable
from metal_kit.guard import refuse_in_transaction

Eventually = Callable[..., Awaitable[None]]
Act = Callable[["Thing"], Awaitable[Outcome]]
FAST = Backoff(timedelta(milliseconds=10), timedelta(milliseconds=50))
SECOND = timedelta(seconds=1)


@dataclass(frozen=True)
class Thing:
    key: str
    phase: str
    version: int
    note: str


@dataclass
class Things:
    """A reconciler of rows of the table `thing`, whose `act` the test gives."""

    do: Act
    kind: str = "thing"
    deadlines: Mapping[str, timedelta] = field(default_factory=dict)
    saved: list[tuple[str, Outcome, bool]] = field(default_factory=list)

    async def load(self, connection: Connection, key: str) -> Thing | None:
        row = await connection.fetchrow("SELECT key, phase, version, note FROM thing WHERE key = $1", key)
        return Thing(**dict(row)) if row else None

    async def act(self, snapshot: Thing) -> Outcome:
        refuse_in_transaction("a call of the test")
        return await self.do(snapshot)

    async def save(self, connection: Connection, snapshot: Thing, outcome: Outcome, *, overdue: bool) -> None:
        phase = outcome.phase if isinstance(outcome, Go) else snapshot.phase
        status = await connection.execute(
            "UPDATE thing SET phase = $3, version = version + 1 WHERE key = $1 AND version = $2",
            *(snapshot.key, snapshot.version, phase),
        )
        if status == "UPDATE 0":
            raise StaleSnapshot
        self.saved.append((snapshot.key, outcome, overdue))


class SweptThings(Things):
    async def sweep(self, connection: Connection) -> list[str]:
        return [row["key"] for row in await connection.fetch("SELECT key FROM thing WHERE phase <> 'REST'")]


async def add(db: Database, *keys: str, queued: bool = True) -> None:
    async with db.transaction(purpose="test: add") as connection:
        await connection.executemany("INSERT INTO thing (key) VALUES ($1)", [(key,) for key in keys])
        if queued:
            await enqueue(connection, "thing", keys)


async def queue_row(db: Database, key: str) -> dict[str, Any] | None:
    async with db.connection() as connection:
        row = await connection.fetchrow("SELECT * FROM reconcile_queue WHERE key = $1", key)
    return dict(row) if row else None


async def phase_of(db: Database, key: str) -> str:
    async with db.connection() as connection:
        return str(await connection.fetchval("SELECT phase FROM thing WHERE key = $1", key))


async def gone(db: Database, key: str) -> bool:
    return await queue_row(db, key) is None


async def blocked(db: Database) -> bool:
    async with db.connection() as connection:
        return bool(
            await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        )


async def has(db: Database, key: str, **columns: object) -> bool:
    row = await queue_row(db, key)
    return row is not None and all(row[name] == value for name, value in columns.items())


async def reason_is(db: Database, key: str, reason: str) -> bool:
    row = await queue_row(db, key)
    return row is not None and row["reason"] == reason and row["holder"] is None


async def empty(db: Database) -> bool:
    async with db.connection() as connection:
        return not bool(await connection.fetchval("SELECT EXISTS (SELECT FROM reconcile_queue)"))


async def adds(db: Database, key: str) -> bool:
    try:
        await add(db, key)
    except Unavailable:
        return False
    return True
