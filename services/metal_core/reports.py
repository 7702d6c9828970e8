"""Reports that the plane has not acknowledged yet. Nothing is lost by a broken stream, and nothing grows without bound.

Of apply reports only the newest counts, and of neighbours, sessions and drift as well. Other observations are collected
by port and by machine while one batch is on its way, so a leaf that is cut off for a day has at most one entry a port
and machine to deliver.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from metal_kit import logs
from metal_kit.ids import uuid7
from metalplane.fabric.v1.agent_pb2 import ConnectRequest, Observations

from metal_core.drift import Drift
from metal_core.observe import Announcement, Seen
from metal_core.outcome import Outcome
from metal_core.report_messages import (
    apply_report_of,
    drift_message,
    neighbours_message,
    observations_of,
    sessions_message,
)

# The contract's limit for one message.
BATCH = 1024
# Seconds after which an unacknowledged report is sent again on a stream that is otherwise alive.
RESEND = 15.0
_log = logs.get_logger("metal_core.reports")


@dataclass(slots=True)
class _Waiting:
    request: ConnectRequest
    sent_at: float | None = None
    first_sent: float | None = None


class Reports:
    """Collects reports, hands out what is to be sent now, and forgets what was acknowledged."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._apply: tuple[str, _Waiting] | None = None
        self._batch: tuple[str, _Waiting] | None = None
        self._states: dict[str, str] = {}
        self._announcements: dict[tuple[str, str], Announcement] = {}
        self._pictures = Observations()
        self.wake = asyncio.Event()

    def ended(self, generation: int, digest: str, outcome: Outcome) -> None:
        """A run has ended; its report replaces an older one that was not delivered."""
        report_id = uuid7()
        report = apply_report_of(report_id, generation, digest, outcome, time.time())
        self._apply = (report_id, _Waiting(ConnectRequest(apply_report=report)))
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
            self._pictures.lldp.CopyFrom(neighbours_message(seen.neighbours, seen.time))
        if seen.sessions is not None:
            self._pictures.bgp.CopyFrom(sessions_message(seen.sessions, seen.time))
        if self._anything:
            self.wake.set()

    def drifted(self, drift: Drift) -> None:
        """Others have changed something; what becomes of it replaces what was not yet delivered."""
        self._pictures.drift.CopyFrom(drift_message(drift))
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
            generation, self._apply = self._apply[1].request.apply_report.generation, None
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
                requests.append(entry[1].request)
        return requests

    @property
    def _anything(self) -> bool:
        return bool(self._states or self._announcements or self._pictures.ListFields())

    def _new_batch(self) -> tuple[str, _Waiting]:
        report_id = uuid7()
        states = {port: self._states.pop(port) for port in list(self._states)[:BATCH]}
        homes = [self._announcements.pop(key) for key in list(self._announcements)[:BATCH]]
        observations = observations_of(report_id, states, homes)
        observations.MergeFrom(self._pictures)
        self._pictures = Observations()
        return report_id, _Waiting(ConnectRequest(observations=observations))
