"""Reads a leaf and says what a state would mean for it: the same checks and the same plan as the agent's."""

from __future__ import annotations

from dataclasses import dataclass

from metal_core.cli.failure import UNREACHABLE, CommandFailed
from metal_core.compare import Differences, LeafFacts, compare
from metal_core.configdb import READ_TABLES, the_vtep
from metal_core.desired import Desired
from metal_core.execute import commands_of
from metal_core.leaf import Leaf
from metal_core.plan import FrrConverge, Step
from metal_core.prepare import NO_PORTS, rendered, way
from metal_core.sonic import Sonic, SonicUnavailable
from metal_core.vtysh import FrrError

_WHO = "DEVICE_METADATA"


@dataclass(frozen=True, slots=True)
class View:
    """A leaf as it is: its rows, what FRR runs, its name, and whether the switch has created its ports."""

    facts: LeafFacts
    name: str
    ports_created: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """What would be done for a state. With `findings` nothing would be: they are why it is refused.

    `steps` are in order, each with the FRR commands that it would give as seen from what runs now.
    """

    differences: Differences
    findings: tuple[str, ...]
    steps: tuple[tuple[Step, str], ...] = ()

    @property
    def nothing_to_do(self) -> bool:
        """Whether the leaf has the state already."""
        return not self.findings and all(
            isinstance(step, FrrConverge) and not commands for step, commands in self.steps
        )


async def view(leaf: Leaf, desired: Desired | None = None) -> View:
    """The leaf as it is now, and what its ports can do of what is `desired`.

    Raises CommandFailed where Redis or FRR do not answer.
    """
    try:
        rows = await leaf.sonic.config(READ_TABLES | {_WHO})
        abilities = await leaf.sonic.abilities(desired) if desired is not None else {}
        created = await leaf.sonic.port_init_done()
        running = await leaf.frr.running() if leaf.frr.present else None
    except SonicUnavailable as error:
        raise CommandFailed(f"Redis: {error}; METALPLANE_DATABASE_CONFIG says where it is", UNREACHABLE) from error
    except FrrError as error:
        raise CommandFailed(f"{error}; METALPLANE_VTYSH says how to call vtysh", UNREACHABLE) from error
    name = leaf.settings.switch_id or rows.get(f"{_WHO}|localhost", {}).get("hostname", "")
    own = {key: row for key, row in rows.items() if not key.startswith(_WHO)}
    return View(LeafFacts(own, running, leaf.frr.backend, abilities), name, created)


async def preview(leaf: Leaf, seen: View, desired: Desired) -> Preview:
    """What bringing a leaf, `seen` before, to `desired` would take. Nothing is changed; FRR only checks texts."""
    state = rendered(desired, leaf.frr.backend)
    if state.findings:
        return Preview(Differences(), state.findings)
    await leaf.trials.fields.load()
    found = way(desired, seen.facts, leaf.trials.fields)
    steps = tuple(
        (step, commands_of(step, found.running, state.wanted, desired.own_ports) if leaf.frr.present else "")
        for step in found.steps
    )
    findings = [*_not_this_leaf(seen, desired), *found.findings]
    findings += await _refused_by_frr(leaf, [state.text, *(commands for _, commands in steps if commands)])
    return Preview(compare(desired, seen.facts, found.back), tuple(findings), steps)


async def vtep_of(sonic: Sonic) -> str:
    """The name of the leaf's VXLAN tunnel; empty where there is none. Raises CommandFailed."""
    try:
        return the_vtep(await sonic.config())
    except SonicUnavailable as error:
        raise CommandFailed(f"Redis: {error}; name the VXLAN tunnel by --vtep to do without", UNREACHABLE) from error


def _not_this_leaf(seen: View, desired: Desired) -> list[str]:
    found = []
    if seen.name and desired.switch_id != seen.name:
        found.append(f"switch_id: the state is for {desired.switch_id!r}, this is {seen.name!r}")
    if not seen.ports_created:
        found.append(NO_PORTS)
    return found


async def _refused_by_frr(leaf: Leaf, texts: list[str]) -> list[str]:
    found = []
    for text in texts:
        try:
            await leaf.frr.check(text)
        except FrrError as error:
            found.append(f"FRR would not take it: {error}")
    return found
