"""Keeps the leaf at the newest state that it was told: applies it, tries again, and looks after it from time to time.

A generation older than the newest of the stream, or than what the stream's Hello named, is ignored. One that failed is
tried again with growing pauses, until `quarantine` sets it aside; meanwhile the leaf is kept at what it had. A new one
is on trial until the plane is heard after it (`confirm`), and taken back when it is not. When nothing new comes the
state is compared with the leaf now and then and what differs is corrected. Being cut off from the plane changes nothing
here that has been confirmed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from metal_kit import logs
from metal_kit.backoff import Backoff

from metal_core.confirm import Candidate, Trials
from metal_core.desired import Desired
from metal_core.drift import Applies
from metal_core.known_good import KnownGood
from metal_core.outcome import Failure, Outcome, Standing
from metal_core.quarantine import Quarantine
from metal_core.reports import Reports

RETRY = Backoff(first=timedelta(seconds=1), most=timedelta(seconds=60), least=timedelta(milliseconds=200))
# Seconds between two looks whether a person wants what is set aside to be tried again.
LOOK = 1.0
# Seconds after a run in which a message of the plane may have been on its way since before it.
ON_ITS_WAY = 2.0
_log = logs.get_logger("metal_core.following")


class Following:
    """The newest state that is wanted, and the loop that brings the leaf there."""

    def __init__(
        self,
        applier: Applies,
        reports: Reports,
        *,
        switch_id: str,
        compare_every: float = 60.0,
        retry: Backoff = RETRY,
        trials: Trials | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        self._applier, self._reports, self._trials = applier, reports, trials
        self._quarantine = quarantine or Quarantine()
        self._switch_id, self._compare_every, self._retry = switch_id, compare_every, retry
        self._wanted: Desired | None = None
        self._newest = 0
        self._memory: KnownGood | None = None
        self._announce = False
        self._wake = asyncio.Event()
        # By the loop's clock: when to run next, when to try again to go back, since when the trial runs.
        self._due = self._back_due = self._proven_at = 0.0
        self._failures = self._returns = 0
        self._heard = False
        # Whether a failed run could not be taken back; whether the leaf was in order while a generation was set aside,
        # and whether it went through an outage after that.
        self._adrift = self._in_order = self._outage = False
        self.applied: Desired | None = None

    @property
    def newest_generation(self) -> int:
        """The generation that older ones are measured by; 0 before the first."""
        return self._newest

    def introduce(self) -> Desired | None:
        """What is applied, for the Hello of a new stream. From here on only that counts when older ones arrive.

        What was sent before and could not be applied does not: a plane that was restored from a backup, or that has
        forgotten the switch, never hears of it and numbers on from what the Hello says.
        """
        self._newest = self.applied.generation if self.applied else 0
        return self.applied

    def resume(self, memory: KnownGood, outcome: Outcome) -> None:
        """Start from the last known good state; `outcome` tells how its first restoration ended.

        Until the plane says something, the leaf is brought back to it with the caution of `Applier.restore`.
        """
        self._memory = memory
        self._resume(memory.desired, outcome)

    def resume_trial(self, candidate: Candidate, outcome: Outcome) -> None:
        """Start from what was on trial; its time goes on. `outcome` tells how the first run for it ended."""
        self._proven_at = _now()
        self._resume(candidate.desired, outcome)

    def _resume(self, desired: Desired, outcome: Outcome) -> None:
        self._wanted, self._newest = desired, desired.generation
        self.applied = desired if outcome.applied else None
        self._adrift = not outcome.taken_back
        self._wake.set()

    def want(self, desired: Desired) -> None:
        """The plane wants this state. What the leaf must not take is reported and changes nothing."""
        if desired.switch_id != self._switch_id:
            error = f"switch_id: the state is for {desired.switch_id!r}, this is {self._switch_id!r}"
            self.refuse(desired.generation, desired.digest, error)
        elif desired.generation < self._newest:
            _log.info("state.older_ignored", generation=desired.generation, newest=self._newest)
        elif any(
            known is not None and desired.generation == known.generation == self._newest and desired != known
            for known in (self._wanted, self.applied)
        ):
            error = f"generation {desired.generation} was sent before with another content"
            self.refuse(desired.generation, desired.digest, error)
        else:
            self._wanted, self._newest = desired, desired.generation
            # Also when it is applied already: the plane may not know, or it would not have sent it.
            self._announce = True
            self._due = 0.0
            self._wake.set()

    def refuse(self, generation: int, digest: str, error: str) -> None:
        """Report that a state cannot be taken from the plane; it changes nothing here."""
        _log.warning("state.refused", generation=generation, error=error)
        self._report(generation, digest, Outcome(False, error))

    def heard(self, acknowledged: int = 0) -> None:
        """The plane said something. `acknowledged`: that it has a report of this generation, 0 for anything else.

        A message may have been on its way since before a run; an acknowledgement of what was reported after it cannot.
        """
        candidate = self._trials.on_trial if self._trials is not None else None
        if candidate is not None:
            if candidate.desired != self.applied:
                # It was proven this very moment, by a run that has not come back here yet.
                return
            late = _now() - self._proven_at >= ON_ITS_WAY
            self._heard = self._heard or late or acknowledged == candidate.desired.generation
        elif self._quarantine.awaits_plane:
            self._heard = True
        if self._heard:
            self._wake.set()

    def look_again(self) -> None:
        """Compare the leaf now, where it has what is wanted: somebody may have changed something."""
        if self.applied is not None and self.applied == self._wanted:
            self._due = 0.0
            self._wake.set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Apply what is wanted until `stopping` is set. A run that has begun is finished: half a change is no use."""
        while not stopping.is_set():
            self._wake.clear()
            await self._listen()
            if self._trials is not None and self._trials.left == 0:
                if _now() >= self._back_due:
                    await self._go_back(self._trials)
            elif self._wanted is not None and _now() >= self._due:
                await self._follow(self._wanted)
            await self._pause(stopping)

    async def _listen(self) -> None:
        """Act upon the plane having been heard, and upon a person who wants what is set aside to be tried again."""
        if await self._quarantine.ended_by_a_person():
            _log.info("quarantine.ended_by_a_person")
            self._failures, self._due = 0, 0.0
        if not self._heard:
            return
        self._heard = False
        try:
            if self._trials is not None and await self._trials.heard():
                _log.info("state.confirmed")
        except OSError as error:
            # The next message of the plane brings here again.
            _log.error("state.not_confirmed", error=repr(error))
        if await self._quarantine.heard():
            _log.info("quarantine.plane_was_away")
            self._announce, self._due = True, 0.0

    async def _follow(self, desired: Desired) -> None:
        announce = self._announce
        if reason := self._quarantine.reason(desired):
            wait = await self._hold(desired, reason, announce=announce)
        else:
            wait = await self._bring_about(desired, announce=announce)
        if desired is self._wanted:
            self._due = _now() + wait
        else:
            self._failures = 0

    async def _bring_about(self, desired: Desired, *, announce: bool) -> float:
        """One run for what is wanted; seconds until the next one."""
        if self._memory is not None and desired is self._memory.desired:
            outcome, remembered = await self._applier.restore(self._memory), True
        else:
            outcome, remembered = await self._applier.apply(desired), False
        if outcome.applied:
            self._failures = 0
            await self._succeeded(desired, outcome, announce=announce)
            return self._soon()
        self._failures += 1
        self._adrift = self._adrift or not outcome.taken_back
        # What the leaf has had already is worth any number of attempts.
        blamed = not remembered and desired != self.applied
        reason = await self._quarantine.failed(desired, outcome) if blamed else ""
        _log.warning("state.failed", generation=desired.generation, error=outcome.error, quarantine=reason)
        # The next success has to be told, since the plane now believes that it failed.
        self._announce, self._in_order, self._outage = True, False, False
        self._report(desired.generation, desired.digest, replace(outcome, quarantined=reason))
        if blamed and (reason or self._adrift or outcome.failure is Failure.OBSTACLE):
            await self._maintain(desired, reason or outcome.error)
        return self._retry.delay(self._failures - 1).total_seconds()

    async def _succeeded(self, desired: Desired, outcome: Outcome, *, announce: bool) -> None:
        await self._quarantine.passed(desired)
        drifted = outcome.touched and self.applied == desired
        if drifted:
            outcome = replace(outcome, notes=(*outcome.notes, _drift(desired, outcome)))
        if self._trials is not None and self._trials.on_trial is not None and self.applied != desired:
            self._proven_at = _now()
        told = announce or drifted or self.applied != desired
        self.applied, self._adrift = desired, False
        if told:
            self._report(desired.generation, desired.digest, outcome)
            _log.info("state.applied", generation=desired.generation, rows=outcome.changed)
        if self._wanted is desired:
            self._announce = False

    def _soon(self) -> float:
        return self._compare_every * random.uniform(0.8, 1.2)

    async def _hold(self, desired: Desired, reason: str, *, announce: bool) -> float:
        """Keep the leaf at what it has while `desired` is set aside; tell the plane again when it asked again.

        The answer is in how many seconds to come back.
        """
        if announce:
            self._report_quarantine(desired, reason)
            if self._wanted is desired:
                self._announce = False
        await self._maintain(desired, reason)
        if self._in_order and self._outage:
            self._outage = False
            await self._quarantine.relent()
            return 0.0
        return self._soon()

    async def _maintain(self, wanted: Desired, reason: str) -> None:
        """Bring the leaf back to what it had before `wanted`, or see that it still has it."""
        good = self._trials.good if self._trials is not None else None
        standing = self.applied or (good.desired if good is not None else None)
        if standing is None or standing == wanted:
            return
        if self.applied is None and good is not None:
            outcome = await self._applier.restore(good)
        else:
            outcome = await self._applier.apply(standing)
        if not outcome.applied:
            self._outage = self._outage or (self._in_order and outcome.failure is Failure.OUTAGE)
            self._adrift, self._in_order = self._adrift or not outcome.taken_back, False
            _log.warning("state.not_kept", generation=standing.generation, error=outcome.error)
            return
        returned = self._adrift or self.applied is None
        self.applied, self._adrift, self._in_order = standing, False, True
        if returned or outcome.touched:
            notes = () if returned else (_drift(standing, outcome),)
            self._report_quarantine(wanted, reason, notes)

    async def _go_back(self, trials: Trials) -> None:
        """The plane was not heard after what is on trial: the leaf returns to what was confirmed before."""
        candidate, good = trials.on_trial, trials.good
        if candidate is None or good is None:
            return
        desired, back = candidate.desired, good.desired
        _log.error("trial.ended_unheard", generation=desired.generation, back_to=back.generation)
        outcome = await self._applier.apply(back)
        if not outcome.applied:
            self._adrift = self._adrift or not outcome.taken_back
            _log.error("trial.not_taken_back", generation=back.generation, error=outcome.error)
            self._back_due = _now() + self._retry.delay(self._returns).total_seconds()
            self._returns += 1
            return
        self._returns, self._adrift, self.applied = 0, False, back
        reason = (
            f"the plane was not heard for {trials.limit_of(desired):g} s after it was applied, so the leaf went back "
            f"to generation {back.generation}"
        )
        await self._quarantine.cut_off(desired, reason)
        self._report_quarantine(desired, reason, durations=outcome.durations)

    def _report_quarantine(
        self, desired: Desired, reason: str, notes: tuple[str, ...] = (), durations: Mapping[str, float] | None = None
    ) -> None:
        entry = self._quarantine.entry
        outcome = Outcome(False, reason, notes, durations=durations or {})
        if entry is not None and self._quarantine.reason(desired):
            outcome = replace(outcome, quarantined=reason, phase=entry.phase, differences=entry.differences)
        self._report(desired.generation, desired.digest, outcome)

    def _report(self, generation: int, digest: str, outcome: Outcome) -> None:
        self._reports.ended(generation, digest, replace(outcome, is_at=self._standing()))

    def _standing(self) -> Standing | None:
        if self._adrift:
            return None
        return Standing(self.applied.generation, self.applied.digest) if self.applied else Standing(0, "")

    async def _pause(self, stopping: asyncio.Event) -> None:
        """Wait until there is something new, something is due, or the agent stops."""
        waits = [asyncio.create_task(self._wake.wait()), asyncio.create_task(stopping.wait())]
        try:
            await asyncio.wait(waits, timeout=self._until_due(), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def _until_due(self) -> float | None:
        """Seconds until something is to be done without anybody saying so; None when nothing is."""
        left = self._trials.left if self._trials is not None else None
        if left == 0:
            return max(self._back_due - _now(), 0.0)
        dues = [] if self._wanted is None else [self._due - _now()]
        dues += [LOOK] if self._quarantine.sets_aside else []
        dues += [] if left is None else [left]
        return max(min(dues), 0.0) if dues else None


def _drift(desired: Desired, outcome: Outcome) -> str:
    rows, lines = outcome.changed, outcome.frr_commands
    _log.warning("state.drift_corrected", generation=desired.generation, rows=rows, frr_commands=lines)
    return f"drift corrected: {rows} rows of CONFIG_DB, {lines} commands to FRR"


def _now() -> float:
    return asyncio.get_running_loop().time()
