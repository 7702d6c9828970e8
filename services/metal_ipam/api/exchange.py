"""One stream of ExchangeIps: changes in, answers out, each change for itself.

The reader puts changes into the queues of their prefixes without waiting for them; whatever is answered by the time
the caller can take more goes into one message. What is not common (a given address, a full prefix, a retry) goes the
way that a call of its own would go, as a task. A bounded number of changes is under way: beyond it nothing is read, and
flow control holds the caller back.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from functools import lru_cache
from typing import Any

from metal_kit.errors import PermissionDenied, Problem, Unavailable
from metal_kit.identity import Caller, missing
from metal_kit.ids import uuid7
from metal_kit.logs import get_logger
from metal_kit.timestamps import parse_timestamp, to_timestamp
from metal_kit.validation import check
from metalplane.common.v1.access_pb2 import PlaneRole
from metalplane.ipam.v1 import ip_pb2 as pb

from metal_ipam.acquisition import Acquisition, Pending
from metal_ipam.addresses import Owner, Wish
from metal_ipam.api.messages import family_of, ip_type_of, owner_of
from metal_ipam.call import Call, in_the_way
from metal_ipam.cidr import parse_address
from metal_ipam.store.addresses import Acquired, Release, Released

# Changes under way on one stream, those included whose answer has not been taken yet.
WINDOW = 1024

log = get_logger("exchange")
# What is acquired together has one time, and to convert it takes longer than the rest of an answer.
_stamp = lru_cache(maxsize=8)(to_timestamp)


class Exchange:
    """The changes of one stream. `answers` may be iterated once."""

    def __init__(self, acquisition: Acquisition, caller: Caller, project: str, stopping: asyncio.Event) -> None:
        self._acquisition = acquisition
        self._caller = caller
        self._plane = caller.may_plane(PlaneRole.PLANE_ROLE_OPERATOR)
        self._project = project
        self._stopping = stopping
        self._ready: list[pb.IpAnswer] = []
        self._under_way = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def answers(self, requests: AsyncIterator[pb.ExchangeIpsRequest]) -> AsyncGenerator[pb.ExchangeIpsResponse]:
        """The answers to the changes of `requests` as they come.

        Raises Unavailable when the service stops before the caller has closed his side: what was read is answered.
        """
        reading = asyncio.create_task(self._read(requests), name="exchange reader")
        stopping = asyncio.create_task(self._stopping.wait(), name="exchange stop")
        reading.add_done_callback(lambda _: self._wake.set())
        stopping.add_done_callback(lambda _: self._wake.set())
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if stopping.done():
                    reading.cancel()
                if self._ready:
                    ready, self._ready = self._ready, []
                    yield pb.ExchangeIpsResponse(answers=ready)
                    self._under_way -= len(ready)
                    self._room.set()
                if self._ready:
                    self._wake.set()
                elif reading.done() and not self._under_way:
                    if reading.cancelled():
                        raise Unavailable("STOPPING", "the service is stopping; go on in a new stream")
                    reading.result()
                    return
        finally:
            reading.cancel()
            stopping.cancel()
            for task in self._tasks:
                task.cancel()

    async def _read(self, requests: AsyncIterator[pb.ExchangeIpsRequest]) -> None:
        async for request in requests:
            while self._under_way and self._under_way + len(request.changes) > WINDOW:
                self._room.clear()
                await self._room.wait()
            for change in request.changes:
                self._under_way += 1
                try:
                    check(change)
                    if change.WhichOneof("what") == "acquire":
                        await self._acquire(change)
                    else:
                        await self._release(change)
                except Exception as error:
                    self._fail(change.number, error)

    # Acquiring

    async def _acquire(self, change: pb.IpChange) -> None:
        asked = change.acquire
        known = await self._acquisition.known.get(asked.network)
        family = family_of(asked.family)
        if not (family or asked.address) and known is not None:
            family = min(known.network.families)
        address = parse_address(asked.address, field="acquire.address") if asked.address else None
        call = Call(
            project=self._project,
            wishes=(Wish(asked.network, address, family),),
            owner=self._owner(asked.owner, "acquire.owner"),
            type=ip_type_of(asked.type),
            name=asked.name,
            labels=dict(asked.labels) if asked.labels else {},
            request_id=change.request_id,
            request_hash=_hash(asked) if change.request_id else "",
            plane=self._plane,
            actor=self._caller.label,
        )
        pending = self._acquisition.enqueue(call, known) if known is not None else None
        number = change.number
        if pending is None:
            self._spawn(number, self._acquire_alone(number, call))
        else:
            pending.answer.add_done_callback(lambda answer: self._acquired(number, call, pending, answer))

    def _acquired(self, number: int, call: Call, pending: Pending, answer: asyncio.Future[Acquired]) -> None:
        error = asyncio.CancelledError() if answer.cancelled() else answer.exception()
        if isinstance(error, Problem):
            self._fail(number, error)
            return
        result = None if error is not None else answer.result()
        if result is None or result.outcome != "ok" or not result.fresh:
            self._acquisition.outrun(pending, result)
            self._spawn(number, self._acquire_alone(number, call))
            return
        self._done(
            pb.IpAnswer(
                number=number, address=str(result.address), prefix=pending.prefix, create_time=_stamp(result.time)
            )
        )

    async def _acquire_alone(self, number: int, call: Call) -> None:
        [ip] = await self._acquisition.acquire(call)
        self._done(
            pb.IpAnswer(
                number=number, address=str(ip.address), prefix=str(ip.prefix), create_time=to_timestamp(ip.create_time)
            )
        )

    # Releasing

    async def _release(self, change: pb.IpChange) -> None:
        asked = change.release
        release = Release(
            parse_address(asked.address, field="release.address"),
            [self._project],
            owner=self._owner(asked.owner, "release.owner"),
            seen=parse_timestamp(asked.create_time, field="release.create_time")
            if asked.HasField("create_time")
            else None,
            request_id=f"{self._project}/{change.request_id}/release" if change.request_id else None,
            actor=self._caller.label,
        )
        number = change.number
        answer = await self._acquisition.enqueue_release(asked.network, release)
        if answer is None:
            raise missing(f"address {release.address} in network {asked.network}")
        answer.add_done_callback(lambda answer: self._released(number, release, answer))

    def _released(self, number: int, release: Release, answer: asyncio.Future[Released]) -> None:
        error = asyncio.CancelledError() if answer.cancelled() else answer.exception()
        if error is not None:
            self._fail(number, error)
            return
        result = answer.result()
        if result.outcome in {"ok", "known"}:
            self._done(pb.IpAnswer(number=number, address=str(release.address)))
        elif result.outcome == "in_use":
            self._fail(number, in_the_way(release.address, result.holder))
        else:
            self._fail(number, missing(f"address {release.address}"))

    # Answers

    def _owner(self, message: pb.Owner, field: str) -> Owner:
        owner = owner_of(message, field=field)
        if owner and not self._caller.is_service:
            raise PermissionDenied("OWNER_NOT_ALLOWED", "only services name an owner; leave it out", field=field)
        return owner

    def _done(self, answer: pb.IpAnswer) -> None:
        self._ready.append(answer)
        self._wake.set()

    def _fail(self, number: int, error: BaseException) -> None:
        if isinstance(error, Problem):
            problem = error
        else:
            # Nobody foresaw this one: the log has it in full, the caller an id to ask about, as for a whole call.
            log_id = uuid7()
            log.error("exchange.defect", log_id=log_id, caller=self._caller.label, exc_info=error)
            problem = Problem("INTERNAL", f"internal error; the log has it under {log_id}", metadata={"log_id": log_id})
        code: int = problem.code.value[0]
        self._done(
            pb.IpAnswer(
                number=number,
                error=pb.IpChangeError(
                    code=code,
                    reason=problem.reason,
                    message=problem.message,
                    field=problem.field,
                    metadata=problem.metadata,
                ),
            )
        )

    def _spawn(self, number: int, work: Awaitable[None]) -> None:
        async def run() -> None:
            try:
                await work
            except Exception as error:
                self._fail(number, error)

        task = asyncio.create_task(run(), name="exchange change")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _hash(asked: Any) -> str:
    """What tells two changes with one request id apart."""
    return hashlib.sha256(asked.SerializeToString(deterministic=True)).hexdigest()[:32]
