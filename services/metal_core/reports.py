"""Reports that the plane has not acknowledged yet. Nothing is lost by a broken stream, and nothing grows without bound.

Of apply reports only the newest counts, and of neighbours, sessions and drift as well. Other observations are collected
by port and by machine while one batch is on its way, so a leaf that is cut off for a day has at most one entry a port
and machine to deliver. What waits are the agent's own values: the contract is loaded when there is a plane to tell.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metal_kit import logs
from metal_kit.ids import uuid7

from metal_core.drift import Drift
from metal_core.observe import Announcement, Seen
from metal_core.outcome import Outcome
from metal_core.told import Batch, RunEnded

if TYPE_CHECKING:
    from metalplane.fabric.v1.agent_pb2 import ConnectRequest

# The contract's limit for one message.
BATCH = 1024
# Seconds after which an unacknowledged report is sent again on a stream that is otherwise alive.
RESEND = 15.0
_log = logs.get_logger("metal_core.reports")


@dataclass(slots=True)
class _Waiting:
    content: RunEnded | Batch
    request: ConnectRequest | None = None
    sent_at: float | None = None
    first_sent: float | None = None

    def message(self, report_id: str) -> ConnectRequest:
        """The same one each time."""
        if self.request is None:
            from metal_core import report_messages  # noqa: PLC0415 - see above

            self.request = report_messages.request_of(report_id, self.content)
        return self.request


class Reports:
    """Collects reports, hands out what is to be sent now, and forgets what was acknowledged."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._apply: tuple[str, _Waiting] | None = None
        self._batch: tuple[str, _Waiting] | None = None
        self._states: dict[str, str] = {}
        self._announcements: dict[tuple[str, str], Announcement] = {}
        self._pictures = Batch()
        self.wake = asyncio.Event()

    def ended(self, generation: int, digest: str, outcome: Outcome) -> None:
        """A run has ended; its report replaces an older one that was not delivered."""
        self._apply = (uuid7(), _Waiting(RunEnded(generation, digest, outcome, time.time())))
        self.wake.set()

    def seen(self, seen: Seen) -> None:
        """Something was observed; a port's newer state replaces its older one."""
        self._states.update(seen.states)
        for announcement in seen.announcements:
            self._announcements[(announcement.port, announcement.machine)] = announcement
        while len(self._announcements) > BATCH:
            dropped = self._announcements.pop(next(iter(self._announcements)))
            _log.warning("reports.dropped", port=dropped.port, machine=dropped.machine)
        if seen.neighbours is not None:
            self._pictures.neighbours = seen
        if seen.sessions is not None:
            self._pictures.sessions = seen
        if self._anything:
            self.wake.set()

    def drifted(self, drift: Drift) -> None:
        """Others have changed something; what becomes of it replaces what was not yet delivered."""
        self._pictures.drift = drift
        self.wake.set()

    @property
    def waiting(self) -> float:
        """Seconds that the oldest report on its way has been waiting for its acknowledgement; 0 when there is none."""
        sent = [entry[1].first_sent for entry in (self._apply, self._batch) if entry is not None]
        first = [at for at in sent if at is not None]
        return self._clock() - min(first) if first else 0.0

    def acknowledged(self, report_id: str) -> int:
        """The plane has stored the report. The generation, when it told how the last run ended; else 0."""
        generation = 0
        if self._apply is not None and self._apply[0] == report_id:
            content, self._apply = self._apply[1].content, None
            generation = content.generation if isinstance(content, RunEnded) else 0
        if self._batch is not None and self._batch[0] == report_id:
            self._batch = None
            self.wake.set()
        return generation

    def reconnected(self) -> None:
        """A new stream knows nothing of what was sent on the old one."""
        for waiting in (self._apply, self._batch):
            if waiting is not None:
                waiting[1].sent_at = None
        self.wake.set()

    def due(self) -> list[ConnectRequest]:
        """What is to be sent now; it counts as sent. The same report keeps its id, so the plane can tell."""
        if self._batch is None and self._anything:
            self._batch = self._new_batch()
        now = self._clock()
        requests = []
        for entry in (self._apply, self._batch):
            if entry is not None and (entry[1].sent_at is None or now - entry[1].sent_at >= RESEND):
                entry[1].sent_at = now
                if entry[1].first_sent is None:
                    entry[1].first_sent = now
                requests.append(entry[1].message(entry[0]))
        return requests

    @property
    def _anything(self) -> bool:
        return bool(self._states or self._announcements) or self._pictures != Batch()

    def _new_batch(self) -> tuple[str, _Waiting]:
        batch, self._pictures = self._pictures, Batch()
        batch.states = {port: self._states.pop(port) for port in list(self._states)[:BATCH]}
        batch.announcements = [self._announcements.pop(key) for key in list(self._announcements)[:BATCH]]
        return uuid7(), _Waiting(batch)
