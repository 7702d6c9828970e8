"""Consumers against a real Postgres and NATS: once per version, retries, parking, outages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from metal_kit.backoff import Backoff
from metal_kit.bus import STREAM, Bus
from metal_kit.db import Connection, Database
from metal_kit.events import Consumer, ConsumerRunner, Handler
from metal_kit.ids import uuid7
from metal_lab.servers import Nats
from metalplane.common.v1.event_pb2 import Event
from running import running

Eventually = Callable[..., Awaitable[None]]
SUBJECT = "metalplane.test.thing.changed"
FAST = Backoff(timedelta(milliseconds=20), timedelta(milliseconds=100))


def thing(entity_id: str, version: int, *, deleted: bool = False, sequence: int | None = None) -> Event:
    """An event whose place in its outbox is its version, unless the test says otherwise; 0 is "from no outbox"."""
    return Event(
        id=uuid7(),
        subject=SUBJECT,
        entity="thing",
        entity_id=entity_id,
        entity_version=version,
        deleted=deleted,
        sequence=version if sequence is None else sequence,
    )


class Seen:
    """A handler that writes down what it is given, in the database."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, event: Event, connection: Connection) -> None:
        self.calls += 1
        await connection.execute(
            "INSERT INTO seen (entity_id, version) VALUES ($1, $2)", event.entity_id, event.entity_version
        )


@pytest.fixture
async def store(db: Database) -> Database:
    async with db.connection() as connection:
        await connection.execute(
            "CREATE TABLE seen (id int GENERATED ALWAYS AS IDENTITY, entity_id text NOT NULL, version int NOT NULL)"
        )
    return db


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    connection = await Bus.open(nats_url, "test")
    yield connection
    await connection.close()


def consuming(
    store: Database, bus: Bus, *handlers: Handler, attempts: int = 3, name: str = "test-things"
) -> AbstractAsyncContextManager[asyncio.Event]:
    return running(
        *(
            ConsumerRunner(store, bus, Consumer(name, [SUBJECT], handler), attempts=attempts, retry=FAST)
            for handler in handlers
        )
    )


async def publish(bus: Bus, *events: Event) -> None:
    for event in events:
        await bus.publish(event.subject, event.SerializeToString(), message_id=uuid4().hex)


async def seen(store: Database) -> list[tuple[str, int]]:
    async with store.connection() as connection:
        return [(row["entity_id"], row["version"]) for row in await connection.fetch("SELECT * FROM seen ORDER BY id")]


async def settled(bus: Bus, name: str = "test-things") -> bool:
    """Everything that was published has been acknowledged."""
    info = await bus.jetstream.consumer_info(STREAM, name)
    return (info.num_pending, info.num_ack_pending) == (0, 0)


async def test_an_event_is_handled_at_once(store: Database, bus: Bus, eventually: Eventually) -> None:
    async with consuming(store, bus, Seen()):
        await publish(bus, thing("a", 1))
        await eventually(lambda: _saw(store, [("a", 1)]))
        before = asyncio.get_running_loop().time()
        await publish(bus, thing("b", 1))
        await eventually(lambda: _saw(store, [("a", 1), ("b", 1)]))
        # A client that waits for a full batch would need its whole fetch time.
        assert asyncio.get_running_loop().time() - before < 0.5


async def _saw(store: Database, wanted: list[tuple[str, int]]) -> bool:
    return await seen(store) == wanted


async def test_events_from_before_the_first_start_are_taken_in(
    store: Database, bus: Bus, eventually: Eventually
) -> None:
    await publish(bus, thing("early", 1))
    async with consuming(store, bus, Seen()):
        await eventually(lambda: _saw(store, [("early", 1)]))


async def test_an_older_version_and_a_second_copy_are_dropped(
    store: Database, bus: Bus, eventually: Eventually
) -> None:
    copy = thing("a", 5)
    async with consuming(store, bus, Seen()):
        await publish(bus, copy, thing("a", 4), copy, thing("b", 1), thing("a", 6), copy)
        await eventually(lambda: _saw(store, [("a", 5), ("b", 1), ("a", 6)]))
        await eventually(lambda: settled(bus))
    assert await seen(store) == [("a", 5), ("b", 1), ("a", 6)]


async def test_events_from_no_outbox_go_by_their_version(store: Database, bus: Bus, eventually: Eventually) -> None:
    async with consuming(store, bus, Seen()):
        await publish(bus, *(thing("a", version, sequence=0) for version in (5, 4, 5, 6)))
        await eventually(lambda: _saw(store, [("a", 5), ("a", 5), ("a", 6)]))


async def test_things_of_the_same_name_in_two_domains_are_two(
    store: Database, bus: Bus, eventually: Eventually
) -> None:
    other = thing("a", 1)
    other.subject = SUBJECT.replace("test", "other")
    async with consuming(store, bus, Seen()):
        await publish(bus, thing("a", 9))
        await bus.publish(SUBJECT, other.SerializeToString(), message_id="other")
        await eventually(lambda: _saw(store, [("a", 9), ("a", 1)]))


async def test_two_facts_of_one_version_are_both_taken_in(store: Database, bus: Bus, eventually: Eventually) -> None:
    async with consuming(store, bus, Seen()):
        await publish(bus, thing("a", 5, sequence=8), thing("a", 5, sequence=9))
        await eventually(lambda: _saw(store, [("a", 5), ("a", 5)]))


