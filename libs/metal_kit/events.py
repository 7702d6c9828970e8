"""Taking in other services' events: durable, in a transaction, at least once, never going back.

A consumer is a durable JetStream consumer by name; the replicas of a service share it. Each event is handled in one
transaction that also notes how far the object has come, so that an event that comes twice or late is dropped. An event
whose handler fails is tried again with growing delays while others go on; after `ATTEMPTS` failures it is put aside
into `parked_event`, with the reason, counted and logged, for a person to look at. While the database is away nothing is
parked: that is not the event's fault.

Handlers write to the database and nothing else. Whatever takes longer is enqueued for a controller. And since a lost
event must only cost time, every consumer's service also pages its source now and then; that is not done here.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import asyncpg
import nats.errors
import nats.js.errors
from google.protobuf.message import DecodeError
from metalplane.common.v1.event_pb2 import Event
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from prometheus_client import Counter, Gauge
from structlog.contextvars import bound_contextvars

from metal_kit import request
from metal_kit.backoff import Backoff, pause
from metal_kit.bus import STREAM, Bus, BusUnavailable
from metal_kit.db import Connection, Database, is_outage
from metal_kit.errors import Aborted, Problem
from metal_kit.logs import get_logger

log = get_logger(__name__)

ATTEMPTS = 8
HANDLER_LIMIT = timedelta(seconds=15)
ACK_WAIT = timedelta(seconds=30)
MAX_UNDERWAY = 256
RETRY = Backoff(timedelta(seconds=1), timedelta(minutes=1), least=timedelta(milliseconds=200))
_AWAY = Backoff(timedelta(milliseconds=200), timedelta(seconds=5))
_FETCH_SECONDS = 1.0
_MAX_ERROR = 500
_UNKNOWN_TIME = datetime(1970, 1, 1, tzinfo=UTC)

HANDLED = Counter("metalplane_events_handled", "Events by what became of them.", ["service", "consumer", "result"])
PARKED = Gauge("metalplane_events_parked", "Events put aside that nobody has looked at.", ["service", "consumer"])

Handler = Callable[[Event, Connection], Awaitable[None]]

# Locks the object's row for this consumer, so that two replicas do not handle two events of it side by side. Events
# that came from no outbox have no sequence and go by their version.
_ADVANCE = """
    INSERT INTO consumed AS seen (consumer, entity, entity_id, version, event_id, event_time, deleted, sequence)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
    ON CONFLICT (consumer, entity, entity_id) DO UPDATE
    SET version = excluded.version, event_id = excluded.event_id, event_time = excluded.event_time,
        deleted = excluded.deleted, sequence = greatest(seen.sequence, excluded.sequence)
    WHERE seen.event_id <> excluded.event_id AND CASE
        WHEN excluded.sequence > 0 THEN excluded.sequence > seen.sequence ELSE excluded.version >= seen.version
    END
    RETURNING version
"""
_PARK = """
    INSERT INTO parked_event (consumer, subject, event_id, entity, entity_id, error, attempts, envelope)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (consumer, event_id) DO NOTHING
