"""What a run starts from and where it goes: renders, refuses what is known to be wrong, and reads the leaf once.

What FRR would refuse is found out here, for all of the run's commands together and before anything is touched. What
follows from a state alone is computed once a state, and a configuration of FRR that was found equal is not compared
again while neither side changes: a look at a leaf where nothing is to do costs one read of CONFIG_DB and one of FRR.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from metal_core.checks import check_abilities, check_desired, check_frr, check_leaf, check_running
from metal_core.compare import Differences, LeafFacts, row_differences
from metal_core.configdb import Former, Rows, owned, render, the_vtep, with_former
from metal_core.desired import Desired, PortRole
from metal_core.execute import commands_of
from metal_core.former import FormerFields
from metal_core.frr.delta import converge
from metal_core.frr.dialect import VrfBackend
from metal_core.frr.managed import differences, dispensable_vrfs, routers
from metal_core.frr.model import Configuration
from metal_core.frr.render import render as render_frr
from metal_core.outcome import Failure
from metal_core.plan import FrrConverge, SetRows, Step, Wait, plan
from metal_core.sonic import Sonic
from metal_core.vtysh import Frr, FrrError, FrrUnavailable

NO_PORTS = "APPL_DB has no PORT_TABLE:PortInitDone; the switch has not created its ports yet"
_SHOWN = 10
_EMPTY = Configuration()


class Refused(Exception):
    """The state cannot be applied to this leaf; nothing was touched. `failure` says whether that can change."""

    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Prepared:
    """The leaf as it was read, reduced to what is the agent's, and as it shall be.

    `lines` is where FRR differs, `commands` what leads it from `running` to `wanted`. `back` are fields that `desired`
    does not mention and that are to be as they were. `read_at` is when `running` was read, by the loop's clock.
    """

    desired: Desired
    before: Rows
    target: Rows
    running: Configuration
    wanted: Configuration
    text: str
    steps: tuple[Step, ...]
    lines: tuple[str, ...]
    commands: str
    back: Former
    read_at: float

    @property
    def ports(self) -> frozenset[str]:
        """The ports that are the agent's."""
        return self.desired.own_ports

    @property
    def uplinks(self) -> frozenset[str]:
        """The ports to the spines."""
        return frozenset(port.name for port in self.desired.with_role(PortRole.UPLINK))

    @property
    def nothing_differs(self) -> bool:
        """Whether rows and FRR are as they shall be."""
        return self.steps == (FrrConverge(),) and not self.lines

    @property
    def frr_is_new(self) -> bool:
        """Whether FRR has no session that rows could hurt, and the rows take nothing away: a leaf that has booted."""
        return not routers(self.running) and all(isinstance(step, SetRows | Wait | FrrConverge) for step in self.steps)

    @property
    def differences(self) -> Differences:
        """What differs before the run."""
        return Differences(row_differences(self.before, *with_former(self.target, self.back)), self.lines)

    def left(self, rows: Rows) -> tuple[Step, ...]:
        """What is still to do where CONFIG_DB has `rows`."""
        target, absent = with_former(self.target, self.back)
        return plan(owned(rows, self.desired, self.back), target, absent=absent)

    @property
    def dispensable(self) -> tuple[str, ...]:
        """Tenant VRFs that FRR still lists though nothing is said about them."""
        return dispensable_vrfs(self.running, self.wanted)


@dataclass(frozen=True, slots=True)
class Rendered:
    """What follows from a state alone: FRR's configuration and its text. With `findings` it can never be applied."""

    desired: Desired
    wanted: Configuration = _EMPTY
    text: str = ""
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Way:
    """What a state means for a leaf as it was read. With `findings` it cannot be applied as things are there."""

    before: Rows
    target: Rows
    running: Configuration
    steps: tuple[Step, ...]
    findings: tuple[str, ...]
    back: Former


def rendered(desired: Desired, backend: VrfBackend) -> Rendered:
    """What follows from `desired` where VRFs are `backend` to FRR."""
    if findings := check_desired(desired):
        return Rendered(desired, findings=tuple(findings))
    wanted = render_frr(desired, backend)
    return Rendered(desired, wanted, wanted.text(), tuple(check_frr(wanted)))


