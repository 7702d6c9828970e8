"""Keeps the leaf at the newest state that it was told: applies it, tries again, and looks after it from time to time.

A generation older than the newest of the stream, or than what the stream's Hello named, is ignored. A failed one is
tried again with growing pauses and each failure is reported; meanwhile the leaf stays at what it had. When nothing new
comes the state is compared with the leaf now and then and what differs is corrected. Being cut off from the plane
changes nothing here.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import timedelta

from metal_kit import logs
from metal_kit.backoff import Backoff

from metal_core.apply import Applier, Outcome
from metal_core.desired import Desired
from metal_core.known_good import KnownGood
from metal_core.reports import Reports

RETRY = Backoff(first=timedelta(seconds=1), most=timedelta(seconds=60), least=timedelta(milliseconds=200))
_log = logs.get_logger("metal_core.following")


class Following:
    """The newest state that is wanted, and the loop that brings the leaf there."""

    def __init__(
        self, applier: Applier, reports: Reports, *, switch_id: str, compare_every: float = 60.0, retry: Backoff = RETRY
    ) -> None:
        self._applier, self._reports = applier, reports
        self._switch_id, self._compare_every, self._retry = switch_id, compare_every, retry
        self._wanted: Desired | None = None
        self._newest = 0
        self._memory: KnownGood | None = None
        self._announce = False
        self._wake = asyncio.Event()
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
        self._memory, self._wanted, self._newest = memory, memory.desired, memory.desired.generation
        self.applied = memory.desired if outcome.applied else None
        self._wake.set()

    def want(self, desired: Desired) -> None:
        """The plane wants this state. What the leaf must not take is reported and changes nothing."""
        if desired.switch_id != self._switch_id:
            self._refuse(desired, f"switch_id: the state is for {desired.switch_id!r}, this is {self._switch_id!r}")
        elif desired.generation < self._newest:
            _log.info("state.older_ignored", generation=desired.generation, newest=self._newest)
        elif any(
            known is not None and desired.generation == known.generation == self._newest and desired != known
            for known in (self._wanted, self.applied)
        ):
            self._refuse(desired, f"generation {desired.generation} was sent before with another content")
        else:
            self._wanted, self._newest = desired, desired.generation
            # Also when it is applied already: the plane may not know, or it would not have sent it.
            self._announce = True
            self._wake.set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Apply what is wanted until `stopping` is set. A run that has begun is finished: half a change is no use."""
        failures = 0
        while not stopping.is_set():
            if self._wanted is None:
                await self._pause(stopping, None)
                continue
            self._wake.clear()
            desired, announce = self._wanted, self._announce
            outcome = await self._bring_about(desired)
            self._take(desired, outcome, announce=announce)
            if desired is not self._wanted:
                failures = 0
                continue
            failures = 0 if outcome.applied else failures + 1
            wait = self._compare_every * random.uniform(0.8, 1.2)
            await self._pause(stopping, wait if outcome.applied else self._retry.delay(failures - 1).total_seconds())

    async def _bring_about(self, desired: Desired) -> Outcome:
        if self._memory is not None and desired is self._memory.desired:
            return await self._applier.restore(self._memory)
        return await self._applier.apply(desired)

    def _take(self, desired: Desired, outcome: Outcome, *, announce: bool) -> None:
        if outcome.applied:
            drifted = (outcome.changed > 0 or outcome.frr_commands > 0) and self.applied == desired
            if drifted:
                rows, lines = outcome.changed, outcome.frr_commands
                _log.warning("state.drift_corrected", generation=desired.generation, rows=rows, frr_commands=lines)
                note = f"drift corrected: {rows} rows of CONFIG_DB, {lines} commands to FRR"
                outcome = replace(outcome, notes=(*outcome.notes, note))
            if announce or drifted or self.applied != desired:
                self._reports.ended(desired.generation, desired.digest, outcome)
                _log.info("state.applied", generation=desired.generation, rows=outcome.changed)
            self.applied = desired
            if self._wanted is desired:
                self._announce = False
            return
        _log.warning("state.failed", generation=desired.generation, error=outcome.error)
        # The next success has to be told, since the plane now believes that it failed.
        self._announce = True
        self._reports.ended(desired.generation, desired.digest, outcome)

    def _refuse(self, desired: Desired, error: str) -> None:
        _log.warning("state.refused", generation=desired.generation, error=error)
        self._reports.ended(desired.generation, desired.digest, Outcome(False, error))

    async def _pause(self, stopping: asyncio.Event, seconds: float | None) -> None:
        """Wait until there is something new, `seconds` have passed, or the agent stops."""
        waits = [asyncio.create_task(self._wake.wait()), asyncio.create_task(stopping.wait())]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
