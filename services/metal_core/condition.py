"""How the agent and its leaf are, and whether the leaf is in order; `page` shows it to monitoring."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from metal_core.bgp_state import Session
from metal_core.outcome import Outcome

# The peer group of the uplinks.
FABRIC = "FABRIC"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the leaf is: generations (0 for none), differences left by others, age of the oldest report (seconds)."""

    desired: int = 0
    applied: int = 0
    drifted: int = 0
    waiting: float = 0.0


@dataclass(slots=True)
class Seen:
    """What was seen last."""

    uplinks: frozenset[str] = frozenset()
    states: Mapping[str, str] = field(default_factory=dict)
    neighbours: int = 0
    # None where FRR does not answer.
    sessions: Collection[Session] | None = ()
    error: str = ""
    succeeded_at: float = 0.0


class Condition:
    """What the page tells. `progress` is asked when somebody reads it, also from another thread."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.seen = Seen()
        self.progress: Callable[[], Progress] = Progress
        # Told of each run, where there is a page.
        self.count: Callable[[Outcome], None] | None = None

    def ran(self, outcome: Outcome) -> None:
        """A run has ended."""
        if self.count is not None:
            self.count(outcome)
        self.seen.error = outcome.error
        if outcome.applied:
            self.seen.succeeded_at = self._clock()

    def ports(self, uplinks: frozenset[str], states: Mapping[str, str], *, neighbours: int) -> None:
        """Ports were looked at."""
        self.seen.uplinks, self.seen.states, self.seen.neighbours = uplinks, dict(states), neighbours

    def sessions(self, sessions: Collection[Session] | None) -> None:
        """BGP sessions were looked at; None when FRR did not answer."""
        self.seen.sessions = sessions

    def problems(self) -> list[str]:
        """Why the leaf is not in order; empty when it has what is wanted and its uplinks work."""
        seen, progress = self.seen, self.progress()
        problems = []
        if progress.desired == 0:
            problems.append("no desired state is known yet")
        elif progress.applied != progress.desired:
            problems.append(f"generation {progress.desired} is wanted, {progress.applied or 'none'} is applied")
        if seen.error:
            problems.append(f"the last run failed: {seen.error}")
        if progress.drifted:
            problems.append(f"{progress.drifted} differences made by others")
        if down := sorted(port for port in seen.uplinks if seen.states.get(port) != "up"):
            problems.append(f"uplinks that are down: {', '.join(down)}")
        if seen.sessions is None:
            problems.append("FRR does not answer")
        elif down := sorted(each.port for each in seen.sessions if each.peer_group == FABRIC and not each.established):
            problems.append(f"uplinks without a BGP session: {', '.join(down)}")
        return problems

    def health(self) -> tuple[int, str]:
        """HTTP status and JSON: whether the leaf is in order, and if not why."""
        problems = self.problems()
        return (503 if problems else 200), json.dumps({"healthy": not problems, "problems": problems}) + "\n"
