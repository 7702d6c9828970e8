"""Telling inventory that a machine asked for something to boot, beside the answer and never in front of it.

The queue is bounded: in a storm that inventory cannot take, late reports are dropped and counted, and boots go on. A
report is repeated with back-off for about a minute.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta

from google.protobuf.timestamp_pb2 import Timestamp
from metal_kit.backoff import Backoff, pause
from metal_kit.errors import DeadlineExceeded, Problem, ResourceExhausted, Unavailable
from metal_kit.logs import get_logger
from metalplane.inventory.v1 import machine_pb2

from metal_boot import metrics

log = get_logger(__name__)

QUEUE = 10_000
WORKERS = 8
ATTEMPTS = 8
FAREWELL = 2.0
"""Seconds that a service which stops goes on reporting."""

_BACKOFF = Backoff(first=timedelta(seconds=0.5), most=timedelta(seconds=15))

Record = Callable[[str, list[machine_pb2.ReportedEvent]], Awaitable[None]]


@dataclass(slots=True)
class Reporter:
    """Reports boots with a few workers. `dropped` counts the reports that did not get through."""

    record: Record
    stopping: asyncio.Event
    queue_size: int = QUEUE
    dropped: int = 0
    _queue: asyncio.Queue[tuple[str, machine_pb2.ReportedEvent, asyncio.Event]] = field(init=False)
    _pending: dict[str, asyncio.Event] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._queue = asyncio.Queue(self.queue_size)

    def booted(self, machine_id: str, message: str, *, local_disk: bool = False) -> None:
        """Report the network boot of a machine soon. Never waits.

        It is PXE Booting when the machine was told to boot the installer. One that was sent to its local disk is only
        Alive: its system comes up again by itself, and inventory holds a phone-home for stale that follows PXE Booting,
        so the machine would never count as running again. The message says what happened.
        """
        stamp = Timestamp()
        stamp.GetCurrentTime()
        event = machine_pb2.ReportedEvent(
            id=str(uuid.uuid4()),
            type=(
                machine_pb2.PROVISIONING_EVENT_TYPE_ALIVE
                if local_disk
                else machine_pb2.PROVISIONING_EVENT_TYPE_PXE_BOOTING
            ),
            reported_time=stamp,
            message=message[:1024],
        )
        settled = asyncio.Event()
        try:
            self._queue.put_nowait((machine_id, event, settled))
        except asyncio.QueueFull:
            self._drop(machine_id, "queue full")
        else:
            self._pending[machine_id] = settled

    async def settled(self, machine_id: str, *, within: float) -> None:
        """Wait, at most `within` seconds, until the latest boot of a machine is reported or given up.

        What its installer reports comes after this: inventory takes a network boot after "Preparing" for a crash.
        """
        pending = self._pending.get(machine_id)
        if pending is not None:
            try:
                async with asyncio.timeout(within):
                    await pending.wait()
            except TimeoutError:
                log.warning("boot.report_late", machine=machine_id)

    async def run(self) -> None:
        """Report until the service stops, and what is left for a moment longer."""
        workers = [asyncio.create_task(self._work(), name=f"boot-report-{number}") for number in range(WORKERS)]
        try:
            await self.stopping.wait()
            async with asyncio.timeout(FAREWELL):
                await self._queue.join()
        except TimeoutError:
            log.warning("boot.reports_left", count=self._queue.qsize())
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            machine_id, event, settled = await self._queue.get()
            try:
                await self._report(machine_id, event, settled)
            finally:
                self._queue.task_done()
                settled.set()
                if self._pending.get(machine_id) is settled:
                    del self._pending[machine_id]

    async def _report(self, machine_id: str, event: machine_pb2.ReportedEvent, settled: asyncio.Event) -> None:
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt and self._pending.get(machine_id) is not settled:
                # The machine has booted again since. Told now, this boot could come after what its next one's
                # installer says, and would count as a crash.
                log.info("boot.overtaken", machine=machine_id, reason=reason)
                return
            try:
                await self.record(machine_id, [event])
            except (Unavailable, DeadlineExceeded, ResourceExhausted) as problem:
                reason = problem.reason
                await pause(self.stopping, _BACKOFF.delay(attempt, problem.retry_after))
            except Problem as problem:
                reason = problem.reason
                break
            else:
                return
        self._drop(machine_id, reason)

    def _drop(self, machine_id: str, reason: str) -> None:
        self.dropped += 1
        metrics.REPORTS_DROPPED.inc()
        log.warning("boot.not_reported", machine=machine_id, reason=reason, dropped=self.dropped)
