"""Carries out the steps of a plan against the switch: rows, waits and FRR. It makes no decisions of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable

from metal_core import facts
from metal_core.events import changes
from metal_core.frr.delta import converge, detach, retire
from metal_core.frr.model import Configuration
from metal_core.plan import Condition, DeleteRows, FrrConverge, FrrDetach, FrrRetire, SetRows, Step, Wait
from metal_core.sonic import Sonic
from metal_core.vtysh import Frr

# Seconds for which the running configuration is taken to be what it was when it was read.
_FRESH = 1.0


class StepFailed(Exception):
    """A step did not have its effect; the message names the step and what is missing."""


def commands_of(step: Step, running: Configuration, wanted: Configuration, ports: Collection[str]) -> str:
    """What a step gives to FRR, which runs `running`, on the way to `wanted` on a leaf with `ports`; empty for one that
    is not FRR's."""
    match step:
        case FrrDetach(leaving):
            return detach(running, leaving)
        case FrrRetire(vrfs):
            return retire(running, vrfs)
        case FrrConverge():
            return converge(running, wanted, ports)
        case _:
            return ""


class Execution:
    """One plan's way to FRR configuration `wanted` on a leaf with `ports`; each wait ends after `limit` seconds.

    `frr_commands` counts the lines that FRR was given.
    """

    def __init__(self, sonic: Sonic, frr: Frr, wanted: Configuration, ports: Collection[str], limit: float) -> None:
        self._sonic, self._frr, self._wanted, self._ports, self._limit = sonic, frr, wanted, ports, limit
        self._known: tuple[Configuration, float] | None = None
        # What leads from the known configuration to the wanted one, and whether sessions were taken out of it since.
        self._converging: str | None = None
        self._detached = False
        self.frr_commands = 0

    def knows(self, running: Configuration, commands: str, read_at: float) -> None:
        """The running configuration as it was at `read_at` by the loop's clock, and what leads on from it, so that
        neither has to be found again while it is fresh."""
        self._known, self._converging = (running, read_at), commands

    async def run(self, steps: Iterable[Step], *, side_by_side: bool = False) -> None:
        """All steps in order. Raises StepFailed, SonicUnavailable or FrrError at the first that fails.

        With `side_by_side` FRR is brought to its configuration while the rows are written, as when it boots with its
        file; when one of the two fails the other is brought to an end, or to a failure of its own.
        """
        if not side_by_side:
            for step in steps:
                await self._run(step)
            return
        rows = [step for step in steps if step != FrrConverge()]
        for ended in await asyncio.gather(self.run(rows), self._run(FrrConverge()), return_exceptions=True):
            if isinstance(ended, BaseException):
                raise ended

    async def _run(self, step: Step) -> None:
        match step:
            case DeleteRows(keys):
                await self._sonic.delete(keys)
            case SetRows(rows, drop):
                await self._sonic.write(rows, drop)
            case Wait(conditions):
                await self.wait(conditions)
            case FrrDetach():
                known = self._fresh()
                await self._load(self._commands(step, known or await self._frr.running()))
                # Without these sessions, VRFs and instances are still what they were.
                self._known, self._detached = self._known if known else None, True
            case FrrRetire():
                await self._load(self._commands(step, self._fresh() or await self._frr.running()))
                self._known = None
            case FrrConverge():
                await self._load(await self._rest(step))
                self._known = None

    def _commands(self, step: Step, running: Configuration) -> str:
        return commands_of(step, running, self._wanted, self._ports)

    def _fresh(self) -> Configuration | None:
        """The configuration as it was read a moment ago, but for sessions that were taken out since."""
        if self._known is None or asyncio.get_running_loop().time() - self._known[1] >= _FRESH:
            return None
        return self._known[0]

    async def _rest(self, step: FrrConverge) -> str:
        if self._fresh() is not None and self._converging is not None and not self._detached:
            return self._converging
        return self._commands(step, await self._frr.running())

    async def _load(self, commands: str) -> None:
        if commands and self._frr.present:
            await self._frr.check(commands)
            await self._frr.load(commands)
            self.frr_commands += commands.count("\n")

    async def wait(self, conditions: Collection[Condition]) -> None:
        """Return when all conditions hold. Raises StepFailed, naming those that do not, when they take too long."""
        if not await facts.unmet(self._sonic, conditions):
            return
        loop = asyncio.get_running_loop()
        end = loop.time() + self._limit
        async with changes(self._sonic, conditions) as changed:
            # After the subscription, so that nothing is missed between a look and the next event.
            while missing := await facts.unmet(self._sonic, conditions):
                left = end - loop.time()
                if left <= 0:
                    what = ", ".join(str(condition) for condition in missing)
                    raise StepFailed(f"the switch did not follow within {self._limit:g} s: {what}")
                await changed(left)
