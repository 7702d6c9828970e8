"""Calls that are alike and come over and over, as one entry for all of them in some minutes. Plain but for the clock.

The number of sums that are open is bounded: when there are too many, the oldest is closed early.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from metalplane.audit.v1.audit_pb2 import AuditEntry, AuditPhase

Key = tuple[str, ...]


@dataclass(slots=True)
class _Sum:
    entry: AuditEntry
    opened: float
    single: int = 0


class Sums:
    """Open sums by what their calls have in common. `span`: seconds until a sum is closed; `most`: open ones at once;
    `single`: calls of each kind that are recorded by themselves before the sum begins."""

    def __init__(self, span: float, most: int, single: int = 0) -> None:
        self._span = span
        self._most = most
        self._single = single
        self._open: OrderedDict[Key, _Sum] = OrderedDict()

    def add(self, key: Key, entry: AuditEntry, now: float) -> list[AuditEntry]:
        """Count a call; the entries that are to be recorded now: itself, or sums that had to make room."""
        ready: list[AuditEntry] = []
        found = self._open.get(key)
        if found is None:
            ready += self._close(self._most - 1)
            found = self._open[key] = _Sum(AuditEntry(), now)
        if found.single < self._single:
            found.single += 1
            return [*ready, entry]
        if not found.entry.count:
            found.entry.CopyFrom(entry)
            found.entry.phase = AuditPhase.AUDIT_PHASE_SUMMED
        else:
            _take(found.entry, entry)
        found.entry.count += 1
        return ready

    def due(self, now: float) -> list[AuditEntry]:
        """Close the sums whose time has come; their entries."""
        ready: list[AuditEntry] = []
        while self._open and now - next(iter(self._open.values())).opened >= self._span:
            ready += self._close(len(self._open) - 1)
        return ready

    def close(self) -> list[AuditEntry]:
        """Close all; their entries."""
        return list(self._close(0))

    def _close(self, keep: int) -> Iterator[AuditEntry]:
        while len(self._open) > keep:
            _, closed = self._open.popitem(last=False)
            if closed.entry.count:
                yield closed.entry


def _take(total: AuditEntry, entry: AuditEntry) -> None:
    """The last of the calls speaks for all of them, except for what they do not have in common."""
    total.time.CopyFrom(entry.time)
    total.request_id, total.peer = entry.request_id, entry.peer
    if total.object != entry.object:
        total.object = ""
    if total.project != entry.project:
        total.project = ""
