"""Rules of the kit that hold for any order of things, against simple models of them; the SQL is the real one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from metal_kit.bus import Bus
from metal_kit.controller import Done, Failed, Outcome, Wait, enqueue, queue
from metal_kit.controller.queue import Claim, LeaseLost
from metal_kit.db import Connection, Database
from metal_kit.events import Consumer, ConsumerRunner
from metalplane.common.v1.event_pb2 import Event

START = datetime(2026, 1, 1, tzinfo=UTC)
LONG = timedelta(hours=1)
MANY = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


# -- consumers: whatever the order of delivery, the projection ends as the source did


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[Event], list[Event]]:
    """The lives of one id as they were, and a delivery of them in any order, some twice."""
    history: list[Event] = []
    lives = draw(st.integers(1, 3))
    for life in range(lives):
        last = draw(st.integers(1, 5))
        for version in range(1, last + 1):
            history.append(_event(len(history), version))
        if life < lives - 1 or draw(st.booleans()):
            # Some services count the end as a version, some do not.
            history.append(_event(len(history), last + draw(st.integers(0, 1)), deleted=True))
    copies = draw(st.lists(st.sampled_from(history), max_size=5))
    return history, draw(st.permutations(history + copies))


def _event(number: int, version: int, *, deleted: bool = False) -> Event:
    event = Event(id=f"e{number}", subject="metalplane.x", entity="size", entity_id="s", entity_version=version)
    event.deleted, event.sequence = deleted, number + 1
    event.time.FromDatetime(START - timedelta(seconds=number))  # a clock that runs backwards does no harm
    return event


@MANY
@given(deliveries())
async def test_a_projection_ends_as_its_source_in_any_order_of_delivery(
    db: Database, bus_away: Bus, delivery: tuple[list[Event], list[Event]]
) -> None:
    history, delivered = delivery
    projection: dict[str, str] = {}

    async def handler(event: Event, connection: Connection) -> None:
        if event.deleted:
            projection.pop(event.entity_id, None)
        else:
            projection[event.entity_id] = event.id

    runner = ConsumerRunner(db, bus_away, Consumer("model", ["metalplane.x"], handler))
    async with db.connection() as connection:
        await connection.execute("TRUNCATE consumed")
    for event in delivered:
        await runner._handle(event)
    final = history[-1]
    assert projection == ({} if final.deleted else {"s": final.id})


@pytest.fixture
async def bus_away() -> Bus:
    """A bus that is never connected."""
    return Bus("nats://127.0.0.1:1", "model")


# -- the queue: no wake-up is lost, no fence is reused, the dead write nothing


@dataclass
class Key:
    """What must hold of one key."""

    queued: bool = False
    woken: bool = False  # enqueued since the present claim
    holder: Claim | None = None


OPERATIONS = st.lists(
    st.tuples(
        # Enqueueing and claiming more often than the rest: all else needs them first.
        st.sampled_from(["enqueue"] * 3 + ["claim"] * 3 + ["done", "wait", "fail", "expire", "release", "late"]),
        st.sampled_from(["a", "a", "b"]),
    ),
    min_size=20,
    max_size=40,
)


@MANY
@given(OPERATIONS)
async def test_the_queue_behaves_like_its_model(db: Database, operations: list[tuple[str, str]]) -> None:
    async with db.connection() as connection:
        await connection.execute("TRUNCATE reconcile_queue")
    model = {"a": Key(), "b": Key()}
    claims: dict[str, list[Claim]] = {"a": [], "b": []}
    fences: list[int] = []
    for operation, key in operations:
        async with db.transaction(purpose="test") as connection:
            if operation == "claim":
                await _claim(connection, model, claims, fences)
            elif operation == "late":
                await _write_late(connection, model[key], claims[key])
            else:
                await _step(connection, operation, key, model[key])
        await _compare(db, model)
    assert fences == sorted(set(fences))


async def _claim(
    connection: Connection, model: dict[str, Key], claims: dict[str, list[Claim]], fences: list[int]
) -> None:
    taken = await queue.claim(connection, "k", "worker", LONG, 5)
    assert {each.key for each in taken} == {key for key, state in model.items() if state.queued and not state.holder}
    for each in sorted(taken, key=lambda claim: claim.fence):
        fences.append(each.fence)
        claims[each.key].append(each)
        model[each.key].holder, model[each.key].woken = each, False


async def _write_late(connection: Connection, state: Key, claims: list[Claim]) -> None:
    """Every claim that is over tries to write."""
    for held in claims:
        if state.holder is not None and held.fence == state.holder.fence:
            continue
        with pytest.raises(LeaseLost):
            await _finish(connection, held, Done())
        assert await queue.renew(connection, "k", [held], LONG) == set()
        assert not await queue.remove(connection, "k", held)
        await queue.release(connection, "k", held)


async def _step(connection: Connection, operation: str, key: str, state: Key) -> None:
    if operation == "enqueue":
        await enqueue(connection, "k", key)
        state.queued, state.woken = True, state.holder is not None
        return
    held = state.holder
    if held is None:
        return
    if operation == "expire":
        # As if an hour had passed: the row is up for grabs, and its holder does not know.
        await connection.execute("UPDATE reconcile_queue SET ready_at = '-infinity' WHERE key = $1", key)
        [taken] = await queue.claim(connection, "k", "other", LONG, 1)
        assert taken.key == key
        assert taken.fence > held.fence
        with pytest.raises(LeaseLost):
            await _finish(connection, held, Done())
        await queue.release(connection, "k", taken)
    elif operation == "release":
        await queue.release(connection, "k", held)
    elif operation == "done":
        if await queue.remove(connection, "k", held):
            assert not state.woken, "the wake-up was lost"
            state.queued = False
        else:
            await _finish(connection, held, Done())
    else:
        await _finish(connection, held, Wait("W", "", timedelta(0)) if operation == "wait" else Failed("F", ""))
    state.holder, state.woken = None, False


async def _finish(connection: Connection, held: Claim, outcome: Outcome) -> None:
    await queue.finish(
        connection, "k", held, outcome, phase="", after=timedelta(0), attempts=held.attempts, overdue=False
    )


async def _compare(db: Database, model: dict[str, Key]) -> None:
    async with db.connection() as connection:
        rows = {row["key"]: row for row in await connection.fetch("SELECT * FROM reconcile_queue")}
    for key, state in model.items():
        assert (key in rows) == state.queued
        if state.queued:
            assert (rows[key]["holder"] is not None) == (state.holder is not None)
            assert (rows[key]["woken_at"] is not None) == state.woken
            if state.holder is not None:
                assert rows[key]["fence"] == state.holder.fence
