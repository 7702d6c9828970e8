"""Statements over the kit's own tables, which every service has; and proof that the instrument finds what is bad."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from metal_kit import events, idempotency, lease, outbox, sweep, watch
from metal_kit.controller import Wait, history, metrics, queue
from metal_kit.db import Connection
from metal_kit.issues import events as issue_events
from metal_lab.servers import Postgres
from plans import Call, OneConnection, Plans, measured

DAY = timedelta(days=1)
FILL = (
    # Sent by now, all but what the last transactions left.
    "INSERT INTO outbox (msg_id, subject, envelope) SELECT 'm' || n, 's', 'e' FROM generate_series(1, 20000) AS n",
    """
    INSERT INTO change (entity, entity_id, version, scope, deleted, payload, created_at)
    SELECT CASE WHEN n % 1000 = 0 THEN 'rare' ELSE 'thing' END, 'id' || n % 2000, n, '', false, 'p',
        now() - (20000 - n) * interval '1 s'
    FROM generate_series(1, 20000) AS n
    """,
    """
    INSERT INTO consumed (consumer, entity, entity_id, version, event_id, event_time, deleted)
    SELECT 'consumer' || n % 4, 'thing', 'id' || n, 1, 'e' || n, now() - n * interval '1 min', n % 10 = 0
    FROM generate_series(1, 20000) AS n
    """,
    """
    INSERT INTO idempotency (caller, method, request_id, request_hash, response, created_at)
    SELECT 'caller' || n % 5, 'method', 'r' || n, 'h', '', now() - n * interval '1 s'
    FROM generate_series(1, 20000) AS n
    """,
    """
    INSERT INTO reconcile_queue (kind, key, ready_at, holder, fence, overdue, phase)
    SELECT CASE WHEN n % 2 = 0 THEN 'thing' ELSE 'other' END, 'k' || n,
        now() + CASE WHEN n % 1000 = 0 THEN '-1 min' ELSE '1 day' END::interval, CASE WHEN n % 100 = 0 THEN 'h' END, n,
        n % 1000 = 0, 'p'
    FROM generate_series(1, 20000) AS n
    """,
    """
    INSERT INTO reconcile_history (kind, key, phase, outcome, reason, message, overdue, worker, fence, last_at)
    SELECT 'thing', 'k' || n % 500, 'p', 'wait', 'r', '', false, 'w', 1, now() - n * interval '1 min'
    FROM generate_series(1, 20000) AS n
    """,
    "INSERT INTO lease SELECT 'l' || n, 'h', 1, now() FROM generate_series(1, 20000) AS n",
    """
    INSERT INTO parked_event (consumer, subject, event_id, entity, entity_id, error, attempts, envelope)
    SELECT 'consumer' || n % 1000, 's', 'e' || n, 'thing', 'id', '', 1, '' FROM generate_series(1, 20000) AS n
    """,
)


@pytest.fixture(scope="module")
async def plans(postgres: Postgres) -> AsyncIterator[Plans]:
    async with measured(postgres, "kit", "", FILL) as made:
        yield made


def fetch(sql: str, *values: object) -> Call:
    return lambda conn: conn.fetch(sql, *values)


def on_database(call: Callable[[Any], Awaitable[object]]) -> Call:
    """For what opens its connections by itself."""
    return lambda conn: call(OneConnection(conn))


async def without(conn: Connection, index: str, call: Call) -> None:
    await conn.execute(f"DROP INDEX {index}")
    await call(conn)


# -- the instrument

BY_POSITION = fetch("SELECT * FROM change WHERE entity = 'thing' ORDER BY xid, id LIMIT 5")


async def test_a_plan_that_reads_what_it_returns_passes(plans: Plans) -> None:
    assert await plans.complaints({"page": BY_POSITION}) == {}


async def test_a_missing_index_is_complained_of(plans: Plans) -> None:
    bad = partial(without, index="change_by_position", call=BY_POSITION)
    found = await plans.complaints({"good": BY_POSITION, "bad": bad})
    assert list(found) == ["bad"]
    assert "sorts 19980 rows" in found["bad"][0]
    assert "WHERE entity = 'thing'" in found["bad"][0]
    assert await plans.complaints({"page": BY_POSITION}) == {}, "the index is back"


@pytest.mark.parametrize(("sql", "complaint"), [
    ("SELECT * FROM outbox WHERE subject = 'x'", "reads all of outbox (20000 rows)"),
    ("SELECT * FROM (SELECT * FROM change WHERE entity = 'thing' LIMIT 2000) AS c ORDER BY version LIMIT 5",
     "sorts 2000 rows"),
    ("SELECT * FROM outbox WHERE id > 0 AND subject = 'x' ORDER BY id LIMIT 5", "reads 20000 rows for 1"),
    ("SELECT count(*) FROM lease WHERE name > 'a'", "reads 20000 rows for 1"),
    ("SELECT (SELECT holder FROM lease WHERE name = msg_id LIMIT 1) FROM outbox WHERE id < 500 LIMIT 1 OFFSET 400",
     "reads 401 rows for 1"),
])  # fmt: skip
async def test_each_kind_of_waste_is_named(plans: Plans, sql: str, complaint: str) -> None:
    found = await plans.complaints({"bad": fetch(sql)})
    assert complaint in "".join(found["bad"])


async def test_what_a_function_does_inside_is_judged_too(plans: Plans) -> None:
    async def call(conn: Connection) -> None:
        await conn.execute(
            "CREATE FUNCTION slow() RETURNS bigint LANGUAGE plpgsql AS "
            "$$ BEGIN RETURN (SELECT count(*) FROM outbox WHERE subject = 'x'); END $$"
        )
        await conn.fetchval("SELECT slow()")

    assert "reads all of outbox" in (await plans.complaints({"slow": call}))["slow"][0]


async def test_the_plan_for_all_arguments_is_judged_where_postgres_may_choose_it(plans: Plans) -> None:
    """Of rows with one of two values it expects the half, and so walks through the table by age."""
    sql = "SELECT * FROM change WHERE entity = $1 ORDER BY created_at LIMIT 20"
    found = await plans.complaints({"rare": fetch(sql, "none"), "usual": fetch(sql, "thing")})
    assert list(found) == ["rare"]
    assert "(entity = $1) | read 20000 gave 0" in "".join(found["rare"])


async def test_a_call_that_executes_nothing_is_no_success(plans: Plans) -> None:
    assert await plans.complaints({"nothing": fetch("SELECT 1")}) == {
        "nothing": ["executes no statement over a table of the schema"]
    }


async def test_nothing_of_a_measured_call_stays(plans: Plans) -> None:
    await plans.cost(fetch("DELETE FROM lease"))
    async with plans.db.connection() as conn:
        assert await conn.fetchval("SELECT count(*) FROM lease") == 20000


# -- the kit's tables


async def test_the_relay_reads_and_deletes_a_batch(plans: Plans) -> None:
    await plans.check(
        {
            "emit": lambda conn: outbox.emit(
                conn, subject="metalplane.a.b.c", entity="thing", entity_id="id1", version=3, payload=StringValue()
            ),
            "read": fetch(outbox._READ, outbox.BATCH),
            "delete": fetch(outbox._DELETE, list(range(1, 501))),
            "whether there are any": fetch("SELECT EXISTS (SELECT FROM outbox)"),
        }
    )
    # Once in some seconds the backlog is counted, and there is none as a rule.
    await plans.check({"state": fetch(outbox._STATE)}, scans=["outbox"])


async def test_what_is_wrong_with_events_is_seen_without_reading_all_of_them(plans: Plans) -> None:
    await plans.check({"oldest": fetch(issue_events._OLDEST)})
    # Asked now and then by a person, and counted up to a bound.
    await plans.check(
        {"waiting": fetch(issue_events._COUNT), "parked": fetch(issue_events._PARKED)},
        scans=["outbox", "parked_event"],
    )


async def test_watching_reads_what_is_new(plans: Plans) -> None:
    async with plans.db.connection() as conn:
        late = await conn.fetchval("SELECT max(xid) FROM change")
    await plans.check(
        {
            f"{entity} from {name}": fetch(watch._READ, entity, *place, watch.BATCH)
            for entity in ("thing", "rare", "none")
            for name, place in {"the start": (0, 0), "the middle": (late, 10000), "the end": (late + 1, 0)}.items()
        }
    )


async def test_the_queue_is_claimed_by_what_is_due(plans: Plans) -> None:
    held = queue.Claim("k1000", 1000, 0, "p", False, DAY)
    outcome = Wait("REASON", "", after=DAY)
    await plans.check(
        {
            "claim": partial(queue.claim, kind="thing", holder="me", lease=DAY, most=5),
            "claim nothing": partial(queue.claim, kind="other", holder="me", lease=DAY, most=5),
            "next": partial(queue.seconds_to_next, kind="thing"),
            "enqueue": partial(queue.enqueue, kind="thing", key=["k2", "k4", "new"]),
            "add missing": partial(queue.add_missing, kind="thing", keys=["k2", "new"]),
            "renew": partial(queue.renew, kind="thing", claims=[held], lease=DAY),
            "enter phase": partial(queue.enter_phase, kind="thing", held=held, phase="q"),
            "remove": partial(queue.remove, kind="thing", held=held),
            "finish": partial(
                queue.finish, kind="thing", held=held, outcome=outcome, phase="p", after=DAY, attempts=1, overdue=False
            ),
            "release": partial(queue.release, kind="thing", held=held),
            "history": partial(history.read_history, kind="thing", key="k7"),
            "record": partial(
                history.record, kind="thing", key="k7", outcome=outcome, phase="p", overdue=False, worker="w", fence=1
            ),
        }
    )
    # For the gauges the queue is counted, once in many seconds.
    measure = partial(metrics.measure, service="kit", kind="thing", phases=set())
    await plans.check({"measure": measure}, scans=["reconcile_queue"])


async def test_leases_answers_and_consumed_events_are_found_by_key(plans: Plans) -> None:
    request = {"caller": "caller1", "method": "method", "request": StringValue()}
    held = lease.Lease(None, "l7", "me", ttl=DAY)  # type: ignore[arg-type]
    seen = ("consumer1", "thing", "id1", 2, "e", None, False, 0)

    async def take(db: Any) -> None:
        mine = lease.Lease(db, "l7", "me", ttl=DAY)
        assert await mine.take()
        await mine.release()

    async def advance(conn: Connection) -> None:
        values = [*seen]
        values[5] = await conn.fetchval("SELECT now()")
        await conn.fetch(events._ADVANCE, *values)

    await plans.check(
        {
            "lease": on_database(take),
            "lease held": held.held,
            "remembered": partial(idempotency.remembered, **request, request_id="new", response_type=StringValue),
            "remember": partial(idempotency.remember, **request, request_id="new", response=StringValue()),
            "forget": partial(idempotency.forget, caller="caller1", method="method", request_id="r1"),
            "consumed": advance,
            "parked": fetch(events._COUNT_PARKED, "consumer7"),
        }
    )


@pytest.mark.parametrize("keep", [timedelta(0), timedelta(hours=3), 400 * DAY], ids=["all", "some", "none"])
async def test_pruning_costs_what_it_removes(plans: Plans, keep: timedelta) -> None:
    retention = sweep.Retention(idempotency=keep, changes=keep, history=keep, ended=keep)
    await plans.check({"sweep": on_database(lambda db: sweep.sweep(db, retention))})


async def test_following_stays_within_its_batch(plans: Plans) -> None:
    """The watch itself, as a servicer uses it, over a listener that never wakes it."""

    async def first_batch(conn: Connection) -> None:
        db: Any = OneConnection(conn)
        db.listener = plans.db.listener
        stopping = asyncio.Event()
        async for changes in watch.follow(db, stopping, entity="thing", position="0:0"):
            assert len(changes) == watch.BATCH
            stopping.set()

    await plans.check({"follow": first_batch})
