"""`metal-core status`: who is at work, what is known to be good, what is on trial or set aside, and what differs."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from metal_core.cli import tell
from metal_core.cli.failure import DIFFERS, MISSING
from metal_core.cli.look import Preview, View, preview, view
from metal_core.cli.printing import print_json, print_lines
from metal_core.cli.wish import is_local, name_of, told
from metal_core.confirm import Candidate, read_candidate
from metal_core.known_good import KnownGood
from metal_core.leaf import Leaf
from metal_core.quarantine import Entry, Quarantine


async def show_status(leaf: Leaf, options: argparse.Namespace) -> int:
    """Print it; 0 when the leaf has its last known good state, or the one on trial. Raises CommandFailed."""
    good = await leaf.known_good.load()
    candidate = await asyncio.to_thread(read_candidate, leaf.known_good)
    quarantine = Quarantine(leaf.settings.state_directory)
    await quarantine.load()
    holder = await asyncio.to_thread(leaf.lock.holder)
    # What is on trial is what the leaf should have now; the last known good state is where it would go back to.
    current = candidate.desired if candidate is not None and candidate.proven_at is not None else None
    if current is None and good is not None:
        current = good.desired
    seen = await view(leaf, current)
    found = await preview(leaf, seen, current) if current is not None else None
    if options.output == "json":
        print_json(_values(seen, holder, good, candidate, quarantine.entry, found))
    else:
        print_lines(_text(leaf, seen, holder, good, candidate, quarantine.entry, found))
    if found is None:
        return MISSING
    return DIFFERS if found.differences or found.findings else 0


def _text(
    leaf: Leaf,
    seen: View,
    holder: str,
    good: KnownGood | None,
    candidate: Candidate | None,
    aside: Entry | None,
    found: Preview | None,
) -> list[str]:
    lines = [
        f"leaf:        {seen.name or 'has no name in DEVICE_METADATA|localhost'}",
        f"held by:     {holder or 'nobody, the agent does not run'}",
        f"switch:      {'has created its ports' if seen.ports_created else 'has not created its ports yet'}",
        f"FRR:         {'is there' if leaf.frr.present else 'is not used (METALPLANE_VTYSH is empty)'}",
        f"known good:  {told(good) if good is not None else 'nothing yet'}",
    ]
    if candidate is not None:
        stage = "until the plane is heard" if candidate.proven_at is not None else "not proven yet"
        lines.append(f"on trial:    {name_of(candidate.desired)}, {stage}")
    if aside is not None:
        lines.append(f"failed:      generation {aside.generation}, {aside.reason or 'is tried again'}")
    if found is not None:
        rows, lines_of_frr = len(found.differences.rows), len(found.differences.lines)
        count = f"{rows} fields or rows, {lines_of_frr} lines of FRR (`metal-core diff`)"
        lines.append(f"differs:     {count if found.differences else 'in nothing'}")
        lines += [f"refused:     {finding}" for finding in found.findings]
    return lines


def _values(
    seen: View,
    holder: str,
    good: KnownGood | None,
    candidate: Candidate | None,
    aside: Entry | None,
    found: Preview | None,
) -> dict[str, Any]:
    values: dict[str, Any] = {
        "leaf": seen.name,
        "held_by": holder,
        "ports_created": seen.ports_created,
        "frr": seen.facts.running is not None,
        "known_good": None,
        "on_trial": None,
        "failed": None,
    }
    if good is not None:
        values["known_good"] = {
            "generation": good.desired.generation,
            "hash": good.desired.digest,
            "by_hand": is_local(good.desired),
            "applied_at": good.applied_at,
        }
    if candidate is not None:
        values["on_trial"] = {"generation": candidate.desired.generation, "proven_at": candidate.proven_at}
    if aside is not None:
        values["failed"] = {"generation": aside.generation, "reason": aside.reason, "failures": aside.failures}
    if found is not None:
        values["refused"] = list(found.findings)
        values["differences"] = tell.differences_json(found.differences)
    return values
