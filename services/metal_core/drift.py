"""Changes that others made to what the agent owns: seen, corrected or left by policy, and told to the plane.

`LookingAfter` stands before the applier. As long as a state is new to the leaf, whatever differs is what there is to
do; once the leaf has had it, a difference is somebody else's doing. A run says itself what it found before it corrected
it, so the leaf is looked at beforehand only where changes of others are to be left.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from metal_kit import logs

from metal_core.compare import Differences, LeafFacts, compare
from metal_core.desired import Desired, DriftPolicy
from metal_core.known_good import KnownGood
from metal_core.outcome import Outcome
from metal_core.sonic import SonicUnavailable
from metal_core.vtysh import FrrError

LEFT = "differs by changes of others, which are left as the policy says"
_SHOWN = 10
_log = logs.get_logger("metal_core.drift")


class DriftState(StrEnum):
    """What became of a drift."""

    NONE = "none"
    REPORTED = "reported"
    CORRECTED = "corrected"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Drift:
    """What others have changed since the leaf had `generation`; `time` is in seconds since the epoch."""

    state: DriftState
    generation: int
    time: float
    differences: Differences = field(default_factory=Differences)


class Applies(Protocol):
    """What brings a leaf to a state."""

    async def apply(self, desired: Desired) -> Outcome:
        """As `Applier.apply`."""
        ...

    async def restore(self, good: KnownGood) -> Outcome:
        """As `Applier.restore`."""
        ...

    async def look(self) -> LeafFacts:
        """As `Applier.look`."""
        ...


class LookingAfter:
    """An applier that knows what the leaf has had, and tells `report` of what others changed since.

    `ran` is told how each run ended.
    """

    def __init__(
        self,
        applier: Applies,
        report: Callable[[Drift], None],
        ran: Callable[[Outcome], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._applier, self._report, self._ran, self._clock = applier, report, ran, clock
        self._had: Desired | None = None
        # What was told last and is still there.
        self._told: Differences | None = None

    @property
    def drifted(self) -> int:
        """How many differences were there at the last look that have not been corrected."""
        return len(self._told.rows) + len(self._told.lines) if self._told is not None else 0

    async def apply(self, desired: Desired) -> Outcome:
        """As `Applier.apply`, but what others have changed stays where the state's policy says so."""
        outcome = await self._run(desired, lambda: self._applier.apply(desired))
        self._ran(outcome)
        return outcome

    async def restore(self, good: KnownGood) -> Outcome:
        """As `Applier.restore`, with the same exception."""
        outcome = await self._run(good.desired, lambda: self._applier.restore(good))
        self._ran(outcome)
        return outcome

    async def look(self) -> LeafFacts:
        """As `Applier.look`."""
        return await self._applier.look()

    async def _run(self, desired: Desired, run: Callable[[], Awaitable[Outcome]]) -> Outcome:
        if self._had is None or desired != self._had:
            outcome = await run()
            if outcome.applied:
                self._had = desired
                self._gone(desired)
            elif not outcome.taken_back:
                # What differs from now on may be the run's own doing.
                self._had = None
            return outcome
        if desired.drift_policy is DriftPolicy.REPORT and (left := await self._differing(desired)):
            self._tell(DriftState.REPORTED, desired, left)
            return Outcome(True, notes=(LEFT,))
        outcome = await run()
        differing = outcome.found
        if not outcome.applied and not differing:
            # Refused before it could be compared.
            differing = await self._differing(desired)
        if differing and not outcome.applied:
            self._tell(DriftState.FAILED, desired, differing)
        elif differing and outcome.touched:
            self._tell(DriftState.CORRECTED, desired, differing)
            self._told = None
        elif outcome.applied:
            self._gone(desired)
        return outcome

    async def _differing(self, desired: Desired) -> Differences:
        try:
            return compare(desired, await self._applier.look())
        except (SonicUnavailable, FrrError, ValueError):
            # The run that follows looks as well, and says what is wrong.
            return Differences()

    def _tell(self, state: DriftState, desired: Desired, differing: Differences) -> None:
        if differing == self._told:
            return
        self._told = differing
        shown = [*map(str, differing.rows[:_SHOWN]), *differing.lines[:_SHOWN]]
        _log.warning(f"drift.{state.value}", generation=desired.generation, differences=shown)
        self._report(Drift(state, desired.generation, self._clock(), differing))

    def _gone(self, desired: Desired) -> None:
        if self._told is not None:
            self._told = None
            _log.info("drift.gone", generation=desired.generation)
            self._report(Drift(DriftState.NONE, desired.generation, self._clock()))
