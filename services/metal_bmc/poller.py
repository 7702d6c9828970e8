"""Asks every BMC now and then whether its machine is on, and sometimes who it is.

Spread out by jitter, bounded in number, and slower for BMCs that do not answer, so that dead ones cost little and
delay nobody: a poll that waits for an answer for longer than most take gives its place to another one. Blocked logins
are not polled at all. Each replica polls the BMCs that it owns; when each is asked again is `pacing`'s word. Most BMCs
say what they said before; such answers are written together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
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
from metal_bmc.ownership import NotOwner
from metal_bmc.pacing import PollPlan
from metal_bmc.store import ScheduleStore

log = get_logger(__name__)

_TICK = timedelta(seconds=1)
# Who takes longer than this gives its place to another: a slow BMC, one that is logged in to, or one that died.
_BRISK_SECONDS = 0.5
# So many polls for each place may wait for slow ones. Each is a task and a timer.
_LINGERERS = 32
_TROUBLE = (Problem, asyncpg.PostgresError, OSError)


class Poller:
    """`run` it as a task in every replica."""

    def __init__(self, db: Database, exchange: BmcExchange, clock: Clock, *, partition: str, plan: PollPlan) -> None:
        self._db, self._exchange, self._clock = db, exchange, clock
        self._partition, self._plan = partition, plan
        self._schedule = ScheduleStore()
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
        while (free := self._free()) > 0 and (buckets := self._exchange.ownership.buckets()):
            # Held for longer than a poll can take; a replica that dies with it delays the next poll by this much.
            hold = timedelta(seconds=self._plan.deadline * 3)
            async with self._db.connection() as connection:
                due = await self._schedule.claim_polls(
                    connection, self._partition, buckets=buckets, most=free, hold=hold
                )
            read_at = asyncio.get_running_loop().time()
            for endpoint in due:
                self._start(endpoint, read_at)
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

    def _start(self, endpoint: Endpoint, read_at: float) -> None:
        task = asyncio.create_task(self._poll(endpoint, read_at), name=f"poll {endpoint.machine}")
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

    async def _poll(self, endpoint: Endpoint, read_at: float) -> None:
        inspected_at = endpoint.observation.inspected_at
        try:
            if inspected_at is None or self._clock.now() - inspected_at >= self._plan.inspect_every:
                await self._exchange.inspect(endpoint.machine, deadline=self._plan.deadline)
            else:
                await self._exchange.poll(endpoint, read_at=read_at, deadline=self._plan.deadline)
        except NotOwner:
            return
        except BmcError as error:
            log.info("bmc.poll.failed", machine=endpoint.machine, reason=error.reason)
        except _TROUBLE:
            # The claim runs out by itself and the machine is due again.
            log.warning("bmc.poll.not_recorded", machine=endpoint.machine)
