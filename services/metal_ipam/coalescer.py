"""Requests for the next free address of one prefix, put together into one database call.

While a call for a prefix is under way, those that come meanwhile wait, and then share the next one: one lock, one
commit and one flush for all of them. Nobody waits for company: an idle prefix is called at once. Answers are in the
order of arrival. Several replicas coalesce each for itself; the row lock of the prefix orders them.

Who may have an address, and of which prefix, is decided before; specific addresses do not come here.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from dataclasses import dataclass

import asyncpg
from metal_kit.db import Database
from metal_kit.errors import Unavailable

from metal_ipam.store import addresses
from metal_ipam.store.addresses import Acquired, Entry

BATCH = 64
# Waiting longer than this many batches is longer than any client's patience.
MAX_WAITING = 64 * BATCH


@dataclass(slots=True)
class _Waiting:
    entry: Entry
    answer: asyncio.Future[Acquired]


class Coalescer:
    """One queue a prefix, at most one call under way for each. `close` waits for the calls that are."""

    def __init__(self, db: Database, *, batch: int = BATCH, max_waiting: int = MAX_WAITING) -> None:
        self._db = db
        self._batch = batch
        self._max_waiting = max_waiting
        self._queues: dict[int, deque[_Waiting]] = {}
        self._workers: set[asyncio.Task[None]] = set()

    async def acquire(self, prefix_id: int, entry: Entry) -> Acquired:
        """The next free address of the prefix; outcomes as `acquire_n` names them.

        A caller that is cancelled while it waits takes nothing. One that is cancelled during the call may have got an
        address without knowing; repeating the request id tells.

        Raises:
            Unavailable: too many wait already, or the database is away.
            Aborted: lost against a concurrent change.
        """
        queue = self._queues.get(prefix_id)
        if queue is None:
            queue = self._queues[prefix_id] = deque()
            # An empty context: the work is not this caller's alone, and must not carry his deadline or his trace.
            worker = asyncio.create_task(
                self._serve(prefix_id, queue), name=f"coalesce {prefix_id}", context=contextvars.Context()
            )
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        if len(queue) >= self._max_waiting:
            raise Unavailable("PREFIX_BUSY", "too many requests wait for this prefix; try again")
        waiting = _Waiting(entry, asyncio.get_running_loop().create_future())
        queue.append(waiting)
        return await waiting.answer

    async def close(self) -> None:
        """Wait until every call is answered; no new ones may come."""
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def _serve(self, prefix_id: int, queue: deque[_Waiting]) -> None:
        try:
            while batch := self._next(queue):
                try:
                    await self._call(prefix_id, batch)
                except asyncpg.UniqueViolationError:
                    # One of them is the retry of a request that another prefix is serving right now. Alone, that one
                    # fails for itself and not for all.
                    await self._one_by_one(prefix_id, batch)
                except Exception as error:  # Whatever it is, those who wait must learn of it.
                    _fail(batch, error)
        finally:
            del self._queues[prefix_id]
            _fail(list(queue), Unavailable("STOPPING", "the service is stopping; try again"))

    def _next(self, queue: deque[_Waiting]) -> list[_Waiting]:
        """The next batch: those that still wait, each request id once. A twin comes next, and finds the answer then."""
        batch: list[_Waiting] = []
        seen: set[str] = set()
        later: list[_Waiting] = []
        while queue and len(batch) < self._batch:
            waiting = queue.popleft()
            if waiting.answer.done():
                continue
            request_id = waiting.entry.request_id
            if request_id is not None and request_id in seen:
                later.append(waiting)
                continue
            if request_id is not None:
                seen.add(request_id)
            batch.append(waiting)
        queue.extendleft(reversed(later))
        return batch

    async def _call(self, prefix_id: int, batch: list[_Waiting]) -> None:
        async with self._db.transaction(purpose="acquire addresses") as connection:
            results = await addresses.acquire_next(connection, prefix_id, [waiting.entry for waiting in batch])
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(result)

    async def _one_by_one(self, prefix_id: int, batch: list[_Waiting]) -> None:
        for waiting in batch:
            try:
                await self._call(prefix_id, [waiting])
            except Exception as error:
                _fail([waiting], error)


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)