def way(desired: Desired, facts: LeafFacts, fields: FormerFields | None = None) -> Way:
    """What `desired`, which has no findings of its own, means for a leaf with `facts`, where `fields` are known."""
    back = fields.back(desired, facts.rows) if fields is not None else {}
    findings = check_leaf(desired, facts.rows) + check_abilities(desired, facts.abilities)
    if facts.running is not None:
        findings += check_running(desired, facts.running)
    before = owned(facts.rows, desired, back)
    target, absent = with_former(render(desired, the_vtep(facts.rows)), back)
    running = facts.running if facts.running is not None else _EMPTY
    return Way(before, target, running, plan(before, target, absent=absent), tuple(findings), back)


class Preparation:
    """Prepares runs on one leaf."""

    def __init__(self, sonic: Sonic, frr: Frr) -> None:
        self._sonic, self._frr = sonic, frr
        self._rendered: Rendered | None = None
        self._equal: tuple[Configuration, Configuration] | None = None

    async def facts(self) -> LeafFacts:
        """The leaf as it is. Raises SonicUnavailable or FrrUnavailable."""
        rows = await self._sonic.config()
        return LeafFacts(rows, (await self._running())[0], self._frr.backend)

    async def prepare(self, desired: Desired, fields: FormerFields | None = None) -> Prepared:
        """Read the leaf and plan the way; `fields` as in `way`. Touches nothing.

        Raises Refused, SonicUnavailable or FrrUnavailable.
        """
        facts, state, read_at = await self._seen(desired)
        found = way(desired, facts, fields)
        _refuse(found.findings, Failure.OBSTACLE)
        lines = self._lines(facts.running, state) if facts.running is not None else ()
        commands = converge(found.running, state.wanted, desired.own_ports) if lines else ""
        on_the_way = "".join(
            commands_of(step, found.running, state.wanted, desired.own_ports)
            for step in found.steps
            # What is left to converge after them is a part of what there is now.
            if step != FrrConverge()
        )
        await self._check(state.text, Failure.INVALID)
        # These depend on what an operator has entered as well, and that can be taken out again.
        await self._check(state.text + commands + on_the_way, Failure.OBSTACLE)
        return Prepared(
            desired,
            found.before,
            found.target,
            found.running,
            state.wanted,
            state.text,
            found.steps,
            lines,
            commands,
            found.back,
            read_at,
        )

    async def _seen(self, desired: Desired) -> tuple[LeafFacts, Rendered, float]:
        """The leaf, what `desired` is for it, and when FRR was read. FRR answers while the rest is found out."""
        asked = asyncio.create_task(self._running())
        try:
            # Here the question gets out as well, before the rendering holds everything up.
            if not await self._sonic.port_init_done():
                raise Refused(NO_PORTS, Failure.OUTAGE)
            state, rows = self._render(desired), await self._sonic.config()
            abilities = await self._sonic.abilities(desired)
            running, read_at = await asked
        finally:
            # Where something else failed first. A failure of its own then says nothing new.
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        return LeafFacts(rows, running, self._frr.backend, abilities), state, read_at

    async def _running(self) -> tuple[Configuration | None, float]:
        """What FRR runs, None without one, and when that was read, by the loop's clock."""
        running = await self._frr.running() if self._frr.present else None
        return running, asyncio.get_running_loop().time()

    async def _check(self, text: str, failure: Failure) -> None:
        try:
            await self._frr.check(text)
        except FrrUnavailable:
            raise
        except FrrError as error:
            raise Refused(str(error), failure) from error

    def _render(self, desired: Desired) -> Rendered:
        if self._rendered is None or self._rendered.desired != desired:
            state = rendered(desired, self._frr.backend)
            _refuse(state.findings, Failure.INVALID)
            self._rendered = state
        return self._rendered

    def _lines(self, running: Configuration, state: Rendered) -> tuple[str, ...]:
        """Where FRR differs. Both sides keep their identity while they do not change."""
        if self._equal is not None and self._equal[0] is running and self._equal[1] is state.wanted:
            return ()
        found = tuple(differences(running, state.wanted, state.desired.own_ports))
        self._equal = None if found else (running, state.wanted)
        return found


def _refuse(findings: Sequence[str], failure: Failure) -> None:
    if findings:
        more = f" (and {len(findings) - _SHOWN} more)" if len(findings) > _SHOWN else ""
        raise Refused("; ".join(findings[:_SHOWN]) + more, failure)
