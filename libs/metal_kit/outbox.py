"""Events leave the service only if the change they tell of was committed, and then always.

`emit` writes the event in the caller's transaction; the relay publishes it afterwards and deletes it once JetStream has
acknowledged. One relay a schema, elected by a lease: two would not lose anything, but would reorder.

Order. Row ids are handed out before commit, so a smaller id can appear after a larger one. The relay only takes rows
whose transaction is older than every transaction that still runs (`xid < pg_snapshot_xmin(...)`): nothing can appear
among them any more. The price: one long transaction in the cluster delays all events, which is why their age is a
metric and transactions are short. Across transactions that overlap, an object's later version can still overtake an
earlier one; events carry the row's id as their sequence, and consumers drop what is older.

It does not promise "exactly once": after a crash between publishing and deleting, the same message id is sent again.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta

import asyncpg
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from metalplane.common.v1.event_pb2 import Event
from prometheus_client import Counter, Gauge

from metal_kit.backoff import Backoff, pause
from metal_kit.bus import Bus, BusUnavailable
from metal_kit.db import Connection, Database, is_outage
from metal_kit.errors import Problem
from metal_kit.ids import uuid7
from metal_kit.lease import Lease, new_holder
from metal_kit.listen import Wakeup, wake_at
from metal_kit.logs import get_logger
from metal_kit.request import current_request_id

log = get_logger(__name__)

EVENTS_TOPIC = "events"
LEASE_NAME = "outbox-relay"
LEASE_TTL = timedelta(seconds=6)
FALLBACK_POLL = timedelta(seconds=1)
BATCH = 500
_SUBJECT_PREFIX = "metalplane."
_STANDBY_POLL_SECONDS = 1.0
_AGE_EVERY_SECONDS = 5.0
_HIDDEN = Backoff(timedelta(milliseconds=10), FALLBACK_POLL, least=timedelta(milliseconds=5))
_RETRY = Backoff(timedelta(milliseconds=100), timedelta(seconds=5))

PUBLISHED = Counter("metalplane_outbox_published_total", "Events acknowledged by JetStream.", ["service"])
FAILURES = Counter(
    "metalplane_outbox_publish_failures_total", "Events that JetStream did not acknowledge.", ["service"]
)
WAITING = Gauge("metalplane_outbox_waiting", "Events that wait to be published.", ["service"])
OLDEST = Gauge("metalplane_outbox_oldest_seconds", "Age of the oldest event that waits, 0 when none does.", ["service"])
LEADS = Gauge("metalplane_outbox_leads", "1 in the replica whose relay publishes.", ["service"])

_EMIT = """
    WITH event AS (INSERT INTO outbox (msg_id, subject, envelope) VALUES ($1, $2, $3))
    INSERT INTO change (entity, entity_id, version, scope, deleted, payload) VALUES ($4, $5, $6, $7, $8, $9)
"""
_READ = """
    SELECT id, msg_id, subject, envelope, created_at FROM outbox
    WHERE xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY id LIMIT $1
"""
_DELETE = "DELETE FROM outbox WHERE id = ANY ($1::bigint[])"
_STATE = """
    SELECT count(*) AS waiting, coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8 AS oldest
    FROM outbox
