"""One leaf's stream: what it says is taken in in order and acknowledged, what it shall have is sent when it changes.

Any replica of fabric can serve any leaf: everything that outlives the stream is in the database, and a change made on
another replica arrives by a notification, or within a second by looking.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from metal_kit.db import Database
from metal_kit.errors import DeadlineExceeded, InvalidArgument, PermissionDenied, Problem, Unavailable
from metal_kit.identity import Caller
from metal_kit.ids import uuid7
from metal_kit.listen import Wakeup
from metal_kit.logs import get_logger
from metalplane.fabric.v1.agent_pb2 import Ack, ConnectRequest, ConnectResponse, Heartbeat, Hello
from prometheus_client import Gauge

from metal_fabric.leaves import Leaves
from metal_fabric.messages import switch_of_hello
from metal_fabric.observed import superseded
from metal_fabric.refusals import answered
from metal_fabric.store.generations import topic_of
from metal_fabric.store.syncs import SILENCE

log = get_logger(__name__)

STREAMS = Gauge("metalplane_fabric_leaf_streams", "Streams of leaves that this replica serves.")

LOOK_SECONDS = 1.0
HEARTBEAT_SECONDS = 5.0
# Signs of life are written at most this often, however much a leaf says.
SEEN_SECONDS = 2.0
_ACKS = 64
_CLOSE_SECONDS = 5.0


class LeafStream:
    """A stream from its Hello to its end."""

    def __init__(self, db: Database, leaves: Leaves, caller: Caller, stopping: asyncio.Event) -> None:
        self._listener = db.listener
        self._leaves = leaves
        self._caller = caller
        self._stopping = stopping
        self._session = uuid7()
        self._switch_id = ""
        self._partition = ""
        # Bounded: a leaf that does not read its acknowledgements is not read from either.
        self._acks: asyncio.Queue[str] = asyncio.Queue(_ACKS)
        self._heard = 0.0
        self._written = 0.0

    async def run(self, requests: AsyncIterator[ConnectRequest]) -> AsyncGenerator[ConnectResponse, None]:
        """Serve the stream until the leaf ends it.

        Raises InvalidArgument, PermissionDenied and what a refused registration is; Aborted when a newer stream of the
        leaf took over; DeadlineExceeded when the leaf fell silent; Unavailable when this replica stops.
        """
        hello = await self._hello(requests)
        with answered():
            await self._leaves.register(
                switch_of_hello(hello),
                self._session,
                generation=hello.applied_generation,
                digest=hello.applied_hash,
                chassis=hello.chassis_id,
            )
        reader: asyncio.Task[None] | None = None
        STREAMS.inc()
        try:  # from here on the leaf counts as connected
            with self._listener.subscribe(topic_of(self._switch_id)) as wakeup:
                self._heard = self._written = _now()
                reader = asyncio.create_task(self._read(requests, wakeup), name=f"leaf {self._switch_id}")
                reader.add_done_callback(lambda _task: wakeup.wake())
                sent, spoke = 0, _now()
                while True:
                    self._check(reader)
                    while not self._acks.empty():
                        spoke = _now()
                        yield ConnectResponse(ack=Ack(id=self._acks.get_nowait()))
                    current, state = await self._leaves.wanted(self._switch_id, self._session, after=sent)
                    if not current:
                        raise superseded()
                    if state is not None:
                        sent, spoke = state.generation, _now()
                        yield ConnectResponse(desired_state=state)
                    elif reader.done() and self._acks.empty():
                        # It may have ended after the check above, and then this is the last look at why.
                        reader.result()
                        return
                    elif _now() - spoke >= HEARTBEAT_SECONDS:
                        spoke = _now()
                        yield ConnectResponse(heartbeat=Heartbeat())
                    # At full seconds, when the other streams look as well: one statement serves them all.
                    await wakeup.wait(LOOK_SECONDS - _now() % LOOK_SECONDS)
        finally:
            STREAMS.dec()
            await self._close(reader)

    def _check(self, reader: asyncio.Task[None]) -> None:
        """Raise what ends the stream."""
        if reader.done():
            reader.result()
        if self._stopping.is_set():
            raise Unavailable("STOPPING", "this replica stops; connect to another one")
        if not reader.done() and _now() - self._heard > SILENCE.total_seconds():
            raise DeadlineExceeded("LEAF_SILENT", f"nothing was heard of the leaf for {SILENCE.total_seconds():g} s")

    async def _hello(self, requests: AsyncIterator[ConnectRequest]) -> Hello:
        # The interceptor saw to it that the first message is a Hello, in time, of the leaf that the certificate names.
        hello = (await anext(requests)).hello
        if hello.partition != self._caller.partition:
            raise PermissionDenied("NOT_THIS_PARTITION", "a leaf speaks only for itself", field="hello.partition")
        self._switch_id, self._partition = hello.switch_id, hello.partition
        return hello

    async def _read(self, requests: AsyncIterator[ConnectRequest], wakeup: Wakeup) -> None:
        async for request in requests:
            self._heard = _now()
            match request.WhichOneof("message"):
                case "apply_report":
                    await self._leaves.applied(self._switch_id, self._session, request.apply_report)
                    await self._acks.put(request.apply_report.id)
                    wakeup.wake()
                case "observations":
                    observations = request.observations
                    await self._leaves.observed(self._switch_id, self._session, self._partition, observations)
                    await self._acks.put(request.observations.id)
                    wakeup.wake()
                case "heartbeat":
                    pass
                case "hello":
                    raise InvalidArgument("HELLO_TWICE", "a stream has one Hello; open a new one", field="hello")
                case _:
                    raise InvalidArgument("MESSAGE_MISSING", "the message is empty or unknown", field="message")
            if self._heard - self._written >= SEEN_SECONDS:
                self._written = self._heard
                self._leaves.alive(self._switch_id, self._session)

    async def _close(self, reader: asyncio.Task[None] | None) -> None:
        if reader is not None:
            reader.cancel()
            await asyncio.wait([reader])
            if not reader.cancelled():
                # Mostly what has ended the stream and is on its way to the leaf; otherwise what came too late for it.
                log.info("leaf.reader_ended", switch=self._switch_id, error=repr(reader.exception()))
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._leaves.ended(self._switch_id, self._session)
        except (TimeoutError, Problem) as error:
            # Its silence tells the same a little later.
            log.warning("leaf.end_not_recorded", switch=self._switch_id, error=repr(error))


def _now() -> float:
    return asyncio.get_running_loop().time()
