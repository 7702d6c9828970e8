"""What was found and what would be done, as text for people and as values for JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from metal_core.cli.look import Preview
from metal_core.compare import Differences
from metal_core.plan import DeleteRows, FrrConverge, FrrDetach, FrrRetire, SetRows, Step, Wait


def differences_text(found: Differences) -> list[str]:
    """A line each: rows of CONFIG_DB first, then lines of FRR (`+` is missing, `-` is too much)."""
    return [*(str(row) for row in found.rows), *found.lines]


def differences_json(found: Differences) -> dict[str, Any]:
    """The same as values."""
    return {"rows": [asdict(row) for row in found.rows], "frr": list(found.lines)}


def plan_text(preview: Preview) -> list[str]:
    """The steps, numbered, with the commands for FRR indented below them."""
    lines: list[str] = []
    done = [(step, commands) for step, commands in preview.steps if commands or not isinstance(step, FrrConverge)]
    for number, (step, commands) in enumerate(done, start=1):
        first, *others = list(_words(step))
        lines.append(f"{number:>3}. {first}")
        lines += [f"     {line}" for line in others]
        lines += [f"     | {line}" for line in commands.splitlines()]
    return lines


def plan_json(preview: Preview) -> dict[str, Any]:
    """The same as values."""
    return {
        "refused": list(preview.findings),
        "steps": [{**_values(step), **({"frr": commands} if commands else {})} for step, commands in preview.steps],
        "differences": differences_json(preview.differences),
    }


def _words(step: Step) -> Iterator[str]:
    match step:
        case Wait(conditions):
            yield f"wait until {'; '.join(str(condition) for condition in conditions)}"
        case DeleteRows(keys):
            yield "CONFIG_DB: delete"
            yield from keys
        case SetRows(rows, drop):
            yield "CONFIG_DB: set"
            for key, row in rows.items():
                fields = [f"{name}={value}" for name, value in row.items()]
                yield " ".join([key, *fields, *(f"-{name}" for name in drop.get(key, ()))])
        case FrrDetach(ports):
            yield f"FRR: end the sessions on {', '.join(ports)}"
        case FrrRetire(vrfs):
            yield f"FRR: give up the VNIs and BGP instances of {', '.join(vrfs)}"
        case FrrConverge():
            yield "FRR: the rest, in one batch"


def _values(step: Step) -> dict[str, Any]:
    match step:
        case Wait(conditions):
            return {"step": "wait", "for": [{"fact": each.fact.value, "name": each.name} for each in conditions]}
        case DeleteRows(keys):
            return {"step": "delete", "rows": list(keys)}
        case SetRows(rows, drop):
            gone = {"drop": {key: list(names) for key, names in drop.items()}} if drop else {}
            return {"step": "set", "rows": {key: dict(row) for key, row in rows.items()}, **gone}
        case FrrDetach(ports):
            return {"step": "frr-detach", "ports": list(ports)}
        case FrrRetire(vrfs):
            return {"step": "frr-retire", "vrfs": list(vrfs)}
        case FrrConverge():
            return {"step": "frr-converge"}
