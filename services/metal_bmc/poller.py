"""Asks every BMC now and then whether its machine is on, and sometimes who it is.

Spread out by jitter, bounded in number, and slower for BMCs that do not answer, so that dead ones cost little and
delay nobody: a poll that waits for an answer for longer than most take gives its place to another one. Blocked logins
are not polled at all. Replicas share the work: polls are claimed in the database. Most BMCs say what they said before;
such answers are written together.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import timedelta

import asyncpg
from metal_kit.backoff import pause
from metal_kit.clock import Clock
from metal_kit.db import Database
from metal_kit.errors import Problem
from metal_kit.logs import get_logger

from metal_bmc.drivers.errors import BmcError
from metal_bmc.endpoint import Endpoint
from metal_bmc.exchange import BmcExchange
from metal_bmc.store import EndpointStore, ScheduleStore

log = get_logger(__name__)

_TICK = timedelta(seconds=1)
_JITTER = 0.2
_MOST_DOUBLINGS = 6
_SLOWEST = timedelta(minutes=15)
# Who takes longer than this gives its place to another: a slow BMC, one that is logged in to, or one that died.
_BRISK_SECONDS = 0.5
# So many polls for each place may wait for slow ones. Each is a task and a timer.
_LINGERERS = 32
_TROUBLE = (Problem, asyncpg.PostgresError, OSError)


@dataclass(frozen=True, slots=True)
class PollPlan:
    """`interval` between two readings of the power, `inspect_every` between two of the identity, `parallel` at once."""

    interval: timedelta = timedelta(seconds=60)
    inspect_every: timedelta = timedelta(hours=6)
    parallel: int = 3
    deadline: float = 20.0


def next_poll(plan: PollPlan, failures: int, chance: float) -> timedelta:
    """When to ask again; `chance` is uniform in [0, 1). Doubles with each failure in a row, up to 15 minutes."""
    base: timedelta = min(plan.interval * 2 ** min(failures, _MOST_DOUBLINGS), max(_SLOWEST, plan.interval))
    return timedelta(seconds=base.total_seconds() * (1 - _JITTER + 2 * _JITTER * chance))


class Poller:
    """`run` it as a task in every replica."""

    def __init__(self, db: Database, exchange: BmcExchange, clock: Clock, *, partition: str, plan: PollPlan) -> None:
        self._db, self._exchange, self._clock = db, exchange, clock
        self._partition, self._plan = partition, plan
        self._schedule, self._endpoints = ScheduleStore(), EndpointStore()
        self._running: set[asyncio.Task[None]] = set()
        self._brisk: set[asyncio.Task[None]] = set()
        self._place_free = asyncio.Event()

    async def run(self, stopping: asyncio.Event) -> None:
        """Poll until `stopping` is set; polls that run then are given up."""
        try:
            while not stopping.is_set():
                await self._try(self._start_due())
                await pause(stopping, min(_TICK, self._plan.interval))
                await self._try(self._exchange.write())
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            await self._try(self._exchange.write())

    @staticmethod
    async def _try(step: Awaitable[None]) -> None:
        try:
            await step
        except _TROUBLE as error:
            log.warning("bmc.poll.waits", cause=type(error).__name__)

    async def _start_due(self) -> None:
        while (free := self._free()) > 0:
            # Held for longer than a poll can take; a replica that dies with it delays the next poll by this much.
            hold = timedelta(seconds=self._plan.deadline * 3)
            async with self._db.connection() as connection:
                due = await self._schedule.claim_polls(connection, self._partition, most=free, hold=hold)
            for endpoint in due:
                self._start(endpoint)
            if len(due) < free:
                return
            self._place_free.clear()
            if not self._free():
                try:
                    async with asyncio.timeout(_TICK.total_seconds()):
                        await self._place_free.wait()
                except TimeoutError:
                    return

    def _free(self) -> int:
        """How many more polls may be started."""
        lingering = len(self._running) - len(self._brisk)
        return min(self._plan.parallel - len(self._brisk), self._plan.parallel * _LINGERERS - lingering)

    def _start(self, endpoint: Endpoint) -> None:
        task = asyncio.create_task(self._poll(endpoint), name=f"poll {endpoint.machine}")
        self._running.add(task)
        # Who did not answer the last time will hardly answer soon.
        if not endpoint.observation.failures:
            self._brisk.add(task)
        patience = asyncio.get_running_loop().call_later(_BRISK_SECONDS, self._give_place, task)

        def ended(task: asyncio.Task[None]) -> None:
            patience.cancel()
            self._running.discard(task)
            self._give_place(task)

        task.add_done_callback(ended)

    def _give_place(self, task: asyncio.Task[None]) -> None:
        self._brisk.discard(task)
        self._place_free.set()

    async def _poll(self, endpoint: Endpoint) -> None:
        machine = endpoint.machine
        try:
            try:
                if await self._ask(endpoint):
                    return
            except BmcError as error:
                log.info("bmc.poll.failed", machine=machine, reason=error.reason)
            async with self._db.connection() as connection:
                current = await self._endpoints.get(connection, machine)
                failures = current.observation.failures if current is not None else 0
                await self._schedule.next_poll(connection, machine, self._after(failures))
        except _TROUBLE:
            # The claim runs out by itself and the machine is due again.
            log.warning("bmc.poll.not_recorded", machine=machine)

    async def _ask(self, endpoint: Endpoint) -> bool:
        """Whether it was nothing new, and the next poll is settled with that."""
        inspected_at = endpoint.observation.inspected_at
        if inspected_at is None or self._clock.now() - inspected_at >= self._plan.inspect_every:
            await self._exchange.inspect(endpoint.machine, deadline=self._plan.deadline)
            return False
        return await self._exchange.glance(endpoint, after=self._after(0), deadline=self._plan.deadline)

    def _after(self, failures: int) -> timedelta:
        return next_poll(self._plan, failures, random.random())
