"""Asks every BMC now and then whether its machine is on, and sometimes who it is.

Spread out by jitter, bounded in number, and slower for BMCs that do not answer, so that dead ones cost little and
delay nobody. Blocked logins are not polled at all. Replicas share the work: a poll is claimed in the database.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from datetime import timedelta

import asyncpg
from metal_kit.backoff import pause
from metal_kit.clock import Clock
from metal_kit.db import Database
from metal_kit.errors import Problem
from metal_kit.logs import get_logger

from metal_bmc.drivers.errors import BmcError
from metal_bmc.exchange import BmcExchange
from metal_bmc.store import EndpointStore, ScheduleStore

log = get_logger(__name__)

_TICK = timedelta(seconds=1)
_JITTER = 0.2
_MOST_DOUBLINGS = 6
_SLOWEST = timedelta(minutes=15)


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

    async def run(self, stopping: asyncio.Event) -> None:
        """Poll until `stopping` is set; polls that run then are given up."""
        try:
            while not stopping.is_set():
                try:
                    await self._start_due()
                except (Problem, asyncpg.PostgresError, OSError) as error:
                    log.warning("bmc.poll.waits", cause=type(error).__name__)
                await pause(stopping, min(_TICK, self._plan.interval))
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _start_due(self) -> None:
        while (free := self._plan.parallel - len(self._running)) > 0:
            # Held for longer than a poll can take; a replica that dies with it delays the next poll by this much.
            hold = timedelta(seconds=self._plan.deadline * 3)
            async with self._db.transaction(purpose="claim polls") as connection:
                machines = await self._schedule.claim_polls(connection, self._partition, most=free, hold=hold)
            for machine in machines:
                task = asyncio.create_task(self._poll(machine), name=f"poll {machine}")
                self._running.add(task)
                task.add_done_callback(self._running.discard)
            if len(machines) < free:
                return
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)

    async def _poll(self, machine: str) -> None:
        try:
            try:
                await self._ask(machine)
            except BmcError as error:
                log.info("bmc.poll.failed", machine=machine, reason=error.reason)
            async with self._db.connection() as connection:
                endpoint = await self._endpoints.get(connection, machine)
                failures = endpoint.observation.failures if endpoint is not None else 0
                after = next_poll(self._plan, failures, random.random())
                await self._schedule.next_poll(connection, machine, after)
        except (Problem, asyncpg.PostgresError, OSError):
            # The claim runs out by itself and the machine is due again.
            log.warning("bmc.poll.not_recorded", machine=machine)

    async def _ask(self, machine: str) -> None:
        async with self._db.connection() as connection:
            endpoint = await self._endpoints.get(connection, machine)
        if endpoint is None:
            return
        inspected_at = endpoint.observation.inspected_at
        if inspected_at is None or self._clock.now() - inspected_at >= self._plan.inspect_every:
            await self._exchange.inspect(machine, deadline=self._plan.deadline)
        else:
            await self._exchange.powered(machine, deadline=self._plan.deadline)
