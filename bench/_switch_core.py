"""The leaf's half of bench/switch_config.py: what one agent does with real FRR and Redis."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path

from _switch_frr import RELOAD, Frr, frr
from _switch_leaf import PARTITION, Leaf, compiled, desired, leaf, machine_ports
from metal_core.apply import Outcome
from metal_core.frr.managed import differences
from metal_core.frr.model import Configuration
from metal_core.frr.render import render
from metal_lab.pki import LabPki
from metal_sim.leaf import LeafSpec
from report import Answer, percentile

FEW, MANY = 48, 200
# Where nobody listens: the plane is out of reach.
NOWHERE = "127.0.0.1:9"


def took(question: str, samples: Sequence[float], goal: str = "", note: str = "") -> Answer:
    """Seconds, by their median."""
    middle = percentile(samples, 0.5)
    return Answer(question, middle, "s", goal, middle, percentile(samples, 0.99), f"{len(samples)} runs; {note}")


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Seconds that it took."""
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def deltas(where: Path, quick: bool) -> list[Answer]:
    """One more tenant in FRR, and one less: our delta, and frr-reload on the same change on the same daemons."""
    answers: list[Answer] = []
    for tenants, goal in ((FEW, "<= 0.2"), (MANY, "< 1")):
        uplinks = ("Ethernet4000", "Ethernet4004")
        spec = LeafSpec("leaf01", (*machine_ports(tenants + 1), *uplinks), uplinks, 4_200_000_011, "10.0.0.1")
        less, more = desired(spec, tenants), desired(spec, tenants + 1)
        async with frr(where / f"frr-{tenants}") as daemons:
            await daemons.boot(render(less))
            answers += await _both_ways(daemons, tenants, goal, (render(less), render(more)), more.own_ports, quick)
    return answers


async def _both_ways(
    daemons: Frr,
    tenants: int,
    goal: str,
    states: tuple[Configuration, Configuration],
    ports: frozenset[str],
    quick: bool,
) -> list[Answer]:
    less, more = states
    there: list[float] = []
    back: list[float] = []
    lines = len(less.text().splitlines())
    for number in range(3 if quick else 12):
        for wanted, samples in ((more, there), (less, back)):
            seconds = await timed(lambda wanted=wanted: daemons.delta(wanted, ports))  # type: ignore[misc]
            if number:  # the first one fills what the client remembers
                samples.append(seconds)
            await _demand(daemons, wanted, ports)
    what = f"FRR delta, {tenants} VRFs"
    note = f"{lines:,} lines; read, compare, check, load"
    answers = [took(f"{what}: one tenant more", there, goal, note), took(f"{what}: one tenant less", back, goal, note)]
    what = f"frr-reload, {tenants} VRFs"
    if not RELOAD.exists():
        return [*answers, left_out(what, "frr-reload is not installed (`make peers`)")]
    times: dict[str, list[float]] = {"more": [], "less": []}
    for _ in range(1 if quick else 3):
        for wanted, name in ((more, "more"), (less, "less")):
            times[name].append(await timed(lambda wanted=wanted: daemons.reload(wanted)))  # type: ignore[misc]
            await _demand(daemons, wanted, ports)
    return answers + [took(f"{what}: one tenant {name}", samples) for name, samples in times.items()]


async def _demand(daemons: Frr, wanted: Configuration, ports: frozenset[str]) -> None:
    """A way that does not lead there is none, however fast."""
    if left := differences(await daemons.client.running(), wanted, ports):
        raise RuntimeError(f"FRR does not have what it was given: {left[:5]}")


async def looks(where: Path, quick: bool) -> list[Answer]:
    """A run of the applier where nothing is to do, and one for one more tenant, with Redis and its waits."""
    answers: list[Answer] = []
    for tenants, goal in ((FEW, "< 0.1"), (MANY, "")):
        home = where / f"looks-{tenants}"
        home.mkdir(mode=0o755)
        async with leaf(home, 1, tenants + 1) as one:
            applier = one.applier()
            less, more = desired(one.spec, tenants), desired(one.spec, tenants + 1)
            await one.frr.boot(render(less))
            _demand_applied(await applier.apply(less))
            idle, changed = [], []
            for _ in range(5 if quick else 30):
                began = time.perf_counter()
                outcome = await applier.apply(less)
                idle.append(time.perf_counter() - began)
                if outcome.changed or outcome.frr_commands:
                    raise RuntimeError(f"a second run found something to do: {outcome}")
            phases: dict[str, list[float]] = {}
            for _ in range(2 if quick else 8):
                for state in (more, less):
                    began = time.perf_counter()
                    outcome = await applier.apply(state)
                    _demand_applied(outcome)
                    if state is more:
                        changed.append(time.perf_counter() - began)
                        for name, seconds in outcome.durations.items():
                            phases.setdefault(name, []).append(seconds)
            note = ", ".join(f"{name} {percentile(each, 0.5) * 1000:.0f}" for name, each in phases.items())
            answers.append(took(f"nothing to do, {tenants} VRFs", idle, goal, "Redis and FRR read and compared"))
            answers.append(took(f"whole apply of one tenant more, {tenants} VRFs", changed, "", f"ms: {note}"))
    return answers


def _demand_applied(outcome: Outcome) -> None:
    if not outcome.applied:
        raise RuntimeError(f"not applied: {outcome.error}")


async def restored(where: Path, quick: bool) -> list[Answer]:
    """The agent starts on a leaf whose CONFIG_DB is as it was installed, and the plane is out of reach."""
    pki = LabPki(where)
    answers: list[Answer] = []
    for booted in (True, False):
        whole: list[float] = []
        own: list[float] = []
        for number in range(1 if quick else 5):
            home = where / f"restored-{number}-{booted}"
            home.mkdir(mode=0o755)
            await compiled(home)
            async with leaf(home, 1, FEW) as one:
                state = desired(one.spec, FEW)
                if booted:
                    await one.frr.boot(render(state))
                await one.remember(state)
                seconds, inside = await _restore(one, pki)
                whole.append(seconds)
                own.append(inside)
                await _demand(one.frr, render(state), state.own_ports)
        how = "FRR booted with its file" if booted else "FRR empty as well"
        what = f"last known good restored, {FEW} VRFs, {how}"
        answers.append(took(what, whole, "< 2", "from the start of the process"))
        answers.append(took(f"{what}: the agent itself", own, "", "from its first line of log, when Python is there"))
    return answers


async def _restore(one: Leaf, pki: LabPki) -> tuple[float, float]:
    began = time.perf_counter()
    async with one.agent(pki.leaf(PARTITION, one.spec.name), NOWHERE) as log:
        ended = await log.event("restore.ended")
        seconds = time.perf_counter() - began
        if not ended["applied"]:
            raise RuntimeError(f"not restored: {ended['error']}")
        started = await log.event("core.start")
    inside = datetime.fromisoformat(ended["timestamp"]) - datetime.fromisoformat(started["timestamp"])
    return seconds, inside.total_seconds()


def left_out(question: str, reason: str) -> Answer:
    """A question that cannot be asked here."""
    return Answer(question, float("nan"), "", note=f"LEFT OUT: {reason}")