"""


async def emit(
    connection: Connection,
    *,
    subject: str,
    entity: str,
    entity_id: str,
    version: int,
    payload: Message,
    partition: str = "",
    scope: str = "",
    deleted: bool = False,
) -> None:
    """Record an event and a line for watchers in the caller's transaction.

    Call it after the row that it tells of was locked or written: the order of these calls is the order of an object's
    events, which consumers go by. `version` is the row's version after the change; `scope` is the project that may see
    it; `payload` must show the whole object, since an older event may be dropped unread, and never carry a secret.

    Raises:
        RuntimeError: no transaction is open, so that the event could commit without its change.
        ValueError: the subject is not below `metalplane.`, or an id is empty.
    """
    if not connection.is_in_transaction():
        raise RuntimeError(f"event {subject} emitted outside of a transaction")
    if not subject.startswith(_SUBJECT_PREFIX) or not entity or not entity_id:
        raise ValueError(
            f"event {subject!r} of {entity!r} {entity_id!r}: needs a subject below metalplane. and both names"
        )
    event = Event(
        id=uuid7(),
        subject=subject,
        entity=entity,
        entity_id=entity_id,
        entity_version=version,
        partition=partition,
        request_id=current_request_id(),
        deleted=deleted,
    )
    event.payload.Pack(payload)
    await connection.execute(
        _EMIT,
        *(event.id, subject, event.SerializeToString()),
        *(entity, entity_id, version, scope, deleted, payload.SerializeToString()),
    )


class Relay:
    """Publishes the outbox of one schema, while it leads. `run` it as a task in every replica."""

    def __init__(self, db: Database, bus: Bus, *, lease_ttl: timedelta = LEASE_TTL, batch: int = BATCH) -> None:
        self._db = db
        self._bus = bus
        self._batch = batch
        self._lease = Lease(db, LEASE_NAME, new_holder(), ttl=lease_ttl)
        self._age_at = 0.0

    @property
    def leads(self) -> bool:
        """Whether this replica is the one that publishes."""
        return self._lease.leads

    async def run(self, stopping: asyncio.Event) -> None:
        """Publish until `stopping` is set; outages of Postgres and NATS are waited out."""
        failures = 0
        with self._db.listener.subscribe(EVENTS_TOPIC) as wakeup:
            stopper = asyncio.create_task(wake_at(stopping, wakeup), name="relay stop")
            try:
                while not stopping.is_set():
                    try:
                        await self._turn(stopping, wakeup)
                        failures = 0
                    except (BusUnavailable, Problem, asyncpg.PostgresError, OSError, TimeoutError) as error:
                        if not isinstance(error, BusUnavailable) and not is_outage(error):
                            log.exception("relay.failed", service=self._db.schema)
                        elif failures == 0:
                            log.warning("relay.waits", service=self._db.schema, error=str(error))
                        await self._rest(stopping, failures)
                        failures += 1
            finally:
                stopper.cancel()
                LEADS.labels(self._db.schema).set(0)
                with suppress(Problem, asyncpg.PostgresError, OSError, TimeoutError):
                    await self._lease.release()

    async def _rest(self, stopping: asyncio.Event, failures: int) -> None:
        span = _RETRY.delay(failures)
        if self._bus.connected:
            await pause(stopping, span)
        else:
            await self._bus.wait_connected(span)  # the moment it is back, not when the pause happens to end

    async def _turn(self, stopping: asyncio.Event, wakeup: Wakeup) -> None:
        """Lead for a while: until the lease needs to be renewed or there is nothing to send."""
        leads = await self._lease.take()
        LEADS.labels(self._db.schema).set(1 if leads else 0)
        if not leads:
            await pause(stopping, timedelta(seconds=_STANDBY_POLL_SECONDS))
            return
        loop = asyncio.get_running_loop()
        renew_at = loop.time() + self._lease.ttl.total_seconds() / 3
        hidden = 0
        while loop.time() < renew_at and not stopping.is_set():
            if await self._send_batch() == self._batch:
                hidden = 0
                continue
            waiting = await self._measure()
            # Rows that the horizon hides get no second notification: look again soon, then less and less often.
            hidden = hidden + 1 if waiting else 0
            wait = _HIDDEN.bound(hidden) if waiting else FALLBACK_POLL
            if await wakeup.wait(min(wait.total_seconds(), max(0.0, renew_at - loop.time()))):
                hidden = 0

    async def _send_batch(self) -> int:
        """Publish one batch with no transaction open, then delete what was acknowledged; the number of rows read."""
        async with self._db.connection() as connection:
            rows = await connection.fetch(_READ, self._batch)
        if not rows or not self._lease.leads:
            return 0
        await self._bus.ensure_stream()  # else the first of them would be overtaken while it looks
        results = await asyncio.gather(*(self._publish(row) for row in rows), return_exceptions=True)
        sent = [row["id"] for row, result in zip(rows, results, strict=True) if result is None]
        if sent:
            PUBLISHED.labels(self._db.schema).inc(len(sent))
            async with self._db.connection() as connection:
                await connection.execute(_DELETE, sent)
        failed = [result for result in results if result is not None]
        if failed:
            FAILURES.labels(self._db.schema).inc(len(failed))
            raise failed[0]
        return len(rows)

    async def _publish(self, row: asyncpg.Record) -> None:
        time = Timestamp()
        time.FromDatetime(row["created_at"])
        # Concatenated messages merge: this sets what only the database knows, without parsing the envelope.
        data = row["envelope"] + Event(time=time, sequence=row["id"]).SerializeToString()
        await self._bus.publish(row["subject"], data, message_id=row["msg_id"])

    async def _measure(self) -> int:
        """The number of rows that wait, exact when it was measured just now; else whether there are any."""
        now = asyncio.get_running_loop().time()
        async with self._db.connection() as connection:
            if now - self._age_at < _AGE_EVERY_SECONDS:
                return int(await connection.fetchval("SELECT EXISTS (SELECT FROM outbox)"))
            self._age_at = now
            state = await connection.fetchrow(_STATE)
        assert state is not None
        WAITING.labels(self._db.schema).set(state["waiting"])
        OLDEST.labels(self._db.schema).set(state["oldest"])
        return int(state["waiting"])


async def waiting(connection: Connection) -> int:
    """How many events wait to be published."""
    return int(await connection.fetchval("SELECT count(*) FROM outbox"))
