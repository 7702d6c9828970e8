"""Requests for the next free address, and releases of single ones, put together into few database calls.

While a prefix is in a call, those that come for it meanwhile wait, and then share the next one: one lock, one commit
and one flush for all of them. A call serves many prefixes when many have something waiting. Who is alone is served at
once; where many come, the next call waits up to PATIENCE for as many as the last one had. Acquires of a prefix are
served in the order of arrival, releases too; of those that share a call the releases come first, so that what was let
go can be had.
Several replicas coalesce each for itself; the row locks of the prefixes, taken in the order of their ids, order them.

Who may have an address, and of which prefix, is decided before; so is who may release it, except that it must belong to
one of the projects that the release names. Specific addresses do not come here.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import asyncpg
from metal_kit.company import Company
from metal_kit.db import Database
from metal_kit.errors import Aborted, InvalidArgument, Unavailable

from metal_ipam import waiting
from metal_ipam.store import addresses, quotas
from metal_ipam.store.addresses import Acquired, Entry, Release, Released, Work
from metal_ipam.waiting import Waiting

# Of each kind and prefix in one call. More of them would be cheaper still, but all of a call wait for its last one.
BATCH = 128
# Prefixes in one call: while one of them is locked by another replica, the others of the call wait with it.
PREFIXES = 32
# Calls under way: a part of the connections, so that other requests find some.
CALLS = 4
# Seconds. One address a call costs Postgres four times what it costs in a call of twenty, and us twice.
PATIENCE = 0.005
# Waiting longer than this many batches is longer than any client's patience.
MAX_WAITING = 32 * BATCH


@dataclass(slots=True)
class _Queue:
    """What waits for one prefix."""

    acquires: deque[Waiting[Entry, Acquired]] = field(default_factory=deque)
    releases: deque[Waiting[Release, Released]] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.acquires) + len(self.releases)


@dataclass(slots=True)
class _Batch:
    """What is asked of one prefix in one call."""

    prefix_id: int
    acquires: Sequence[Waiting[Entry, Acquired]]
    releases: Sequence[Waiting[Release, Released]]

    def work(self) -> Work:
        return Work(self.prefix_id, [each.entry for each in self.acquires], [each.entry for each in self.releases])

    def without(self, limited: Collection[str]) -> _Batch:
        """The rest of the batch; those of limited projects are told so."""
        rest: list[Waiting[Entry, Acquired]] = []
        for each in self.acquires:
            if each.entry.project not in limited:
                rest.append(each)
            elif not each.answer.done():
                each.answer.set_result(Acquired("limited"))
        return _Batch(self.prefix_id, rest, self.releases)

    def fail(self, error: Exception) -> None:
        waiting.fail((*self.acquires, *self.releases), error)

    def alone(self) -> list[_Batch]:
        """Each entry in a batch of its own, in the order in which the batch would have served them."""
        releases = [_Batch(self.prefix_id, (), [each]) for each in self.releases]
        return releases + [_Batch(self.prefix_id, [each], ()) for each in self.acquires]


class Coalescer:
    """One queue a prefix, each in at most one call at a time. `close` waits for the calls that are under way."""

    def __init__(self, db: Database, *, batch: int = BATCH, max_waiting: int = MAX_WAITING) -> None:
        self._db = db
        self._batch = batch
        self._max_waiting = max_waiting
        self._company = Company(PATIENCE)
        self._queues: dict[int, _Queue] = {}
        # Prefixes with something waiting that are in no call, in the order in which they became so.
        self._idle: dict[int, None] = {}
        # Not the number of tasks: one that has found nothing more to do stays among these for a moment.
        self._calls = 0
        self._workers: set[asyncio.Task[None]] = set()

    async def acquire(self, prefix_id: int, entry: Entry) -> Acquired:
        """The next free address of the prefix; outcomes as `acquire_n` names them, and `limited` when the project has a
        quota, which is not counted here.

        A caller that is cancelled while it waits takes nothing. One that is cancelled during the call may have got an
        address without knowing; repeating the request id tells.

        Raises:
            Unavailable: too many wait already, or the database is away.
            Aborted: lost against a concurrent change.
        """
        return await self.submit(prefix_id, entry)

    def submit(self, prefix_id: int, entry: Entry) -> asyncio.Future[Acquired]:
        """`acquire`, without waiting for it: the place in the queue is taken when this returns."""
        one: Waiting[Entry, Acquired] = waiting.wait(entry)
        self._queue(prefix_id).acquires.append(one)
        self._company.arrived()
        return one.answer

    async def release(self, prefix_id: int, release: Release) -> Released:
        """Let an address of the prefix go; outcomes as `release_entries` names them. Raises as `acquire` does."""
        return await self.submit_release(prefix_id, release)

    def submit_release(self, prefix_id: int, release: Release) -> asyncio.Future[Released]:
        """`release`, without waiting for it."""
        one: Waiting[Release, Released] = waiting.wait(release)
        self._queue(prefix_id).releases.append(one)
        self._company.arrived()
        return one.answer

    async def close(self) -> None:
        """Wait until every call is answered; no new ones may come."""
        await asyncio.gather(*self._workers, return_exceptions=True)

    def _queue(self, prefix_id: int) -> _Queue:
        queue = self._queues.get(prefix_id)
        if queue is None:
            queue = self._queues[prefix_id] = _Queue()
            self._idle[prefix_id] = None
            if self._calls < CALLS:
                self._calls += 1
                # An empty context: the work is not this caller's alone, and must not carry his deadline or his trace.
                worker = asyncio.create_task(self._serve(), name="coalesce", context=contextvars.Context())
                self._workers.add(worker)
                worker.add_done_callback(self._workers.discard)
        if len(queue) >= self._max_waiting:
            raise Unavailable("PREFIX_BUSY", "too many requests wait for this prefix; try again")
        return queue

    async def _serve(self) -> None:
        """Calls, one after the other, for as long as something waits that is in no other call."""
        batches: list[_Batch] = []
        try:
            while self._idle:
                await self._company.wait()
                batches = self._take()
                await self._call(batches)
                self._company.done()
                self._give_back(batches)
        except BaseException:
            for batch in batches:
                batch.fail(Unavailable("STOPPING", "the service is stopping; try again"))
                self._queues.pop(batch.prefix_id, None)
            raise
        finally:
            self._calls -= 1

    def _take(self) -> list[_Batch]:
        batches: list[_Batch] = []
        taken = 0
        while self._idle and len(batches) < PREFIXES:
            prefix_id = next(iter(self._idle))
            del self._idle[prefix_id]
            queue = self._queues[prefix_id]
            before = len(queue)
            acquires = waiting.take(queue.acquires, self._batch, lambda entry: entry.request_id)
            releases = waiting.take(queue.releases, self._batch, lambda entry: str(entry.address))
            taken += before - len(queue)
            batches.append(_Batch(prefix_id, acquires, releases))
        self._company.left(taken)
        return sorted(batches, key=lambda batch: batch.prefix_id)

    def _give_back(self, batches: Iterable[_Batch]) -> None:
        for batch in batches:
            if self._queues[batch.prefix_id]:
                self._idle[batch.prefix_id] = None
            else:
                del self._queues[batch.prefix_id]

    async def _call(self, batches: Sequence[_Batch]) -> None:
        """Serve the batches; whatever happens, those who wait learn of it."""
        try:
            # One statement, which commits: BEGIN and COMMIT would be two more round trips.
            async with self._db.connection() as connection:
                # One look for all of them. Those with a quota have to be counted one project after the other, not here.
                projects = {each.entry.project for batch in batches for each in batch.acquires}
                if projects and (limited := await quotas.limited(connection, projects)):
                    batches = [batch.without(limited) for batch in batches]
                batches = [batch for batch in batches if batch.acquires or batch.releases]
                if not batches:
                    return
                served = await addresses.serve(connection, [batch.work() for batch in batches])
        except (asyncpg.UniqueViolationError, InvalidArgument) as error:
            # One of them is the retry of a request that another prefix is serving right now, or has a text that
            # Postgres cannot hold. Alone, that one fails for itself and not for all.
            parts = [part for batch in batches for part in batch.alone()]
            await self._apart(parts, error, known_apart=len(parts) == 1)
        except Aborted as error:
            # What holds up one prefix is not the others' affair.
            await self._apart([*batches], error, known_apart=len(batches) == 1)
        except Exception as error:
            for batch in batches:
                batch.fail(error)
        else:
            for batch, result in zip(batches, served, strict=True):
                waiting.answer(batch.acquires, result.acquired)
                waiting.answer(batch.releases, result.released)

    async def _apart(self, parts: Sequence[_Batch], error: Exception, *, known_apart: bool) -> None:
        """Serve each part by itself, unless it was alone already: then the error is its own."""
        for part in parts:
            if known_apart:
                part.fail(error)
            else:
                await self._call([part])
