"""Collects what the calls of one process have to say, and appends it in batches while the next batch gathers.

A batch is one round trip and one commit, however many calls wait for it: many callers make each of them cheaper. While
the log cannot be written, calls that need it are refused and change nothing; what has ended by then waits in the queue.
The queue is bounded. What does not fit, or cannot be stored, is counted and logged as an error.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from metalplane.audit.v1.audit_pb2 import AuditEntry
from prometheus_client import Counter, Gauge

from metal_kit.audit.entry import Row, row_of
from metal_kit.audit.sums import Sums
from metal_kit.backoff import Backoff, pause
from metal_kit.company import Company
from metal_kit.errors import Aborted, Unavailable
from metal_kit.logs import get_logger

log = get_logger("audit")

QUEUE = 10_000
BATCH = 256
APPEND_SECONDS = 5.0
SUM_SECONDS = 600.0
MOST_SUMS = 4096
# Refusals of one kind that are recorded each, in a sum's time: who tries doors must not fill the log.
SINGLE_REFUSALS = 20
_TICK = 1.0
# What nobody waits for waits so long, in seconds, for others: a batch costs as much as ten entries.
_LINGER = 0.005
# And this is how long those that somebody waits for wait for as many as there were the last time.
_PATIENCE = 0.005
_DRAIN_ATTEMPTS = 3
_LATER = (Unavailable, Aborted, TimeoutError)
_RETRY = Backoff(timedelta(milliseconds=50), timedelta(seconds=1))

ENTRIES = Counter("metalplane_audit_entries", "Entries that were appended to the audit log.", ["service"])
LOST = Counter("metalplane_audit_lost", "Entries that could not be kept until the log took them.", ["service"])
UNAVAILABLE = Counter(
    "metalplane_audit_unavailable", "Calls that were refused since the audit log could not be written.", ["service"]
)
WAITING = Gauge("metalplane_audit_waiting", "Entries that wait to be appended.", ["service"])


class AuditLog(Protocol):
    """Where entries go."""

    async def append(self, rows: Sequence[Row]) -> None:
        """Append, in this order, what is not there already. Raises Unavailable or Aborted when it may work later, any
        other exception when it never will."""


@dataclass(slots=True)
class _Waiting:
    row: Row
    durable: asyncio.Future[None] | None = None


class AuditWriter:
    """The log of one process. `run` it as a task for as long as calls come, and a moment longer."""

    def __init__(self, destination: AuditLog, service: str, *, partition: str = "", sum_seconds: float = SUM_SECONDS):
        self.service = service
        self.partition = partition
        self._log = destination
        self._queue: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._company = Company(_PATIENCE)
        self._lingering: asyncio.TimerHandle | None = None
        self._full = False
        self._sums = Sums(sum_seconds, MOST_SUMS)
        self._refusals = Sums(sum_seconds, MOST_SUMS, SINGLE_REFUSALS)
        self._entries, self._lost = ENTRIES.labels(service), LOST.labels(service)
        WAITING.labels(service).set_function(lambda: len(self._queue))

    # What calls have to say

    async def commit(self, entry: AuditEntry) -> None:
        """Append an entry; returns when it is durable. Raises Unavailable when it is not."""
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._offer(_Waiting(row_of(entry), durable)):
            raise self._unavailable()
        await durable

    def put(self, entry: AuditEntry) -> None:
        """Append an entry soon; nobody waits for it."""
        if not self._offer(_Waiting(row_of(entry))):
            self._lose(1, "the queue is full")

    def add(self, entry: AuditEntry) -> None:
        """Count a routine call."""
        key = (entry.caller, entry.token_id, entry.method, entry.object)
        for ready in self._sums.add(key, entry, time.monotonic()):
            self.put(ready)

    def refuse(self, entry: AuditEntry) -> None:
        """Record a refusal; of many that are alike, most as a sum."""
        key = (entry.caller, entry.peer, entry.method, entry.code, entry.reason)
        for ready in self._refusals.add(key, entry, time.monotonic()):
            self.put(ready)

    # The task

    async def run(self, stopping: asyncio.Event) -> None:
        """Append what comes until `stopping` is set and everything is written."""
        watching = asyncio.create_task(self._tell(stopping), name="audit stop")
        failures = 0
        try:
            while not stopping.is_set():
                await self._idle()
                self._close_sums()
                failures = await self._write(stopping, failures)
            for entry in (*self._sums.close(), *self._refusals.close()):
                self.put(entry)
            await self._drain()
        finally:
            watching.cancel()
            self._give_up()

    async def _tell(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._wake.set()

    async def _idle(self) -> None:
        """Wait until there is something to write, or a sum may be due."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_TICK):
                await self._wake.wait()
        self._wake.clear()
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None

    async def _write(self, stopping: asyncio.Event, failures: int) -> int:
        """Append one batch, or wait after a failure; the number of failures in a row."""
        if self._queue:
            await self._company.wait()
        written = not self._queue or await self._append_batch()
        self._company.done()
        if self._queue:
            self._wake.set()
        if written:
            return 0
        if failures == 0:
            log.warning("audit.waits", service=self.service, waiting=len(self._queue))
        await pause(stopping, _RETRY.delay(failures))
        return failures + 1

    async def _drain(self) -> None:
        for attempt in range(_DRAIN_ATTEMPTS):
            while self._queue and await self._append_batch():
                pass
            if not self._queue:
                return
            await asyncio.sleep(_RETRY.bound(attempt).total_seconds())

    async def _append_batch(self) -> bool:
        """Append the oldest entries. False when the log is away: whoever waited for his is refused, the rest stays."""
        batch = deque(self._queue.popleft() for _ in range(min(BATCH, len(self._queue))))
        self._company.left(len(batch))
        try:
            await self._append(batch)
            batch.clear()
        except _LATER:
            return False
        except Exception:
            log.exception("audit.batch_refused", service=self.service, entries=len(batch))
            return await self._one_by_one(batch)
        finally:
            self._put_back(batch)
        self._full = False
        return True

    async def _append(self, batch: Collection[_Waiting]) -> None:
        async with asyncio.timeout(APPEND_SECONDS):
            await self._log.append([each.row for each in batch])
        self._entries.inc(len(batch))
        for each in batch:
            if each.durable is not None and not each.durable.done():
                each.durable.set_result(None)

    async def _one_by_one(self, batch: deque[_Waiting]) -> bool:
        """Among these is one that cannot be stored; the others can. What is not done stays in `batch`."""
        while batch:
            try:
                await self._append([batch[0]])
            except _LATER:
                return False
            except Exception:
                log.exception("audit.entry_refused", service=self.service, method=batch[0].row.method)
                if batch[0].durable is None:
                    self._lose(1, "it cannot be stored")
                else:
                    self._refuse(batch[0].durable)
            batch.popleft()
        return True

    def _put_back(self, batch: Iterable[_Waiting]) -> None:
        """Keep what nobody waits for; who does is told no."""
        for each in reversed(list(batch)):
            if each.durable is None:
                self._queue.appendleft(each)
            else:
                self._refuse(each.durable)

    def _refuse(self, durable: asyncio.Future[None]) -> None:
        """The handler has not run. Whether its entry was stored nobody knows; the entry of a refusal follows it."""
        if not durable.done():
            durable.set_exception(self._unavailable())

    def _close_sums(self) -> None:
        now = time.monotonic()
        for entry in (*self._sums.due(now), *self._refusals.due(now)):
            self.put(entry)

    def _offer(self, each: _Waiting) -> bool:
        if len(self._queue) >= QUEUE:
            return False
        self._queue.append(each)
        self._company.arrived()
        if each.durable is not None or len(self._queue) >= BATCH:
            self._wake.set()
        elif self._lingering is None:
            self._lingering = asyncio.get_running_loop().call_later(_LINGER, self._wake.set)
        return True

    def _give_up(self) -> None:
        """Nobody will write what is left."""
        left, self._queue = list(self._queue), deque()
        self._put_back(left)
        if self._queue:
            self._lose(len(self._queue), "the process ends and the log is away")
            self._queue.clear()

    def _lose(self, entries: int, why: str) -> None:
        self._lost.inc(entries)
        if not self._full:
            log.error("audit.lost", service=self.service, entries=entries, why=why)
        self._full = True

    def _unavailable(self) -> Unavailable:
        UNAVAILABLE.labels(self.service).inc()
        return Unavailable(
            "AUDIT_UNAVAILABLE",
            "the audit log cannot be written, so nothing was changed; try again",
            retry_after=timedelta(seconds=1),
        )
