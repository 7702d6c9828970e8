"""Requests of one kind that wait for each other at a key, and are served together in one statement.

While a key is being served, those that come for it meanwhile wait, and then share the next statement: one lock, one
commit and one flush for all of them. Who is alone is served at once; where many come, a batch waits up to PATIENCE for
as many as the last one had. Requests of a key are served in the order of arrival.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from metal_kit.company import Company
from metal_kit.errors import Unavailable

from metal_ipam import waiting
from metal_ipam.waiting import Waiting

# More of them would be cheaper still, but all of a batch wait for its last one.
BATCH = 64
# Batches under way: a part of the connections, so that other requests find some.
CALLS = 4
# Seconds that a request may take longer for company.
PATIENCE = 0.005
# Of one key. Waiting longer than this many batches is longer than any client's patience.
MAX_WAITING = 32 * BATCH

Key = TypeVar("Key")
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Batches(Generic[Key, Asked, Answer]):
    """One queue a key, each in at most one batch at a time. `close` waits for the batches that are under way."""

    def __init__(
        self,
        serve: Callable[[Key, Sequence[Asked]], Awaitable[Sequence[Answer]]],
        twins: Callable[[Asked], str | None],
    ) -> None:
        """`serve` answers a batch in its order, and has an effect wholly or not at all. Of requests with the same value
        of `twins`, unless it is None, only one is in a batch."""
        self._serve = serve
        self._twins = twins
        self._company = Company(PATIENCE)
        self._calls = asyncio.Semaphore(CALLS)
        self._queues: dict[Key, deque[Waiting[Asked, Answer]]] = {}
        self._workers: set[asyncio.Task[None]] = set()

    async def ask(self, key: Key, asked: Asked) -> Answer:
        """The answer to one request. A caller that is cancelled while it waits has no effect; one that is cancelled
        during the batch may have had one without knowing.

        Raises:
            Unavailable: too many wait already, or the service is stopping.
            Exception: what `serve` raises for the batch, be it for another one's sake.
        """
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
            # An empty context: the work is not this caller's alone, and must not carry his deadline or his trace.
            worker = asyncio.create_task(self._work(key, queue), name="batches", context=contextvars.Context())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        if len(queue) >= MAX_WAITING:
            raise Unavailable("PREFIX_BUSY", "too many such requests wait already; try again")
        one: Waiting[Asked, Answer] = waiting.wait(asked)
        queue.append(one)
        self._company.arrived()
        return await one.answer

    async def close(self) -> None:
        """Wait until every request is answered; no new ones may come."""
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def _work(self, key: Key, queue: deque[Waiting[Asked, Answer]]) -> None:
        """Batches, one after the other, for as long as something waits."""
        batch: list[Waiting[Asked, Answer]] = []
        try:
            while queue:
                await self._company.wait()
                async with self._calls:
                    before = len(queue)
                    batch = waiting.take(queue, BATCH, self._twins)
                    self._company.left(before - len(queue))
                    if batch:
                        await self._answer(key, batch)
                    self._company.done()
        except asyncio.CancelledError:
            waiting.fail((*batch, *queue), Unavailable("STOPPING", "the service is stopping; try again"))
            raise
        finally:
            del self._queues[key]

    async def _answer(self, key: Key, batch: Sequence[Waiting[Asked, Answer]]) -> None:
        """Serve a batch; whatever happens, those who wait learn of it."""
        try:
            answers = await self._serve(key, [each.entry for each in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(answers)} answers to {len(batch)} requests")
        except Exception as error:
            waiting.fail(batch, error)
        else:
            waiting.answer(batch, answers)
