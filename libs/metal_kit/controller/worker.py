"""Claims keys, keeps their leases, sweeps, and stops in good order.

One dispatcher claims as many keys as there are free workers; a heartbeat prolongs all leases with one statement; a
sweep puts forgotten keys back. A key whose lease could not be prolonged is given up before another may take it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta
from typing import Any, cast

import asyncpg

from metal_kit.backoff import Backoff, pause
from metal_kit.controller import metrics, queue
from metal_kit.controller.attempt import Attempt
from metal_kit.controller.outcome import Reconciler, Sweeping
from metal_kit.controller.queue import Claim
from metal_kit.db import Database, is_outage
from metal_kit.errors import Problem
from metal_kit.lease import new_holder
from metal_kit.listen import Wakeup, wake_at
from metal_kit.logs import get_logger

log = get_logger(__name__)

LEASE = timedelta(seconds=30)
SWEEP_EVERY = timedelta(seconds=60)
ACT_LIMIT = timedelta(seconds=60)
DRAIN = timedelta(seconds=10)
FAILURES = Backoff(timedelta(seconds=1), timedelta(minutes=5))
_CONTENDED = Backoff(timedelta(milliseconds=2), timedelta(milliseconds=500))
_OUTAGE = Backoff(timedelta(milliseconds=200), timedelta(seconds=5))
# The part of a lease that we rely on; the rest is for a cancelled attempt to come to its end.
_CERTAIN = 0.9
_POLL_SECONDS = 5.0
_MEASURE_EVERY = timedelta(seconds=15)
_TROUBLE = (Problem, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


class _Work:
    """A key in the works: its claim, its task, and the alarm that goes off before the lease ends."""

    def __init__(self, held: Claim) -> None:
        self.held = held
        self.task: asyncio.Task[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def runs(self) -> bool:
        """Whether the attempt has not ended."""
        return self.task is not None and not self.task.done()

    def good_until(self, moment: float) -> None:
        """The lease is certainly ours until `moment` (loop time); without a newer word the attempt is cancelled."""
        self.end_alarm()
        self._alarm = asyncio.get_running_loop().call_at(moment, self.give_up, "the lease could not be prolonged")

    def end_alarm(self) -> None:
        """The attempt has ended."""
        if self._alarm is not None:
            self._alarm.cancel()

    def give_up(self, why: str) -> None:
        """Cancel the attempt, since another may work on the key now or soon."""
        if self.task is not None and self.runs and not self.task.cancelling():
            log.warning("controller.gives_up", key=self.held.key, fence=self.held.fence, why=why)
            self.task.cancel()


class Controller:
    """Reconciles the keys of one kind with up to `workers` at a time. `run` it as a task in every replica.

    Args:
        lease: how long a worker that stopped beating keeps its key; the takeover happens at most `lease` plus a
            second later.
        act_limit: how long one `act` may take before it counts as failed.
        backoff: delays after Failed outcomes that name none.
        sweep_every: pause between two sweeps, when the reconciler has a `sweep`.
        drain: how long running attempts get when the service stops, before they are cancelled and given back.
        shards: which shards of the keys (`shard_of`) are this replica's to work on now; asked before each claim, and
            None means all. `NOTIFY reconcile:<kind>` after it changed, or the change is seen within 5 s.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        db: Database,
        *,
        workers: int = 8,
        lease: timedelta = LEASE,
        act_limit: timedelta = ACT_LIMIT,
        backoff: Backoff = FAILURES,
        sweep_every: timedelta = SWEEP_EVERY,
        drain: timedelta = DRAIN,
        shards: Callable[[], Collection[int]] | None = None,
    ) -> None:
        if workers < 1:
            raise ValueError("a controller needs at least one worker")
        self.kind = reconciler.kind
        self._reconciler = reconciler
        self._db = db
        self._workers = workers
        self._lease = lease
        self._sweep_every = sweep_every
        self._drain = drain
        self._shards = shards
        self._holder = new_holder()
        self._attempt = Attempt(reconciler, db, holder=self._holder, backoff=backoff, act_limit=act_limit)
        self._running: dict[str, _Work] = {}
        self._seen_phases: set[str] = set(reconciler.deadlines)

    async def run(self, stopping: asyncio.Event) -> None:
        """Reconcile until `stopping` is set; outages of the database are waited out."""
        topic = f"reconcile:{self.kind}"
        with self._db.listener.subscribe(topic) as wakeup:
            keepers = [
                asyncio.create_task(self._beat(), name=f"{self.kind} heartbeat"),
                asyncio.create_task(self._measure(stopping), name=f"{self.kind} measure"),
                asyncio.create_task(wake_at(stopping, wakeup), name=f"{self.kind} stop"),
            ]
            if hasattr(self._reconciler, "sweep"):
                keepers.append(asyncio.create_task(self._sweep(stopping), name=f"{self.kind} sweep"))
            try:
                dispatcher = asyncio.create_task(self._dispatch(stopping, wakeup), name=f"{self.kind} dispatch")
                keepers.append(dispatcher)
                # The heartbeat only ends by failing, the others also by stopping.
                while not dispatcher.done():
                    done, _ = await asyncio.wait(keepers, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                    keepers = [task for task in keepers if not task.done()]
                await self._finish_running()
            finally:
                for task in keepers:
                    task.cancel()
                await asyncio.gather(*keepers, return_exceptions=True)
                await self._give_up_running()

    async def _dispatch(self, stopping: asyncio.Event, wakeup: Wakeup) -> None:
        failures = empty = 0
        while not stopping.is_set():
            free = self._workers - len(self._running)
            if free == 0:
                await wakeup.wait(_POLL_SECONDS)
                continue
            try:
                claimed = await self._claim(free, wakeup)
                wait = await self._idle_seconds() if claimed < free else 0.0
                failures = 0
                # A due row that could not be claimed is locked by an open transaction, whose end will wake us.
                empty = empty + 1 if claimed == 0 else 0
                wait = max(wait, _CONTENDED.bound(empty - 1).total_seconds()) if empty else wait
            except _TROUBLE as error:
                self._complain("claim", error, failures)
                await pause(stopping, _OUTAGE.delay(failures))
                failures += 1
                continue
            if wait > 0 and await wakeup.wait(wait):
                empty = 0

    async def _claim(self, most: int, wakeup: Wakeup) -> int:
        before = asyncio.get_running_loop().time()
        shards = self._shards() if self._shards is not None else None
        async with self._db.connection() as connection:
            claims = await queue.claim(connection, self.kind, self._holder, self._lease, most, shards)
        for held in claims:
            work = _Work(held)
            work.good_until(before + self._lease.total_seconds() * _CERTAIN)
            self._running[held.key] = work
            work.task = asyncio.create_task(self._work(work), name=f"{self.kind} {held.key}")
            work.task.add_done_callback(self._ended(work, wakeup))
        metrics.RUNNING.labels(self._db.schema, self.kind).set(len(self._running))
        return len(claims)

    async def _idle_seconds(self) -> float:
        async with self._db.connection() as connection:
            shards = self._shards() if self._shards is not None else None
            seconds = await queue.seconds_to_next(connection, self.kind, shards)
        # A little late rather than a little early: an early look finds nothing and looks again at once.
        return _POLL_SECONDS if seconds is None else min(_POLL_SECONDS, max(0.0, seconds) + 0.001)

    async def _work(self, work: _Work) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            outcome = await self._attempt.run(work.held)
        except _TROUBLE as error:
            self._complain("attempt", error, 0)
            return
        metrics.SECONDS.labels(self._db.schema, self.kind).observe(loop.time() - started)
        name = type(outcome).__name__.lower() if outcome is not None else "none"
        metrics.OUTCOMES.labels(self._db.schema, self.kind, name).inc()

    def _ended(self, work: _Work, wakeup: Wakeup) -> Callable[[asyncio.Task[None]], None]:
        def ended(task: asyncio.Task[None]) -> None:
            work.end_alarm()
            if self._running.get(work.held.key) is work:
                del self._running[work.held.key]
            metrics.RUNNING.labels(self._db.schema, self.kind).set(len(self._running))
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("controller.attempt_crashed", kind=self.kind, key=work.held.key, exc_info=error)
            wakeup.wake()

        return ended

    async def _beat(self) -> None:
        """Prolong the leases of what runs; cancel what is not ours any more."""
        interval = self._lease.total_seconds() / 3
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(interval)
            works = list(self._running.values())
            if not works:
                continue
            before = loop.time()
            try:
                async with asyncio.timeout(interval), self._db.connection() as connection:
                    ours = await queue.renew(connection, self.kind, [work.held for work in works], self._lease)
            except _TROUBLE as error:
                self._complain("heartbeat", error, 0)
            else:
                for work in works:
                    if work.held.key not in ours:
                        work.give_up("taken over")
                    elif work.runs:
                        work.good_until(before + self._lease.total_seconds() * _CERTAIN)

    async def _sweep(self, stopping: asyncio.Event) -> None:
        sweeping = cast("Sweeping", self._reconciler)
        while not stopping.is_set():
            try:
                async with self._db.connection() as connection:
                    keys = list(await sweeping.sweep(connection))
                async with self._db.transaction(purpose=f"sweep {self.kind}") as connection:
                    added = await queue.add_missing(connection, self.kind, keys)
                if added:
                    self._db.listener.wake(f"reconcile:{self.kind}")
            except _TROUBLE as error:
                self._complain("sweep", error, 0)
            await pause(stopping, self._sweep_every * random.uniform(0.75, 1.25))

    async def _measure(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            try:
                async with self._db.connection() as connection:
                    await metrics.measure(connection, self._db.schema, self.kind, self._seen_phases)
            except _TROUBLE as error:
                self._complain("measure", error, 0)
            await pause(stopping, _MEASURE_EVERY * random.uniform(0.75, 1.25))

    async def _finish_running(self) -> None:
        tasks = [work.task for work in self._running.values() if work.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=self._drain.total_seconds())

    async def _give_up_running(self) -> None:
        """Cancel what still runs and give its keys back, so that another replica need not wait for the leases."""
        works = [work for work in self._running.values() if work.runs]
        for work in works:
            assert work.task is not None
            work.task.cancel()
        await asyncio.gather(*(cast("Awaitable[Any]", work.task) for work in works), return_exceptions=True)
        try:
            async with self._db.connection() as connection:
                for work in works:
                    await queue.release(connection, self.kind, work.held)
        except _TROUBLE as error:
            self._complain("release", error, 0)

    def _complain(self, step: str, error: BaseException, failures: int) -> None:
        if not is_outage(error):
            log.error("controller.trouble", kind=self.kind, step=step, exc_info=error)
        elif failures == 0:
            log.warning("controller.waits", kind=self.kind, step=step, error=str(error))