async def test_an_id_that_comes_back_after_its_end_starts_anew(
    store: Database, bus: Bus, eventually: Eventually
) -> None:
    late = thing("size-s", 6, sequence=5)
    async with consuming(store, bus, Seen()):
        await publish(bus, thing("size-s", 7, sequence=10, deleted=True), late, thing("size-s", 1, sequence=20))
        await eventually(lambda: _saw(store, [("size-s", 7), ("size-s", 1)]))
        await eventually(lambda: settled(bus))
    assert await seen(store) == [("size-s", 7), ("size-s", 1)], "the late one from before the end was dropped"


async def test_what_a_failed_handler_wrote_is_undone_and_the_event_comes_again(
    store: Database, bus: Bus, eventually: Eventually
) -> None:
    good = Seen()

    async def flaky(event: Event, connection: Connection) -> None:
        await good(event, connection)
        if good.calls < 3:
            raise ValueError("not yet")

    async with consuming(store, bus, flaky, attempts=5):
        await publish(bus, thing("a", 1))
        await eventually(lambda: _saw(store, [("a", 1)]))
        await eventually(lambda: settled(bus))
    assert good.calls == 3


async def test_a_poisoned_event_is_parked_and_the_others_go_on(
    store: Database, bus: Bus, eventually: Eventually
) -> None:
    good = Seen()

    async def handler(event: Event, connection: Connection) -> None:
        if event.entity_id == "poison":
            raise ValueError("the secret is swordfish")
        await good(event, connection)

    poison = thing("poison", 1)
    async with consuming(store, bus, handler, attempts=3):
        await publish(bus, poison, thing("a", 1), thing("b", 1))
        await eventually(lambda: _saw(store, [("a", 1), ("b", 1)]))
        await eventually(lambda: _parked(store))
        await eventually(lambda: settled(bus))
    [row] = await _parked(store)
    assert (row["consumer"], row["entity_id"], row["attempts"]) == ("test-things", "poison", 3)
    assert row["envelope"] == poison.SerializeToString()
    assert "swordfish" not in row["error"]


async def _parked(store: Database) -> list[asyncpg.Record]:
    async with store.connection() as connection:
        return list(await connection.fetch("SELECT * FROM parked_event"))


async def test_a_message_that_is_no_event_is_parked(store: Database, bus: Bus, eventually: Eventually) -> None:
    async with consuming(store, bus, Seen()):
        await bus.publish(SUBJECT, b"\xff\xff\xff", message_id="garbage")
        await publish(bus, thing("a", 1))
        await eventually(lambda: _saw(store, [("a", 1)]))
        await eventually(lambda: _parked(store))
    [row] = await _parked(store)
    assert row["envelope"] == b"\xff\xff\xff"


async def test_an_outage_of_the_database_parks_nothing(store: Database, bus: Bus, eventually: Eventually) -> None:
    good = Seen()
    cuts = 0

    async def handler(event: Event, connection: Connection) -> None:
        nonlocal cuts
        if cuts < 4:  # more often than an event may fail
            cuts += 1
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        await good(event, connection)

    async with consuming(store, bus, handler, attempts=2):
        await publish(bus, thing("a", 1))
        await eventually(lambda: _saw(store, [("a", 1)]))
    assert cuts == 4
    assert await _parked(store) == []


async def test_two_replicas_share_the_work_and_take_each_event_once(
    store: Database, bus: Bus, eventually: Eventually
) -> None:
    first, second = Seen(), Seen()
    async with consuming(store, bus, first, second):
        await publish(bus, *(thing(f"{number:02}", 1) for number in range(40)))
        await eventually(lambda: settled(bus))
        await eventually(lambda: _count_is(store, 40))
    assert sorted(await seen(store)) == [(f"{number:02}", 1) for number in range(40)]
    assert first.calls + second.calls == 40


async def _count_is(store: Database, wanted: int) -> bool:
    return len(await seen(store)) == wanted


async def test_a_consumer_goes_on_where_it_stopped(store: Database, bus: Bus, eventually: Eventually) -> None:
    async with consuming(store, bus, Seen()):
        await publish(bus, thing("a", 1))
        await eventually(lambda: _saw(store, [("a", 1)]))
    again = Seen()
    await publish(bus, thing("b", 1))
    async with consuming(store, bus, again):
        await eventually(lambda: _saw(store, [("a", 1), ("b", 1)]))
    assert again.calls == 1


async def test_a_killed_nats_interrupts_a_consumer_only_for_as_long(
    store: Database, server_directory: Path, eventually: Eventually
) -> None:
    server = Nats(server_directory / f"nats-{uuid4().hex[:8]}")
    await server.start()
    bus = await Bus.open(server.url, "test")
    try:
        async with consuming(store, bus, Seen()):
            await publish(bus, thing("a", 1))
            await eventually(lambda: _saw(store, [("a", 1)]))
            await server.kill()
            await eventually(lambda: not bus.connected)
            await server.start()
            await eventually(lambda: bus.connected)
            await publish(bus, thing("b", 1))
            await eventually(lambda: _saw(store, [("a", 1), ("b", 1)]))
    finally:
        await bus.close()
        await server.stop()


async def test_a_consumer_survives_the_removal_of_the_stream(store: Database, bus: Bus, eventually: Eventually) -> None:
    async with consuming(store, bus, Seen()):
        await publish(bus, thing("a", 1))
        await eventually(lambda: _saw(store, [("a", 1)]))
        await bus.jetstream.delete_stream(STREAM)
        bus.forget_stream()
        await publish(bus, thing("b", 1))
        await eventually(lambda: _saw(store, [("a", 1), ("b", 1)]))
