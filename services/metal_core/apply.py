"""Brings a leaf to a desired state, proves it, and remembers it; or takes the leaf back and says why.

snapshot → refuse what is known to be wrong → ordered steps with waits → read everything back → commit. A failure on the
way runs the inverse plan. Nothing is remembered in between: after a crash at any step the next run starts from what the
databases and FRR say, so the plan continues from wherever the leaf is. Only one run takes place at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from metal_kit import logs

from metal_core.checks import check_desired, check_frr, check_leaf
from metal_core.compare import Differences
from metal_core.configdb import Rows, owned, render, the_vtep
from metal_core.desired import Desired
from metal_core.execute import Execution, StepFailed
from metal_core.frr.managed import differences, dispensable_vrfs
from metal_core.frr.model import Configuration
from metal_core.frr.render import render as render_frr
from metal_core.known_good import KnownGood, KnownGoodFile, replace_file
from metal_core.plan import FrrConverge, expected, plan, takes_away, touched
from metal_core.sonic import Sonic, SonicUnavailable
from metal_core.vtysh import Frr, FrrError

NO_FRR = "frr: not present"
_SHOWN = 10
_FAILURES = (SonicUnavailable, FrrError, StepFailed, OSError)
_log = logs.get_logger("metal_core.apply")


class Standing(NamedTuple):
    """What a leaf has: the generation that it was last brought to, 0 for none, and the hash of that state."""

    generation: int
    digest: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: rows written or deleted, lines given to FRR, and seconds by phase.

    Of a failed run: the `phase` that it failed in, what differed then, and in `quarantined` why it is not tried again
    (empty: it is). `is_at` is what the leaf has after the run; None where that is not known.
    """

    applied: bool
    error: str = ""
    notes: tuple[str, ...] = ()
    changed: int = 0
    frr_commands: int = 0
    durations: Mapping[str, float] = field(default_factory=dict)
    phase: str = ""
    differences: Differences = field(default_factory=Differences)
    quarantined: str = ""
    is_at: Standing | None = None


class Refused(Exception):
    """The state cannot be applied to this leaf; nothing was touched."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What a run starts from and where it goes."""

    desired: Desired
    before: Rows
    target: Rows
    running: Configuration
    wanted: Configuration

    @property
    def ports(self) -> frozenset[str]:
        return self.desired.own_ports


class Applier:
    """Applies states to one leaf. `frr_conf` is where FRR reads its configuration at boot."""

    def __init__(
        self, sonic: Sonic, frr: Frr, known_good: KnownGoodFile, frr_conf: Path, *, wait_limit: float = 10.0
    ) -> None:
        self._sonic, self._frr, self._known_good, self._frr_conf = sonic, frr, known_good, frr_conf
        self._wait_limit = wait_limit
        self._one_at_a_time = asyncio.Lock()

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

    async def _apply(self, desired: Desired, *, restoring: bool) -> Outcome:
        clock = _Stopwatch()
        notes = () if self._frr.present else (NO_FRR,)
        try:
            with clock.phase("prepare"):
                prepared = await self._prepare(desired)
            steps = plan(prepared.before, prepared.target)
            if restoring and (losing := takes_away(steps, prepared.before)):
                raise Refused(f"the last known good state is stale; it would take away {', '.join(losing[:_SHOWN])}")
        except (Refused, *_FAILURES) as error:
            return Outcome(False, str(error), notes, durations=clock.seconds)
        execution = Execution(self._sonic, self._frr, prepared.wanted, prepared.ports, self._wait_limit)
        try:
            with clock.phase("apply"):
                await execution.run(steps)
            with clock.phase("verify"):
                await self._verify(prepared, execution)
            with clock.phase("commit"):
                await self._commit(prepared)
        except _FAILURES as error:
            _log.warning("apply.failed", generation=desired.generation, error=str(error))
            with clock.phase("rollback"):
                undone = await self._roll_back(prepared)
            return Outcome(False, f"{error}; {undone}", notes, durations=clock.seconds)
        return Outcome(True, "", notes, touched(steps), execution.frr_commands, clock.seconds)

    async def _prepare(self, desired: Desired) -> _Prepared:
        _refuse(check_desired(desired))
        wanted = render_frr(desired)
        _refuse(check_frr(wanted))
        if not await self._sonic.port_init_done():
            raise Refused("APPL_DB has no PORT_TABLE:PortInitDone; the switch has not created its ports yet")
        rows = await self._sonic.config()
        _refuse(check_leaf(desired, rows))
        await self._frr.check(wanted.text())
        running = await self._frr.running()
        return _Prepared(desired, owned(rows, desired), render(desired, the_vtep(rows)), running, wanted)

    async def _verify(self, prepared: _Prepared, execution: Execution) -> None:
        """Read everything back. What is reported as applied has been seen in the databases and in FRR."""
        rows = owned(await self._sonic.config(), prepared.desired)
        left = plan(rows, prepared.target)
        if left != (FrrConverge(),):
            raise StepFailed(f"CONFIG_DB was changed by somebody else meanwhile; still to do: {left[:_SHOWN]}")
        # Also for rows that were there before: an interrupted run may have written them and never waited.
        await execution.wait(expected(prepared.target))
        if self._frr.present:
            running = await self._frr.running()
            if differing := differences(running, prepared.wanted, prepared.ports):
                raise StepFailed(f"FRR differs in {len(differing)} lines: {'; '.join(differing[:_SHOWN])}")
            for name in dispensable_vrfs(running, prepared.wanted):
                await self._frr.forget_vrf(name)

    async def _commit(self, prepared: _Prepared) -> None:
        """First the file for FRR's next boot, then the memory: the memory must never promise more than is on disk."""
        before = await asyncio.to_thread(_replace_if_changed, self._frr_conf, prepared.wanted.text())
        known = await self._known_good.load()
        if known is None or known.desired != prepared.desired:
            try:
                await self._known_good.store(KnownGood(prepared.desired, time.time()))
            except OSError:
                # The run is taken back, and FRR must not boot with what it had brought.
                await asyncio.to_thread(_put_back, self._frr_conf, before)
                raise

    async def _roll_back(self, prepared: _Prepared) -> str:
        """Undo what a failed run has done, and say whether that succeeded."""
        execution = Execution(self._sonic, self._frr, prepared.running, prepared.ports, self._wait_limit)
        try:
            rows = owned(await self._sonic.config(), prepared.desired)
            await execution.run(plan(rows, prepared.before, going_back=True))
        except _FAILURES as error:
            _log.error("apply.rollback_failed", generation=prepared.desired.generation, error=str(error))
            return f"taking it back failed as well: {error}"
        return "taken back"


class _Stopwatch:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - started


def _refuse(findings: list[str]) -> None:
    if findings:
        more = f" (and {len(findings) - _SHOWN} more)" if len(findings) > _SHOWN else ""
        raise Refused("; ".join(findings[:_SHOWN]) + more)


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
