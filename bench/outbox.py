"""How long does an event take from the commit to its subscriber, and how fast does a backlog drain?

`bench/outbox.py [--json FILE] [--quick]`. Starts a durable Postgres (fsync on) and a NATS with file storage on this
machine; the relay, the writer and the subscriber share one process. "Idle" means one event at a time, with pauses.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import nats
import uvloop
from metal_kit import logs
from metal_kit.bus import STREAM, SUBJECTS, Bus
from metal_kit.db import Connection, Database
from metal_kit.events import Consumer, ConsumerRunner
from metal_kit.ids import uuid7
from metal_kit.migrations import migrate
from metal_kit.outbox import Relay, emit
from metal_lab.servers import Nats, Postgres
from metalplane.common.v1.condition_pb2 import Condition
from metalplane.common.v1.event_pb2 import Event
from report import Answer, arguments, finish, percentile

SUBJECT = "metalplane.bench.thing.changed"
PAYLOAD = Condition(type="Bench", reason="NONE", message="x" * 400)
LIMIT = timedelta(seconds=120)


class Bench:
    """A database, a bus, a relay that leads, and a place where arrivals are noted."""

    def __init__(self, db: Database, bus: Bus, bus_url: str) -> None:
        self.db = db
        self.bus = bus
        self.bus_url = bus_url
        self.arrived: dict[str, float] = {}
        self.more = asyncio.Event()

    def arrive(self, entity_id: str) -> None:
        """Note that an event has come."""
        self.arrived[entity_id] = time.perf_counter()
        self.more.set()

    async def wait(self, ids: Sequence[str]) -> None:
        """Wait until all of these have come, the last of them last."""
        async with asyncio.timeout(LIMIT.total_seconds()):
            while ids[-1] not in self.arrived or any(each not in self.arrived for each in ids):
                self.more.clear()
                await self.more.wait()

    async def write(self, connection: Connection, entity_id: str) -> None:
        await emit(
            connection, subject=SUBJECT, entity="thing", entity_id=entity_id, version=1, payload=PAYLOAD, scope="p"
        )


async def latency(bench: Bench, events: int) -> list[float]:
    """Milliseconds from the moment before COMMIT is sent until the arrival, one event at a time."""
    samples = []
    for _ in range(events):
        entity_id = uuid7()
        async with bench.db.transaction(purpose="bench") as connection:
            await bench.write(connection, entity_id)
            before = time.perf_counter()
        await bench.wait([entity_id])
        samples.append((bench.arrived[entity_id] - before) * 1000)
        await asyncio.sleep(0.01)
    return samples


async def drain(bench: Bench, rows: int) -> float:
    """Events a second from a backlog that was committed at once."""
    ids = [uuid7() for _ in range(rows)]
    async with bench.db.transaction(purpose="bench") as connection:
        for each in ids:
            await bench.write(connection, each)
        before = time.perf_counter()
    await bench.wait(ids)
    return rows / (time.perf_counter() - before)


async def cost_of_emit(bench: Bench, transactions: int) -> float:
    """Milliseconds that one event adds to a transaction."""
    spent: dict[bool, list[float]] = {True: [], False: []}
    async with bench.db.connection() as connection:
        await connection.execute("CREATE TABLE bench_row (id bigint GENERATED ALWAYS AS IDENTITY, n int)")
    for number in range(transactions * 2):
        with_event = bool(number % 2)
        before = time.perf_counter()
        async with bench.db.transaction(purpose="bench") as connection:
            await connection.execute("INSERT INTO bench_row (n) VALUES ($1)", number)
            if with_event:
                await bench.write(connection, uuid7())
        spent[with_event].append((time.perf_counter() - before) * 1000)
    return percentile(spent[True], 0.5) - percentile(spent[False], 0.5)


async def run(options: argparse.Namespace) -> list[Answer]:
    """All questions."""
    events, rows = (50, 1_000) if options.quick else (500, 10_000)
    async with AsyncExitStack() as stack:
        bench = await _open(stack, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mp-bench-"))))
        client = await nats.connect(bench.bus_url)
        stack.push_async_callback(client.close)

        async def on_message(message: Any) -> None:
            bench.arrive(Event.FromString(message.data).entity_id)

        subscription = await client.subscribe(SUBJECTS, cb=on_message)
        await client.flush()
        await latency(bench, 20)  # connections, statements and the lease are there now
        plain = await latency(bench, events)
        rate = await drain(bench, rows)
        cost = await cost_of_emit(bench, events)
        await subscription.unsubscribe()
        handled = await _handled(stack, bench, events)
    note = f"{events} events, fsync on"
    return [
        Answer(
            "outbox: commit to subscriber, idle, p99",
            percentile(plain, 0.99),
            "ms",
            "< 10",
            percentile(plain, 0.5),
            percentile(plain, 0.99),
            note,
        ),
        Answer(
            "outbox: commit to consumer's handler, idle, p99",
            percentile(handled, 0.99),
            "ms",
            "",
            percentile(handled, 0.5),
            percentile(handled, 0.99),
            f"{note}; durable consumer, inside its transaction",
        ),
        Answer("outbox: drain of a backlog", rate, "events/s", note=f"{rows} rows of about 600 bytes"),
        Answer("outbox: what an event adds to a transaction", cost, "ms", note="difference of the medians"),
    ]


async def _handled(stack: AsyncExitStack, bench: Bench, events: int) -> list[float]:
    async def handler(event: Event, connection: Connection) -> None:
        bench.arrive(event.entity_id)

    stopping = asyncio.Event()
    await bench.bus.jetstream.purge_stream(STREAM)  # a new consumer would first take in the whole backlog
    runner = ConsumerRunner(bench.db, bench.bus, Consumer("bench-things", [SUBJECT], handler))
    running = asyncio.create_task(runner.run(stopping))

    async def stop() -> None:
        stopping.set()
        await running

    stack.push_async_callback(stop)
    await latency(bench, 5)
    return await latency(bench, events)


async def _open(stack: AsyncExitStack, directory: Path) -> Bench:
    os.chmod(directory, 0o711)  # the server runs as another user when we are root
    postgres = Postgres(directory / "postgres", durable=True)
    server = Nats(directory / "nats")
    for each in (postgres, server):
        await each.start()
        stack.push_async_callback(each.stop)
    await migrate(postgres.url, "bench", "")
    db = await Database.open(postgres.url, "bench")
    stack.push_async_callback(db.close)
    bus = await Bus.open(server.url, "bench")
    stack.push_async_callback(bus.close)
    stopping = asyncio.Event()
    relaying = asyncio.create_task(Relay(db, bus).run(stopping))

    async def stop() -> None:
        stopping.set()
        await relaying

    stack.push_async_callback(stop)
    return Bench(db, bus, server.url)


if __name__ == "__main__":
    given = arguments("Outbox: latency and drain rate.")
    logs.configure("warning")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        raise SystemExit(finish(runner.run(run(given)), given))