"""
_COUNT_PARKED = "SELECT count(*) FROM parked_event WHERE consumer = $1"


@dataclass(frozen=True)
class Consumer:
    """Who wants which events.

    `name` is lower case with dashes and unique in the plane (`allocation-machines`); it outlives restarts. `subjects`
    may end in `*` or `>`. `handler` runs inside the transaction of its Connection and must be quick.
    """

    name: str
    subjects: Sequence[str]
    handler: Handler


class ConsumerRunner:
    """Runs one consumer. `run` it as a task in every replica."""

    def __init__(
        self, db: Database, bus: Bus, consumer: Consumer, *, attempts: int = ATTEMPTS, retry: Backoff = RETRY
    ) -> None:
        self._db = db
        self._bus = bus
        self._consumer = consumer
        self._attempts = attempts
        self._retry = retry
        # Failures by stream sequence. Not JetStream's delivery count: that also counts outages of ours.
        self._failures: OrderedDict[int, int] = OrderedDict()

    async def run(self, stopping: asyncio.Event) -> None:
        """Consume until `stopping` is set; outages of NATS and Postgres are waited out."""
        failures = 0
        while not stopping.is_set():
            subscription: JetStreamContext.PullSubscription | None = None
            try:
                if not await self._bus.wait_connected(timedelta(seconds=1)):
                    continue
                subscription = await self._subscribe()
                failures = 0
                await self._consume(subscription, stopping)
            except (nats.errors.Error, BusUnavailable, Problem, asyncpg.PostgresError, OSError, TimeoutError) as error:
                # A consumer or stream that somebody removed is made anew by the next round.
                self._bus.forget_stream()
                name = self._consumer.name
                if isinstance(error, nats.js.errors.BadRequestError):
                    log.exception("consumer.refused", consumer=name, subjects=list(self._consumer.subjects))
                elif failures == 0:
                    log.warning("consumer.waits", consumer=name, error=str(error) or repr(error))
                await pause(stopping, _AWAY.delay(failures))
                failures += 1
            finally:
                if subscription is not None:
                    await _unsubscribe(subscription)

    async def _subscribe(self) -> JetStreamContext.PullSubscription:
        await self._bus.ensure_stream()
        name = self._consumer.name
        config = ConsumerConfig(
            durable_name=name,
            filter_subjects=list(self._consumer.subjects),
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT.total_seconds(),
            max_ack_pending=MAX_UNDERWAY,
            max_deliver=-1,
        )
        # Creating one that exists updates its subjects, which is how a new release gets to hear more.
        await self._bus.jetstream.add_consumer(STREAM, config)
        return await self._bus.jetstream.pull_subscribe_bind(durable=name, stream=STREAM)

    async def _consume(self, subscription: JetStreamContext.PullSubscription, stopping: asyncio.Event) -> None:
        await self._count_parked()
        while not stopping.is_set():
            try:
                # One at a time: for a larger batch the client waits until it is full or the time is over. And not
                # cancelled by `stopping`: a message that is on its way would be hidden until ACK_WAIT is over.
                messages = await subscription.fetch(1, timeout=_FETCH_SECONDS)
            except nats.errors.TimeoutError:
                continue
            for message in messages:
                await self._take(message)

    async def _take(self, message: Msg) -> None:
        name = self._consumer.name
        try:
            event = Event.FromString(message.data)
        except DecodeError:
            await self._park(message, Event(), "not an event envelope", 1)
            return
        request.request_id.set(event.request_id)
        with bound_contextvars(consumer=name, event=event.id, entity=event.entity, entity_id=event.entity_id):
            sequence = message.metadata.sequence.stream
            try:
                async with asyncio.timeout(HANDLER_LIMIT.total_seconds()):
                    result = await self._handle(event)
            except Exception as error:
                await self._failed(message, event, sequence, error)
                return
            self._failures.pop(sequence, None)
            HANDLED.labels(self._db.schema, name, result).inc()
            await message.ack()

    async def _handle(self, event: Event) -> str:
        time = event.time.ToDatetime(UTC) if event.HasField("time") else _UNKNOWN_TIME
        async with self._db.transaction(purpose=f"event {event.subject}") as connection:
            advanced = await connection.fetchval(
                _ADVANCE,
                *(self._consumer.name, _thing(event), event.entity_id),
                *(event.entity_version, event.id, time, event.deleted, event.sequence),
            )
            if advanced is None:
                return "dropped"
            await self._consumer.handler(event, connection)
        return "handled"

    async def _failed(self, message: Msg, event: Event, sequence: int, error: Exception) -> None:
        if is_outage(error) and not isinstance(error, TimeoutError):
            await message.nak(delay=self._retry.delay(0).total_seconds())
            if isinstance(error, Aborted):  # a deadlock or the like: nothing is away
                return
            raise error
        count = self._failures.get(sequence, 0) + 1
        self._failures[sequence] = count
        while len(self._failures) > MAX_UNDERWAY:
            self._failures.popitem(last=False)
        if count >= self._attempts:
            log_id = secrets.token_hex(6)
            log.error("event.parked", log_id=log_id, attempts=count, exc_info=error)
            reason = error.reason if isinstance(error, Problem) else type(error).__name__
            await self._park(message, event, f"{reason}; the log has it as {log_id}", count)
            return
        log.warning("event.failed", attempts=count, exc_info=error)
        HANDLED.labels(self._db.schema, self._consumer.name, "failed").inc()
        await message.nak(delay=self._retry.delay(count - 1).total_seconds())

    async def _park(self, message: Msg, event: Event, error: str, attempts: int) -> None:
        name = self._consumer.name
        sequence = message.metadata.sequence.stream
        async with self._db.connection() as connection:
            await connection.execute(
                _PARK,
                *(name, message.subject, event.id or f"sequence {sequence}", event.entity, event.entity_id),
                *(error[:_MAX_ERROR], attempts, message.data),
            )
        self._failures.pop(sequence, None)
        HANDLED.labels(self._db.schema, name, "parked").inc()
        await message.term()
        await self._count_parked()

    async def _count_parked(self) -> None:
        async with self._db.connection() as connection:
            count = await connection.fetchval(_COUNT_PARKED, self._consumer.name)
        PARKED.labels(self._db.schema, self._consumer.name).set(count)


def _thing(event: Event) -> str:
    """`inventory.machine`: the entity with its domain, since two services may each have a `machine`."""
    domain = event.subject.split(".")[1] if event.subject.count(".") else ""
    return f"{domain}.{event.entity}"


async def _unsubscribe(subscription: JetStreamContext.PullSubscription) -> None:
    try:
        await subscription.unsubscribe()
    except (nats.errors.Error, OSError, TimeoutError) as error:
        log.debug("consumer.unsubscribe", error=str(error))
