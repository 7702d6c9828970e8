"""The outbox and its relay against a real Postgres and NATS: order, the horizon, outages, failover."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg
import nats
import pytest
from metal_kit import outbox, request
from metal_kit.bus import STREAM, Bus, BusUnavailable
from metal_kit.db import Connection, Database
from metal_kit.outbox import Relay, emit
from metal_lab.servers import Nats
from metalplane.common.v1.condition_pb2 import Condition
from metalplane.common.v1.event_pb2 import Event
from running import running

Eventually = Callable[..., Awaitable[None]]
SUBJECT = "metalplane.test.thing.changed"


async def emit_thing(connection: Connection, entity_id: str, version: int = 1) -> None:
    await emit(
        connection,
        subject=SUBJECT,
        entity="thing",
        entity_id=entity_id,
        version=version,
        payload=Condition(type=entity_id),
        partition="fra",
    )


async def emit_all(db: Database, *ids: str) -> None:
    async with db.transaction(purpose="test: emit") as connection:
        for each in ids:
            await emit_thing(connection, each)


async def waiting(db: Database) -> int:
    async with db.connection() as connection:
        return await outbox.waiting(connection)


async def is_empty(db: Database) -> bool:
    return await waiting(db) == 0


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    connection = await Bus.open(nats_url, "test")
    yield connection
    await connection.close()


async def stored(url: str) -> list[tuple[str, Event]]:
    """Message id and envelope of everything in the stream, in its order."""
    client = await nats.connect(url)
    try:
        context = client.jetstream()
        state = (await context.stream_info(STREAM)).state
        messages = [await context.get_msg(STREAM, number) for number in range(1, state.last_seq + 1)]
    finally:
        await client.close()
    return [((message.headers or {})["Nats-Msg-Id"], Event.FromString(message.data or b"")) for message in messages]


async def test_an_event_arrives_whole(db: Database, bus: Bus, nats_url: str, eventually: Eventually) -> None:
    before = datetime.now(UTC)
    request.request_id.set("req-7")
    async with running(Relay(db, bus)):
        await emit_all(db, "m1")
        await eventually(lambda: is_empty(db))
    request.request_id.set("")
    [(message_id, event)] = await stored(nats_url)
    assert message_id == event.id
    assert (event.subject, event.entity, event.entity_id, event.entity_version) == (SUBJECT, "thing", "m1", 1)
    assert (event.partition, event.request_id, event.deleted) == ("fra", "req-7", False)
    assert before - timedelta(seconds=5) < event.time.ToDatetime(UTC) < datetime.now(UTC) + timedelta(seconds=5)
    assert event.sequence > 0
    payload = Condition()
    assert event.payload.Unpack(payload)
    assert payload.type == "m1"


async def test_events_of_a_change_that_was_rolled_back_do_not_exist(db: Database) -> None:
    async def fail() -> None:
        async with db.transaction(purpose="test") as connection:
            await emit_thing(connection, "m1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await waiting(db) == 0


async def test_emitting_outside_of_a_transaction_is_refused(db: Database) -> None:
    async with db.connection() as connection:
        with pytest.raises(RuntimeError, match="outside of a transaction"):
            await emit_thing(connection, "m1")
    assert await waiting(db) == 0


async def test_a_subject_outside_of_the_stream_is_refused(db: Database) -> None:
    async with db.transaction(purpose="test") as connection:
        with pytest.raises(ValueError, match="subject below metalplane"):
            await emit(connection, subject="other.x", entity="x", entity_id="1", version=1, payload=Condition())


async def test_events_keep_the_order_of_their_commits(
    db: Database, bus: Bus, nats_url: str, eventually: Eventually
) -> None:
    async with running(Relay(db, bus, batch=7)):
        for number in range(60):
            await emit_all(db, f"{number:03}")
        await eventually(lambda: is_empty(db))
    events = [event for _, event in await stored(nats_url)]
    ids = [event.entity_id for event in events]
    sequences = [event.sequence for event in events]
    assert sequences == sorted(set(sequences))
    # Inside a batch the publishes run side by side on one connection, which sends them in the order of the rows.
    assert ids == sorted(ids)
    assert len(ids) == 60


async def test_a_row_is_held_back_while_an_older_transaction_can_still_commit_before_it(
    db: Database, bus: Bus, nats_url: str, eventually: Eventually, kit_url: str
) -> None:
    """The horizon rule: the late committer got its number first and must come out first."""
    older = await asyncpg.connect(kit_url, server_settings={"search_path": "kit"})
    try:
        transaction = older.transaction()
        await transaction.start()
        await emit_thing(older, "first")
        await emit_all(db, "second")
        async with running(Relay(db, bus)) as _:
            # The relay has had every chance to send: it leads, was woken, and looks at short intervals now.
            await eventually(lambda: _leads(db))
            await asyncio.sleep(0.3)
            assert await waiting(db) == 1
            await transaction.commit()
            await eventually(lambda: is_empty(db))
    finally:
        await older.close()
    assert [event.entity_id for _, event in await stored(nats_url)] == ["first", "second"]


async def test_a_row_is_not_held_back_by_a_younger_transaction(
    db: Database, bus: Bus, eventually: Eventually, kit_url: str
) -> None:
    async with running(Relay(db, bus)):
        await emit_all(db, "done")
        younger = await asyncpg.connect(kit_url, server_settings={"search_path": "kit"})
        try:
            transaction = younger.transaction()
            await transaction.start()
            await emit_thing(younger, "open")
            await eventually(lambda: is_empty(db))
            await transaction.rollback()
        finally:
            await younger.close()


async def _leads(db: Database) -> bool:
    async with db.connection() as connection:
        return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM lease WHERE expires_at > clock_timestamp())"))


async def test_a_killed_nats_delays_events_and_loses_none(
    db: Database, server_directory: Path, eventually: Eventually
) -> None:
    server = Nats(server_directory / f"nats-{uuid4().hex[:8]}")
    await server.start()
    bus = await Bus.open(server.url, "test")
    try:
        async with running(Relay(db, bus)):
            await emit_all(db, "before")
            await eventually(lambda: is_empty(db))
            await server.kill()
            for number in range(50):
                await emit_all(db, f"during-{number}")
            assert await waiting(db) == 50
            await server.start()
            await emit_all(db, "after")
            await eventually(lambda: is_empty(db))
        ids = [event.entity_id for _, event in await stored(server.url)]
        assert sorted(ids) == sorted(["before", "after", *(f"during-{number}" for number in range(50))])
    finally:
        await bus.close()
        await server.stop()


async def test_nats_that_dies_while_events_flow_loses_none_and_doubles_none(
    db: Database, server_directory: Path, eventually: Eventually
) -> None:
    server = Nats(server_directory / f"nats-{uuid4().hex[:8]}")
    await server.start()
    bus = await Bus.open(server.url, "test")
    emitted: list[str] = []

    async def produce(stop: asyncio.Event) -> None:
        while not stop.is_set():
            emitted.append(f"{len(emitted):05}")
            await emit_all(db, emitted[-1])

    try:
        async with running(Relay(db, bus, batch=20)):
            stop = asyncio.Event()
            producer = asyncio.create_task(produce(stop))
            for _ in range(2):
                goal = len(emitted) + 100
                await eventually(lambda goal=goal: len(emitted) > goal)
                await server.kill()
                goal = len(emitted) + 50
                await eventually(lambda goal=goal: len(emitted) > goal)
                await server.start()
                await eventually(lambda: bus.connected)
            stop.set()
            await producer
            await eventually(lambda: is_empty(db))
        ids = [event.entity_id for _, event in await stored(server.url)]
        assert len(ids) == len(set(ids)), "the message id kept retries from being stored twice"
        assert set(ids) == set(emitted)
    finally:
        await bus.close()
        await server.stop()


async def test_a_stream_that_was_removed_is_made_anew(
    db: Database, bus: Bus, nats_url: str, eventually: Eventually
) -> None:
    async with running(Relay(db, bus)):
        await emit_all(db, "before")
        await eventually(lambda: is_empty(db))
        client = await nats.connect(nats_url)
        await client.jetstream().delete_stream(STREAM)
        await client.close()
        await emit_all(db, "after")
        await eventually(lambda: is_empty(db))
    assert [event.entity_id for _, event in await stored(nats_url)] == ["after"]


async def test_one_relay_leads_and_the_other_takes_over(
    db: Database, kit_url: str, bus: Bus, nats_url: str, eventually: Eventually
) -> None:
    ttl = timedelta(seconds=0.6)
    other_db = await Database.open(kit_url, "kit")
    try:
        first, second = Relay(db, bus, lease_ttl=ttl), Relay(other_db, bus, lease_ttl=ttl)
        stop_first = asyncio.Event()
        running_first = asyncio.create_task(first.run(stop_first))
        await eventually(lambda: first.leads)
        async with running(second):
            await emit_all(db, "by-first")
            await eventually(lambda: is_empty(db))
            assert first.leads
            assert not second.leads
            epoch = await _epoch(db)
            # As a crash: no release, no renewal.
            running_first.cancel()
            await asyncio.gather(running_first, return_exceptions=True)
            await emit_all(db, "by-second")
            await eventually(lambda: is_empty(db), seconds=5)
            assert second.leads
            assert await _epoch(db) > epoch
    finally:
        await other_db.close()
    assert [event.entity_id for _, event in await stored(nats_url)] == ["by-first", "by-second"]


async def _epoch(db: Database) -> int:
    async with db.connection() as connection:
        return int(await connection.fetchval("SELECT epoch FROM lease WHERE name = $1", outbox.LEASE_NAME))


async def test_publishing_inside_a_transaction_is_refused(db: Database, bus: Bus) -> None:
    async with db.transaction(purpose="test"):
        with pytest.raises(RuntimeError, match="inside the transaction 'test'"):
            await bus.publish(SUBJECT, b"", message_id="1")


async def test_a_bus_without_a_server_opens_and_says_that_it_is_not_connected(
    server_directory: Path, eventually: Eventually
) -> None:
    server = Nats(server_directory / f"nats-{uuid4().hex[:8]}")
    await server.start()
    await server.stop()
    bus = await Bus.open(server.url, "test", patience=timedelta(milliseconds=100))
    try:
        assert not bus.connected
        with pytest.raises(BusUnavailable):
            await bus.publish(SUBJECT, b"x", message_id="1")
        await server.start()
        await eventually(lambda: bus.connected)
        await bus.publish(SUBJECT, b"x", message_id="1")
    finally:
        await bus.close()
        await server.stop()
