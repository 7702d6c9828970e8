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
        self.frr_commands = 0

    def knows(self, running: Configuration) -> None:
        """The running configuration as it was read just now, so that the first step need not read it again."""
        self._known = (running, asyncio.get_running_loop().time())

    async def run(self, steps: Iterable[Step]) -> None:
        """All steps in order. Raises StepFailed, SonicUnavailable or FrrError at the first that fails."""
        for step in steps:
            await self._run(step)

    async def _run(self, step: Step) -> None:
        match step:
            case DeleteRows(keys):
                await self._sonic.delete(keys)
            case SetRows(rows, drop):
                await self._sonic.write(rows, drop)
            case Wait(conditions):
                await self.wait(conditions)
            case _:
                await self._load(commands_of(step, await self._running(), self._wanted, self._ports))

    async def _running(self) -> Configuration:
        if self._known is not None and asyncio.get_running_loop().time() - self._known[1] < _FRESH:
            return self._known[0]
        return await self._frr.running()

    async def _load(self, commands: str) -> None:
        if commands and self._frr.present:
            self._known = None
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
