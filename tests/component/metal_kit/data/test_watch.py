"""Watching: nothing missed, nothing backwards, expiry, wake-ups, stopping."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
import pytest
from metal_kit import sweep
from metal_kit.db import Connection, Database
from metal_kit.errors import InvalidArgument, OutOfRange
from metal_kit.outbox import emit
from metal_kit.sweep import Retention
from metal_kit.watch import Change, current_position, follow
from metalplane.common.v1.condition_pb2 import Condition

Eventually = Callable[..., Awaitable[None]]


async def change(
    connection: Connection, entity_id: str, version: int = 1, *, entity: str = "thing", deleted: bool = False
) -> None:
    await emit(
        connection,
        subject="metalplane.test.thing.changed",
        entity=entity,
        entity_id=entity_id,
        version=version,
        payload=Condition(type=entity_id),
        scope="project-1",
        deleted=deleted,
    )


async def committed(db: Database, entity_id: str, version: int = 1, **more: object) -> None:
    async with db.transaction(purpose="test") as connection:
        await change(connection, entity_id, version, **more)  # type: ignore[arg-type]


async def now(db: Database) -> str:
    async with db.connection() as connection:
        return await current_position(connection)


@asynccontextmanager
async def watching(db: Database, position: str, *, poll_seconds: float = 2) -> AsyncIterator[list[Change]]:
    """The changes that a watcher has been told so far."""
    stopping = asyncio.Event()
    told: list[Change] = []

    async def watch() -> None:
        async for changes in follow(db, stopping, entity="thing", position=position, poll_seconds=poll_seconds):
            told.extend(changes)

    task = asyncio.create_task(watch())
    try:
        yield told
    finally:
        stopping.set()
        async with asyncio.timeout(5):
            await task


async def first_of(db: Database, position: str) -> list[Change]:
    """What a watcher from `position` on is told first."""
    return await anext(aiter(follow(db, asyncio.Event(), entity="thing", position=position)))


@asynccontextmanager
async def second_connection(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(url, server_settings={"search_path": "kit"})
    try:
        yield connection
    finally:
        await connection.close()


async def test_a_watcher_is_told_at_once_and_everything(db: Database, eventually: Eventually) -> None:
    async with watching(db, await now(db)) as told:
        await committed(db, "warm-up")
        await eventually(lambda: len(told) == 1)
        before = asyncio.get_running_loop().time()
        await committed(db, "a", 7, deleted=True)
        await eventually(lambda: len(told) == 2)
        assert asyncio.get_running_loop().time() - before < 0.5, "far below the poll of two seconds"
    got = told[1]
    assert (got.entity_id, got.version, got.scope, got.deleted) == ("a", 7, "project-1", True)
    assert Condition.FromString(got.payload).type == "a"


async def test_other_entities_and_earlier_changes_are_not_told(db: Database, eventually: Eventually) -> None:
    await committed(db, "earlier")
    async with watching(db, await now(db)) as told:
        await committed(db, "other", entity="network")
        await committed(db, "mine")
        await eventually(lambda: bool(told))
    assert [each.entity_id for each in told] == ["mine"]


async def test_a_watch_resumes_after_any_change(db: Database, eventually: Eventually) -> None:
    start = await now(db)
    for number in range(5):
        await committed(db, f"{number}")
    async with watching(db, start) as told:
        await eventually(lambda: len(told) == 5)
    for index, each in enumerate(told):
        async with watching(db, each.position) as rest:
            await eventually(lambda index=index, rest=rest: len(rest) == 4 - index)
        assert [later.entity_id for later in rest] == [later.entity_id for later in told[index + 1 :]]


async def test_nothing_falls_between_the_position_and_a_list(
    db: Database, kit_url: str, eventually: Eventually
) -> None:
    """A transaction that is open while the position is taken is not in the list, so the watch has to tell it."""
    async with second_connection(kit_url) as other:
        transaction = other.transaction()
        await transaction.start()
        await change(other, "open")
        position = await now(db)
        await transaction.commit()
    async with watching(db, position) as told:
        await eventually(lambda: [each.entity_id for each in told] == ["open"])


async def test_a_late_commit_with_a_smaller_number_is_not_skipped(
    db: Database, kit_url: str, eventually: Eventually
) -> None:
    async with second_connection(kit_url) as other, watching(db, await now(db)) as told:
        transaction = other.transaction()
        await transaction.start()
        await change(other, "late")
        await committed(db, "early")
        await committed(db, "early-too")
        await asyncio.sleep(0.2)  # the watcher looks several times meanwhile
        assert told == [], "the log is not final yet"
        await transaction.commit()
        await eventually(lambda: len(told) == 3)
    assert [each.entity_id for each in told] == ["late", "early", "early-too"]


async def test_a_watcher_never_goes_back_in_time(db: Database, kit_url: str, eventually: Eventually) -> None:
    """The transaction that makes version 2 is older than the one that makes version 1, and waits for its row lock."""
    async with second_connection(kit_url) as other, watching(db, await now(db)) as told:
        old = other.transaction()
        await old.start()
        await other.fetchval("SELECT pg_current_xact_id()")
        await committed(db, "x", 1)
        await change(other, "x", 2)
        await old.commit()
        await committed(db, "end")
        await eventually(lambda: bool(told) and told[-1].entity_id == "end")
    assert [(each.entity_id, each.version) for each in told] == [("x", 2), ("end", 1)]


async def test_an_id_that_comes_back_is_told_although_its_version_is_lower(
    db: Database, eventually: Eventually
) -> None:
    async with watching(db, await now(db)) as told:
        await committed(db, "x", 9, deleted=True)
        await committed(db, "x", 1)
        await eventually(lambda: len(told) == 2)
    assert [(each.version, each.deleted) for each in told] == [(9, True), (1, False)]


async def test_concurrent_writers_are_told_completely_and_in_order_of_each_object(
    db: Database, kit_url: str, eventually: Eventually
) -> None:
    async with db.connection() as connection:
        await connection.execute("CREATE TABLE counter (id text PRIMARY KEY, n int NOT NULL DEFAULT 0)")
        await connection.execute("INSERT INTO counter SELECT 'c' || n FROM generate_series(0, 4) AS n")
    chance = random.Random(7)

    async def write() -> None:
        for _ in range(40):
            key = f"c{chance.randrange(5)}"
            async with db.transaction(purpose="test") as connection:
                if chance.random() < 0.5:  # take a transaction number before the row's lock
                    await connection.fetchval("SELECT pg_current_xact_id()")
                await asyncio.sleep(chance.random() * 0.002)
                version = await connection.fetchval("UPDATE counter SET n = n + 1 WHERE id = $1 RETURNING n", key)
                await change(connection, key, version)

    async with watching(db, await now(db)) as told:
        await asyncio.gather(*(write() for _ in range(6)))
        async with db.connection() as connection:
            last = {row["id"]: row["n"] for row in await connection.fetch("SELECT id, n FROM counter")}
        await committed(db, "end")
        await eventually(lambda: bool(told) and told[-1].entity_id == "end")
    for key, final in last.items():
        versions = [each.version for each in told if each.entity_id == key]
        assert versions == sorted(set(versions))
        assert versions[-1] == final


async def test_a_position_whose_changes_are_gone_has_expired(db: Database) -> None:
    start = await now(db)
    for number in range(3):
        await committed(db, f"{number}")
    await sweep.sweep(db, Retention(changes=timedelta(0)))
    with pytest.raises(OutOfRange) as caught:
        await first_of(db, start)
    assert caught.value.reason == "WATCH_POSITION_EXPIRED"


async def test_a_quiet_watch_does_not_expire_because_others_are_busy(db: Database, eventually: Eventually) -> None:
    async with watching(db, await now(db), poll_seconds=0.05) as told:
        for number in range(3):
            await committed(db, f"{number}", entity="network")
            await asyncio.sleep(0.15)
            await sweep.sweep(db, Retention(changes=timedelta(0)))
        await committed(db, "mine")
        await eventually(lambda: [each.entity_id for each in told] == ["mine"])


async def test_a_position_from_the_future_has_expired(db: Database) -> None:
    """After a restore from a backup, clients hold positions that the database has yet to reach."""
    with pytest.raises(OutOfRange):
        await first_of(db, f"{1 << 40}:5")


@pytest.mark.parametrize(
    "position", ["x", "1", "1:", ":1", "-1:2", "1:2:3", f"{1 << 64}:1", f"1:{1 << 63}", "\uff11:\uff12"]
)
async def test_what_is_no_position_is_refused(db: Database, position: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await first_of(db, position)
    assert caught.value.field == "position"


async def test_a_batch_that_is_full_is_followed_by_the_next(db: Database, eventually: Eventually) -> None:
    start = await now(db)
    async with db.transaction(purpose="test") as connection:
        for number in range(450):
            await change(connection, f"{number:03}")
    async with watching(db, start) as told:
        await eventually(lambda: len(told) == 450)
    assert [each.entity_id for each in told] == [f"{number:03}" for number in range(450)]


async def test_stopping_ends_an_idle_watch_at_once(db: Database) -> None:
    before = asyncio.get_running_loop().time()
    async with watching(db, "", poll_seconds=60):
        await asyncio.sleep(0)
    assert asyncio.get_running_loop().time() - before < 2
