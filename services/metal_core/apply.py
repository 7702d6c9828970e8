"""Brings a leaf to a desired state, proves it, and remembers it; or takes the leaf back and says why.

snapshot → refuse what is known to be wrong → ordered steps with waits → read everything back → commit. A failure on the
way runs the inverse plan. Nothing is remembered in between: after a crash at any step the next run starts from what the
databases and FRR say, so the plan continues from wherever the leaf is. Only one run takes place at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metal_kit import logs

from metal_core import facts
from metal_core.compare import Differences, LeafFacts, compare
from metal_core.configdb import Rows, owned, render
from metal_core.confirm import Trials
from metal_core.desired import Desired
from metal_core.execute import Execution, StepFailed
from metal_core.frr.managed import differences, dispensable_vrfs
from metal_core.frr.render import HOLD
from metal_core.known_good import KnownGood, replace_file
from metal_core.outcome import Failure, Outcome, Standing
from metal_core.plan import FrrConverge, expected, plan, takes_away, touched
from metal_core.prepare import Preparation, Prepared, Refused
from metal_core.sonic import Sonic, SonicUnavailable
from metal_core.vtysh import Frr, FrrError

__all__ = ["NO_FRR", "Applier", "Failure", "Outcome", "Standing"]

NO_FRR = "frr: not present"
# Seconds that a session may take to come back after a silent neighbour has been given up.
_SESSION_GRACE = 7.0
_SESSION_LOOK = 0.25
_SHOWN = 10
_FAILURES = (SonicUnavailable, FrrError, StepFailed, OSError)
_log = logs.get_logger("metal_core.apply")


class Applier:
    """Applies states to one leaf. `frr_conf` is where FRR reads its configuration at boot.

    `wait_limit` and `session_limit` are seconds: for the switch to follow a step, and for uplink sessions to be back,
    by default as long as BGP needs to lose a silent neighbour and to find it again.
    """

    def __init__(
        self,
        sonic: Sonic,
        frr: Frr,
        trials: Trials,
        frr_conf: Path,
        *,
        wait_limit: float = 10.0,
        session_limit: float | None = None,
    ) -> None:
        self._sonic, self._frr, self._trials, self._frr_conf = sonic, frr, trials, frr_conf
        self._wait_limit, self._session_limit = wait_limit, session_limit
        self._preparation = Preparation(sonic, frr)
        self._one_at_a_time = asyncio.Lock()
        # What the switch was once seen to have followed, and the VRFs that FRR would not forget.
        self._followed: Rows | None = None
        self._kept_vrfs: tuple[str, ...] = ()

    async def apply(self, desired: Desired) -> Outcome:
        """Bring the leaf to `desired`. Never raises for what the leaf, Redis or FRR do; the outcome says it."""
        async with self._one_at_a_time:
            return await self._apply(desired, restoring=False)

    async def restore(self, good: KnownGood) -> Outcome:
        """Bring the leaf to its last known good state without the control plane.

        The memory may be older than what the leaf has, when a run was cut off after it had attached a port. So it may
        add and may move ports out of the PXE VLAN, but it never takes a port out of a tenant's VRF.
        """
        async with self._one_at_a_time:
            return await self._apply(good.desired, restoring=True)

    async def look(self) -> LeafFacts:
        """The leaf as it is now, for `compare`; not while a run changes it. Raises SonicUnavailable or FrrError."""
        async with self._one_at_a_time:
            return await self._preparation.facts()

    async def _apply(self, desired: Desired, *, restoring: bool) -> Outcome:
        clock = _Stopwatch()
        notes = () if self._frr.present else (NO_FRR,)
        sessions: frozenset[str] = frozenset()
        try:
            with clock.phase("prepare"):
                await self._trials.load()
                prepared = await self._preparation.prepare(desired, self._trials.fields)
                if restoring and (losing := takes_away(prepared.steps, prepared.before)):
                    message = f"the last known good state is stale; it would take away {', '.join(losing[:_SHOWN])}"
                    raise Refused(message, Failure.OBSTACLE)
                idle = await self._nothing_to_do(prepared)
                if not idle:
                    sessions = await self._frr.established() & prepared.uplinks
                    await self._note(prepared)
            if idle:
                with clock.phase("commit"):
                    await self._commit(prepared, idle=True)
                return Outcome(True, "", notes, durations=clock.seconds)
        except Refused as refused:
            return Outcome(
                False, str(refused), notes, durations=clock.seconds, phase=clock.now, failure=refused.failure
            )
        except _FAILURES as error:
            return Outcome(False, str(error), notes, durations=clock.seconds, phase=clock.now, failure=Failure.OUTAGE)
        execution = Execution(self._sonic, self._frr, prepared.wanted, prepared.ports, self._wait_limit)
        execution.knows(prepared.running, prepared.commands, prepared.read_at)
        try:
            with clock.phase("apply"):
                await execution.run(prepared.steps, side_by_side=prepared.frr_is_new)
            with clock.phase("verify"):
                await self._verify(prepared, execution, restoring=restoring)
                await self._sessions_back(prepared, sessions)
            with clock.phase("commit"):
                await self._commit(prepared)
        except _FAILURES as error:
            return await self._failed(prepared, error, clock, notes)
        self._followed = prepared.target
        changed, commands = touched(prepared.steps), execution.frr_commands
        return Outcome(True, "", notes, changed, commands, clock.seconds, found=prepared.differences)

    async def _note(self, prepared: Prepared) -> None:
        """What a way back needs is on disk before anything is touched. Raises OSError."""
        fields, back = self._trials.fields, self._trials.ways_back
        await fields.note(prepared.desired, prepared.before, render(prepared.desired, ""), back)
        await self._trials.begin(prepared.desired)

    async def _nothing_to_do(self, prepared: Prepared) -> bool:
        """Whether the leaf has the state already, and the switch has followed what an interrupted run may have left."""
        if not prepared.nothing_differs or not set(prepared.dispensable) <= set(self._kept_vrfs):
            return False
        if prepared.target != self._followed:
            if await facts.unmet(
                self._sonic, (*expected(prepared.target), *self._trials.fields.unproven(prepared.target))
            ):
                return False
            self._followed = prepared.target
        return True

    async def _verify(self, prepared: Prepared, execution: Execution, *, restoring: bool) -> None:
        """Read everything back. What is reported as applied has been seen in the databases and in FRR.

        A known good state has been seen to work. That a port's link has come up otherwise this time is no reason to
        keep the tenants from the others.
        """
        left = prepared.left(await self._sonic.config())
        if left != (FrrConverge(),):
            raise StepFailed(f"CONFIG_DB was changed by somebody else meanwhile; still to do: {left[:_SHOWN]}")
        # Also for rows that were there before: an interrupted run may have written them and never waited.
        changed = () if restoring else self._trials.fields.unproven(prepared.target)
        await execution.wait((*expected(prepared.target), *changed))
        if self._frr.present:
            running = await self._frr.running()
            if differing := differences(running, prepared.wanted, prepared.ports):
                raise StepFailed(f"FRR differs in {len(differing)} lines: {'; '.join(differing[:_SHOWN])}")
            self._kept_vrfs = dispensable_vrfs(running, prepared.wanted)
            await self._frr.forget_vrfs(self._kept_vrfs)

    async def _sessions_back(self, prepared: Prepared, before: frozenset[str]) -> None:
        """As many uplinks as `before` the run have their BGP sessions, or have them again in time."""
        loop = asyncio.get_running_loop()
        hold = prepared.desired.bgp_hold or HOLD
        limit = hold + _SESSION_GRACE if self._session_limit is None else self._session_limit
        end = loop.time() + limit
        while before and len(there := await self._frr.established() & prepared.uplinks) < len(before):
            if loop.time() >= end:
                lost = ", ".join(sorted(before - there))
                raise StepFailed(
                    f"{len(there)} uplinks have BGP sessions, {len(before)} had before; not back within "
                    f"{limit:g} s: {lost}"
                )
            await asyncio.sleep(_SESSION_LOOK)

    async def _commit(self, prepared: Prepared, *, idle: bool = False) -> None:
        """First the file for FRR's next boot, then the memory: the memory must never promise more than is on disk."""
        before = await asyncio.to_thread(_replace_if_changed, self._frr_conf, prepared.text)
        try:
            await self._trials.proven(prepared.desired, idle=idle)
        except OSError:
            # The run is taken back, and FRR must not boot with what it had brought.
            await asyncio.to_thread(_put_back, self._frr_conf, before)
            raise
        await self._trials.fields.settle(prepared.target, prepared.back, self._trials.ways_back)
        await self._frr.keep(prepared.text)

    async def _failed(self, prepared: Prepared, error: Exception, clock: _Stopwatch, notes: tuple[str, ...]) -> Outcome:
        """Take back what the run has done, after a look at how far it came."""
        phase, desired = clock.now, prepared.desired
        _log.warning("apply.failed", generation=desired.generation, phase=phase, error=str(error))
        with clock.phase("rollback"):
            differing = await self._differing(prepared)
            problem = await self._roll_back(prepared)
            if not problem:
                await self._trials.given_up(desired)
        undone = f"taking it back failed as well: {problem}" if problem else "taken back"
        return Outcome(
            applied=False,
            error=f"{error}; {undone}",
            notes=notes,
            durations=clock.seconds,
            phase=phase,
            differences=differing,
            failure=Failure.FAILED,
            taken_back=not problem,
            found=prepared.differences,
        )

    async def _differing(self, prepared: Prepared) -> Differences:
        try:
            return compare(prepared.desired, await self._preparation.facts(), prepared.back)
        except _FAILURES:
            # Then there is no more to tell than the failure itself.
            return Differences()

    async def _roll_back(self, prepared: Prepared) -> str:
        """Undo what a failed run has done; empty when that succeeded, else what went wrong."""
        self._followed = None
        execution = Execution(self._sonic, self._frr, prepared.running, prepared.ports, self._wait_limit)
        try:
            rows = owned(await self._sonic.config(), prepared.desired, prepared.back)
            await execution.run(plan(rows, prepared.before, going_back=True))
        except _FAILURES as error:
            _log.error("apply.rollback_failed", generation=prepared.desired.generation, error=str(error))
            return str(error)
        return ""


class _Stopwatch:
    """Seconds by phase, and the phase that was begun last."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.now = ""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.now, started = name, time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - started


def _replace_if_changed(path: Path, text: str) -> str | None:
    """What was in the file before; None when there was none that could be read."""
    try:
        before = path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        before = None
    if before != text:
        replace_file(path, text)
    return before


def _put_back(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink(missing_ok=True)
    else:
        replace_file(path, text)
