"""Requests for the next free address of one prefix, and releases of single ones, put together into one database call.

While a call for a prefix is under way, those that come meanwhile wait, and then share the next one: one lock, one
commit and one flush for all of them. Nobody waits for company: an idle prefix is called at once. Acquires are served in
the order of arrival, releases too; of those that share a call the releases come first, so that what was let go can be
had. Several replicas coalesce each for itself; the row lock of the prefix orders them.

Who may have an address, and of which prefix, is decided before; so is who may release it, except that it must belong to
one of the projects that the release names. Specific addresses do not come here.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import asyncpg
from metal_kit.db import Database
from metal_kit.errors import Unavailable

from metal_ipam.store import addresses
from metal_ipam.store.addresses import Acquired, Entry, Release, Released

# Of each kind in one call. More of them would be cheaper still, but all of a call wait for its last one.
BATCH = 128
# Waiting longer than this many batches is longer than any client's patience.
MAX_WAITING = 32 * BATCH

Asked = TypeVar("Asked", Entry, Release)
Answer = TypeVar("Answer", Acquired, Released)


@dataclass(slots=True)
class _Waiting(Generic[Asked, Answer]):
    entry: Asked
    answer: asyncio.Future[Answer]


@dataclass(slots=True)
class _Queue:
    """What waits for one prefix."""

    acquires: deque[_Waiting[Entry, Acquired]] = field(default_factory=deque)
    releases: deque[_Waiting[Release, Released]] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.acquires) + len(self.releases)


class Coalescer:
    """One queue a prefix, at most one call under way for each. `close` waits for the calls that are."""

    def __init__(self, db: Database, *, batch: int = BATCH, max_waiting: int = MAX_WAITING) -> None:
        self._db = db
        self._batch = batch
        self._max_waiting = max_waiting
        self._queues: dict[int, _Queue] = {}
        self._workers: set[asyncio.Task[None]] = set()

    async def acquire(self, prefix_id: int, entry: Entry) -> Acquired:
        """The next free address of the prefix; outcomes as `acquire_n` names them.

        A caller that is cancelled while it waits takes nothing. One that is cancelled during the call may have got an
        address without knowing; repeating the request id tells.

        Raises:
            Unavailable: too many wait already, or the database is away.
            Aborted: lost against a concurrent change.
        """
        return await self.submit(prefix_id, entry)

    def submit(self, prefix_id: int, entry: Entry) -> asyncio.Future[Acquired]:
        """`acquire`, without waiting for it: the place in the queue is taken when this returns."""
        waiting = _Waiting[Entry, Acquired](entry, asyncio.get_running_loop().create_future())
        self._queue(prefix_id).acquires.append(waiting)
        return waiting.answer

    async def release(self, prefix_id: int, release: Release) -> Released:
        """Let an address of the prefix go; outcomes as `release_entries` names them. Raises as `acquire` does."""
        return await self.submit_release(prefix_id, release)

    def submit_release(self, prefix_id: int, release: Release) -> asyncio.Future[Released]:
        """`release`, without waiting for it."""
        waiting = _Waiting[Release, Released](release, asyncio.get_running_loop().create_future())
        self._queue(prefix_id).releases.append(waiting)
        return waiting.answer

    async def close(self) -> None:
        """Wait until every call is answered; no new ones may come."""
        await asyncio.gather(*self._workers, return_exceptions=True)

    def _queue(self, prefix_id: int) -> _Queue:
        queue = self._queues.get(prefix_id)
        if queue is None:
            queue = self._queues[prefix_id] = _Queue()
            # An empty context: the work is not this caller's alone, and must not carry his deadline or his trace.
            worker = asyncio.create_task(
                self._serve(prefix_id, queue), name=f"coalesce {prefix_id}", context=contextvars.Context()
            )
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        if len(queue) >= self._max_waiting:
            raise Unavailable("PREFIX_BUSY", "too many requests wait for this prefix; try again")
        return queue

    async def _serve(self, prefix_id: int, queue: _Queue) -> None:
        try:
            while queue:
                acquires = _next(queue.acquires, self._batch, lambda entry: entry.request_id)
                releases = _next(queue.releases, self._batch, lambda entry: str(entry.address))
                if not acquires and not releases:
                    continue
                try:
                    await self._call(prefix_id, acquires, releases)
                except asyncpg.UniqueViolationError:
                    # One of them is the retry of a request that another prefix is serving right now. Alone, that one
                    # fails for itself and not for all.
                    await self._one_by_one(prefix_id, acquires, releases)
                except Exception as error:  # Whatever it is, those who wait must learn of it.
                    _fail((*acquires, *releases), error)
        finally:
            del self._queues[prefix_id]
            _fail((*queue.acquires, *queue.releases), Unavailable("STOPPING", "the service is stopping; try again"))

    async def _call(
        self,
        prefix_id: int,
        acquires: Collection[_Waiting[Entry, Acquired]],
        releases: Collection[_Waiting[Release, Released]],
    ) -> None:
        # One statement, which commits: BEGIN and COMMIT would be two more round trips.
        async with self._db.connection() as connection:
            acquired, released = await addresses.serve(
                connection, prefix_id, [each.entry for each in acquires], [each.entry for each in releases]
            )
        _answer(acquires, acquired)
        _answer(releases, released)

    async def _one_by_one(
        self,
        prefix_id: int,
        acquires: Iterable[_Waiting[Entry, Acquired]],
        releases: Iterable[_Waiting[Release, Released]],
    ) -> None:
        for release in releases:
            try:
                await self._call(prefix_id, (), [release])
            except Exception as error:
                _fail([release], error)
        for acquire in acquires:
            try:
                await self._call(prefix_id, [acquire], ())
            except Exception as error:
                _fail([acquire], error)


def _next(
    queue: deque[_Waiting[Asked, Answer]], most: int, key: Callable[[Asked], str | None]
) -> list[_Waiting[Asked, Answer]]:
    """The next batch: those that still wait, each key once. A twin comes next, and finds what its twin did."""
    batch: list[_Waiting[Asked, Answer]] = []
    seen: set[str] = set()
    later: list[_Waiting[Asked, Answer]] = []
    while queue and len(batch) < most:
        waiting = queue.popleft()
        if waiting.answer.done():
            continue
        name = key(waiting.entry)
        if name is not None:
            if name in seen:
                later.append(waiting)
                continue
            seen.add(name)
        batch.append(waiting)
    queue.extendleft(reversed(later))
    return batch


def _answer(batch: Collection[_Waiting[Asked, Answer]], answers: Collection[Answer]) -> None:
    for waiting, answer in zip(batch, answers, strict=True):
        if not waiting.answer.done():
            waiting.answer.set_result(answer)


def _fail(batch: Iterable[_Waiting[Entry, Acquired] | _Waiting[Release, Released]], error: Exception) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)
