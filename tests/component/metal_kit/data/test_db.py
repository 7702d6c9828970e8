"""The database wrapper, remembered requests, leases, the listener and the sweep, against a real Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from metal_kit import sweep
from metal_kit.db import Connection, Database
from metal_kit.errors import Aborted, InvalidArgument, Unavailable
from metal_kit.guard import in_transaction, refuse_in_transaction
from metal_kit.idempotency import remember, remembered
from metal_kit.lease import Lease, new_holder
from metal_kit.migrations import migrate
from metal_kit.sweep import Retention
from metal_lab.servers import Postgres
from metalplane.common.v1.condition_pb2 import Condition

Eventually = Callable[..., Awaitable[None]]


# -- transactions


async def test_outbound_calls_are_refused_inside_and_allowed_after_a_transaction(db: Database) -> None:
    async with db.transaction(purpose="give it away") as connection:
        with pytest.raises(RuntimeError, match="inside the transaction 'give it away'"):
            refuse_in_transaction("ipam.AcquireIps")
        await connection.execute("SELECT 1")
    refuse_in_transaction("ipam.AcquireIps")
    with pytest.raises(asyncpg.UndefinedTableError):
        async with db.transaction(purpose="fails") as connection:
            await connection.execute("SELECT * FROM nowhere")
    refuse_in_transaction("ipam.AcquireIps")


async def test_the_guard_holds_in_tasks_that_a_transaction_starts_and_in_no_other(db: Database) -> None:
    async def purpose() -> str:
        return in_transaction.get()

    outside = asyncio.Event()

    async def other() -> str:
        await outside.wait()
        return in_transaction.get()

    bystander = asyncio.create_task(other())
    async with db.transaction(purpose="mine"):
        outside.set()
        assert await asyncio.create_task(purpose()) == "mine"
        assert await bystander == ""


async def test_transactions_do_not_nest(db: Database) -> None:
    async with db.transaction(purpose="outer"):
        with pytest.raises(RuntimeError, match="'inner' opened inside the transaction 'outer'"):
            async with db.transaction(purpose="inner"):
                pytest.fail("opened")


async def test_a_transaction_that_raises_leaves_nothing(db: Database) -> None:
    async def fail() -> None:
        async with db.transaction(purpose="test") as connection:
            await connection.execute("INSERT INTO lease (name, holder, epoch, expires_at) VALUES ('x', 'y', 1, now())")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with db.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM lease") == 0


async def test_jsonb_comes_and_goes_as_python_values(db: Database) -> None:
    value = {"rack": "r1", "n": [1, 2.5, None, True], "ü": "ß"}
    async with db.connection() as connection:
        assert await connection.fetchval("SELECT $1::jsonb", value) == value


async def test_a_deadlock_is_a_lost_race_and_not_an_outage(db: Database) -> None:
    async with db.connection() as connection:
        await connection.execute("CREATE TABLE row (id int PRIMARY KEY); INSERT INTO row VALUES (1), (2)")
    ready = asyncio.Barrier(2)

    async def cross(first: int, second: int) -> None:
        async with db.transaction(purpose="cross") as connection:
            await connection.execute("SELECT FROM row WHERE id = $1 FOR UPDATE", first)
            await ready.wait()
            await connection.execute("SELECT FROM row WHERE id = $1 FOR UPDATE", second)

    results = await asyncio.gather(cross(1, 2), cross(2, 1), return_exceptions=True)
    [lost] = [result for result in results if result is not None]
    assert isinstance(lost, Aborted)
    assert lost.reason == "CONCURRENT_CHANGE"


async def test_a_busy_pool_and_a_cut_connection_are_unavailable(kit_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metal_kit.db.ACQUIRE_SECONDS", 0.1)
    db = await Database.open(kit_url, "kit", max_size=1)
    try:
        async with db.connection():
            with pytest.raises(Unavailable) as caught:
                async with db.connection():
                    pytest.fail("got one")
            assert caught.value.reason == "DATABASE_BUSY"
        with pytest.raises(Unavailable) as caught:
            async with db.transaction(purpose="cut") as connection:
                await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        assert caught.value.reason == "DATABASE_UNREACHABLE"
        async with db.connection() as connection:
            assert await connection.fetchval("SELECT 1") == 1, "the pool has recovered"
    finally:
        await db.close()


async def test_a_wrong_use_of_a_connection_is_a_defect_and_not_an_outage(db: Database) -> None:
    with pytest.raises(asyncpg.InterfaceError):
        async with db.connection() as connection:
            await connection.fetch("SELECT $1::int", 1, 2)


async def test_idle_transactions_are_ended_by_the_server(db: Database) -> None:
    async with db.connection() as connection:
        assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == "30s"
        assert await connection.fetchval("SHOW statement_timeout") == "30s"
        assert await connection.fetchval("SHOW lock_timeout") == "10s"
        assert await connection.fetchval("SELECT current_schema()") == "kit"


async def test_a_killed_postgres_is_unavailable_and_comes_back(server_directory: Path, eventually: Eventually) -> None:
    server = Postgres(server_directory / f"pg-{uuid4().hex[:8]}", durable=False)
    await server.start()
    await migrate(server.url, "kit", "")
    db = await Database.open(server.url, "kit")
    try:
        with db.listener.subscribe("topic") as wakeup:
            await eventually(lambda: _notified(db, wakeup))
            await server.kill()
            with pytest.raises(Unavailable):
                async with db.connection() as connection:
                    await connection.fetchval("SELECT 1")
            await server.start()
            await eventually(lambda: _works(db))
            await eventually(lambda: _notified(db, wakeup), what="the listener listens again")
    finally:
        await db.close()
        await server.stop()


async def _works(db: Database) -> bool:
    try:
        async with db.connection() as connection:
            return bool(await connection.fetchval("SELECT true"))
    except Unavailable:
        return False


async def _notified(db: Database, wakeup: object) -> bool:
    async with db.connection() as connection:
        await connection.execute("SELECT pg_notify('metalplane_kit', 'topic')")
    return await wakeup.wait(0.2)  # type: ignore[attr-defined,no-any-return]


# -- the listener


async def test_a_notification_wakes_its_topic_and_no_other(db: Database, eventually: Eventually) -> None:
    with db.listener.subscribe("mine", "also-mine") as mine, db.listener.subscribe("other") as other:
        await eventually(lambda: db.listener.listening)
        await mine.wait(0.05)
        await other.wait(0.05)
        for topic in ("mine", "also-mine"):
            async with db.connection() as connection:
                await connection.execute("SELECT pg_notify('metalplane_kit', $1)", topic)
            assert await mine.wait(5)
        assert not await other.wait(0)


async def test_a_wake_up_before_the_wait_counts(db: Database) -> None:
    with db.listener.subscribe("mine") as mine:
        db.listener.wake("mine")
        assert await mine.wait(0)
        assert not await mine.wait(0), "once"


async def test_everybody_is_woken_after_the_connection_was_lost(db: Database, eventually: Eventually) -> None:
    with db.listener.subscribe("mine") as mine:
        await eventually(lambda: db.listener.listening)
        await mine.wait(0.05)
        async with db.connection() as connection:
            cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'metal-kit-listen'"
            await connection.execute(cut)
        # Nobody notifies: what was sent meanwhile is lost, so the reconnect itself must wake.
        assert await mine.wait(10)


async def test_the_listener_outlives_what_asyncpg_makes_of_a_server_that_hangs_up(
    db: Database, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, failed = asyncpg.connect, asyncio.Event()

    async def hangs_up(*arguments: Any, **options: Any) -> Any:
        if failed.is_set():
            return await connect(*arguments, **options)
        failed.set()
        raise asyncpg.InternalClientError("got result for unknown protocol state 0")

    with db.listener.subscribe("mine") as mine:
        await eventually(lambda: db.listener.listening)
        await mine.wait(0.05)
        monkeypatch.setattr("metal_kit.listen.asyncpg.connect", hangs_up)
        async with db.connection() as connection:
            cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'metal-kit-listen'"
            await connection.execute(cut)
        async with asyncio.timeout(10):
            await failed.wait()
        await eventually(lambda: _notified(db, mine), what="the listener listens again")


# -- leases


async def test_a_lease_has_one_holder_until_it_ends(db: Database, eventually: Eventually) -> None:
    ttl = timedelta(seconds=0.3)
    first, second = Lease(db, "x", new_holder(), ttl=ttl), Lease(db, "x", new_holder(), ttl=ttl)
    assert await first.take()
    assert not await second.take()
    assert await first.take(), "renewed"
    epoch = first.epoch
    await eventually(second.take)
    assert second.epoch == epoch + 1
    assert not first.leads
    assert not await first.take()
    async with db.transaction(purpose="test") as connection:
        assert await second.held(connection)
        first.epoch = epoch
        assert not await first.held(connection)


async def test_a_released_lease_is_taken_at_once(db: Database) -> None:
    first, second = (Lease(db, "x", new_holder(), ttl=timedelta(hours=1)) for _ in range(2))
    assert await first.take()
    await first.release()
    assert not first.leads
    assert await second.take()
    await first.release()
    assert await second.take(), "a release by one who does not hold it changes nothing"


# -- remembered requests

REQUEST = Condition(type="Create", reason="A")
ANSWER = Condition(type="Created", message="m1")


async def create(db: Database, request_id: str, request: Condition = REQUEST, caller: str = "user:a") -> Condition:
    """A create with an effect that can be counted."""
    async with db.transaction(purpose="create") as connection:
        key = {"caller": caller, "method": "/x/Create", "request_id": request_id}
        known = await remembered(connection, **key, request=request, response_type=Condition)
        if known is not None:
            return known
        await _effect(connection)
        await remember(connection, **key, request=request, response=ANSWER)
    return ANSWER


async def _effect(connection: Connection) -> None:
    await connection.execute("CREATE TABLE IF NOT EXISTS effect (n int)")
    await connection.execute("INSERT INTO effect VALUES (1)")


async def effects(db: Database) -> int:
    async with db.connection() as connection:
        return int(await connection.fetchval("SELECT count(*) FROM effect"))


async def test_a_repeated_request_has_one_effect_and_the_same_answer(db: Database) -> None:
    assert await create(db, "r1") == ANSWER
    assert await create(db, "r1") == ANSWER
    assert await effects(db) == 1


async def test_requests_at_the_same_time_have_one_effect(db: Database) -> None:
    async with db.connection() as connection:
        await connection.execute("CREATE TABLE effect (n int)")
    answers = await asyncio.gather(*(create(db, "r1") for _ in range(8)))
    assert answers == [ANSWER] * 8
    assert await effects(db) == 1


async def test_a_request_that_failed_is_not_remembered(db: Database) -> None:
    async def fail() -> None:
        async with db.transaction(purpose="create") as connection:
            key = {"caller": "user:a", "method": "/x/Create", "request_id": "r1"}
            await remembered(connection, **key, request=REQUEST, response_type=Condition)
            await remember(connection, **key, request=REQUEST, response=ANSWER)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await create(db, "r1") == ANSWER
    assert await effects(db) == 1


async def test_another_request_with_the_same_id_is_refused(db: Database) -> None:
    await create(db, "r1")
    with pytest.raises(InvalidArgument) as caught:
        await create(db, "r1", Condition(type="Create", reason="B"))
    assert (caught.value.reason, caught.value.field) == ("REQUEST_ID_REUSED", "request_id")
    assert await effects(db) == 1


async def test_the_id_belongs_to_its_caller(db: Database) -> None:
    await create(db, "r1")
    await create(db, "r1", Condition(type="Create", reason="B"), caller="user:b")
    assert await effects(db) == 2


async def test_requests_without_an_id_are_not_remembered(db: Database) -> None:
    await create(db, "")
    await create(db, "")
    assert await effects(db) == 2


async def test_an_id_that_is_too_long_is_refused(db: Database) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await create(db, "x" * 129)
    assert caught.value.reason == "REQUEST_ID_TOO_LONG"


# -- the sweep


async def test_the_sweep_removes_what_is_old_and_nothing_else(db: Database) -> None:
    tables = {
        "idempotency": ("created_at", "'c', 'm', $1, '', ''", "caller, method, request_id, request_hash, response"),
        "reconcile_history": (
            "last_at",
            "'k', $1, '', 'done', '', '', false, 'w', 1",
            "kind, key, phase, outcome, reason, message, overdue, worker, fence",
        ),
        "consumed": (
            "event_time",
            "'c', 'e', $1, 1, 'i', true",
            "consumer, entity, entity_id, version, event_id, deleted",
        ),
    }
    ages = {"idempotency": "24 hours", "reconcile_history": "90 days", "consumed": "14 days"}
    async with db.connection() as connection:
        for table, (column, values, names) in tables.items():
            for key, off in (("old", "1 minute"), ("young", "-1 minute")):
                await connection.execute(
                    f"INSERT INTO {table} ({names}, {column}) "
                    f"VALUES ({values}, now() - interval '{ages[table]}' - interval '{off}')",
                    key,
                )
        await connection.execute(
            "INSERT INTO consumed (consumer, entity, entity_id, version, event_id, event_time, deleted) "
            "VALUES ('c', 'e', 'alive', 1, 'i', now() - interval '5 years', false)"
        )
    await sweep.sweep(db, Retention())
    keys = {"idempotency": "request_id", "reconcile_history": "key", "consumed": "entity_id"}
    left = {"idempotency": {"young"}, "reconcile_history": {"young"}, "consumed": {"young", "alive"}}
    async with db.connection() as connection:
        for table, key_column in keys.items():
            rows = await connection.fetch(f"SELECT {key_column} AS key FROM {table}")
            assert {row["key"] for row in rows} == left[table], table


async def test_two_sweeps_at_once_do_not_hinder_each_other(db: Database) -> None:
    async with db.connection() as connection:
        await connection.execute(
            "INSERT INTO idempotency SELECT 'c', 'm', n::text, '', '', now() - interval '2 days' "
            "FROM generate_series(1, 5000) AS n"
        )
    stopping = asyncio.Event()
    every = timedelta(milliseconds=1)
    tasks = [asyncio.create_task(sweep.run(db, stopping, every=every)) for _ in range(2)]
    try:
        async with asyncio.timeout(20):
            while True:
                async with db.connection() as connection:
                    if not await connection.fetchval("SELECT EXISTS (SELECT FROM idempotency)"):
                        break
                await asyncio.sleep(0.02)
    finally:
        stopping.set()
        await asyncio.gather(*tasks)
