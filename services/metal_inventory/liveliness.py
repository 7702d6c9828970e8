"""Liveliness: what the silence of a machine means.

A pure function of the time of the last event and of whether the machine is allocated. The store applies the same
rule to all machines in one statement; a test keeps the two equal.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import Enum

SILENCE_LIMIT = timedelta(minutes=5)
"""A machine that has sent nothing for longer than this is no longer alive."""


class Liveliness(Enum):
    """What is known about a machine from its last event."""

    NOT_AVAILABLE = "not available"
    """No event has ever been received."""
    ALIVE = "alive"
    UNKNOWN = "unknown"
    """Silent and allocated: it may be dead, or its user switched the announcements off."""
    DEAD = "dead"
    """Silent and not allocated: nobody has a reason to keep it quiet."""


def liveliness(last_event_time: datetime | None, *, allocated: bool, now: datetime) -> Liveliness:
    """Liveliness at ``now``; exactly at the limit a machine still counts as alive."""
    if last_event_time is None:
        return Liveliness.NOT_AVAILABLE
    if now - last_event_time <= SILENCE_LIMIT:
        return Liveliness.ALIVE
    return Liveliness.UNKNOWN if allocated else Liveliness.DEAD
