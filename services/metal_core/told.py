"""What the agent has to tell the plane, as its own values: `reports` keeps them, `report_messages` puts them into words
of the contract."""

from __future__ import annotations

from dataclasses import dataclass, field

from metal_core.drift import Drift
from metal_core.observe import Announcement, Seen
from metal_core.outcome import Outcome


@dataclass(frozen=True, slots=True)
class RunEnded:
    """How the run for a generation ended; `time` is in seconds since the epoch."""

    generation: int
    digest: str
    outcome: Outcome
    time: float


@dataclass(slots=True)
class Batch:
    """What was observed: states of ports, announcements, and the newest of what is always told as a whole."""

    states: dict[str, str] = field(default_factory=dict)
    announcements: list[Announcement] = field(default_factory=list)
    neighbours: Seen | None = None
    sessions: Seen | None = None
    drift: Drift | None = None
