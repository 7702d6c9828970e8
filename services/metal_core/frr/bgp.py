"""Commands that turn one BGP instance into another: first what has to go, later what has to come.

FRR ties lines to each other: a neighbour takes its lines of all address families with it, and it cannot change its peer
group without being removed. The two halves know that, so that no command fails and no unrelated session is touched.
"""

from __future__ import annotations

from collections.abc import Iterable

from metal_core.frr.model import Block, closing

# These take exactly one value for a neighbour, so a new value replaces the old one without a `no`.
_SINGLE = ("timers", "remote-as", "maximum-prefix", "allowas-in")


def removals(have: Block, want: Block) -> list[str]:
    """Commands that take out of the instance `have` what `want` has not."""
    lost = _lost_neighbours(have, want)
    commands: list[str] = []
    for child in have.children:
        wanted = want.child(child.header).lines
        gone = [line for line in child.lines if line not in wanted and neighbour(line) not in lost]
        commands += in_context(child.header, [negated(line) for line in gone if not _replaced(line, wanted)])
    for line in have.lines:
        if line in want.lines or _replaced(line, want.lines):
            continue
        if _defines(line) or neighbour(line) not in lost:
            commands.append(negated(line))
    return in_context(have.header, commands)


def additions(have: Block, want: Block) -> list[str]:
    """Commands that bring into the instance what `want` has and `have` has not, after `removals`."""
    # What a neighbour loses when it moves to another peer group has to be said again.
    lost = _lost_neighbours(have, want)
    kept = [line for line in have.lines if _defines(line) or neighbour(line) not in lost]
    commands = [line for line in want.lines if line not in kept]
    for child in want.children:
        known = [line for line in have.child(child.header).lines if neighbour(line) not in lost]
        commands += in_context(child.header, [line for line in child.lines if line not in known])
    return in_context(want.header, commands)


def neighbour(line: str) -> str:
    """The neighbour or peer group that a line is about; empty for other lines."""
    words = line.removeprefix("no ").split()
    return words[1] if len(words) > 1 and words[0] == "neighbor" else ""


def is_session(line: str) -> bool:
    """Whether the line makes an unnumbered neighbour."""
    words = line.split()
    return words[0] == "neighbor" and words[2:3] == ["interface"]


def negated(line: str) -> str:
    """The command that undoes `line`."""
    return line.removeprefix("no ") if line.startswith("no ") else f"no {line}"


def in_context(header: str, lines: list[str]) -> list[str]:
    """`lines` as commands inside the context called `header`; nothing at all when there are none."""
    return [header, *(f" {line}" for line in lines), closing(header)] if lines else []


def _defines(line: str) -> bool:
    return is_session(line) or (neighbour(line) != "" and line.endswith(" peer-group"))


def _lost_neighbours(have: Block, want: Block) -> set[str]:
    """Neighbours whose defining line goes: removed for good, or about to be made again in another peer group."""
    return {neighbour(line) for line in have.lines if _defines(line) and line not in want.lines}


def _replaced(line: str, wanted: Iterable[str]) -> bool:
    """Whether one of the wanted lines sets the same thing to another value."""
    slot = _slot(line)
    return slot is not None and any(_slot(other) == slot for other in wanted)


def _slot(line: str) -> tuple[str, ...] | None:
    words = line.split()
    if words[:2] == ["bgp", "router-id"]:
        return ("router-id",)
    if words[0] == "neighbor" and len(words) > 2:
        if words[2] in _SINGLE:
            return (words[1], words[2])
        if words[2] == "route-map":
            return (words[1], "route-map", words[-1])
    if words[0] == "redistribute":
        return ("redistribute", words[1])
    return None
