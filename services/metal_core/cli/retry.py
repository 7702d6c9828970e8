"""`metal-core retry`: what the agent has set aside is tried again, because a person says so."""

from __future__ import annotations

import argparse
import asyncio

from metal_core.cli.failure import REFUSED, CommandFailed
from metal_core.cli.printing import print_json, print_lines
from metal_core.leaf import Leaf
from metal_core.quarantine import Entry, Quarantine


async def retry(leaf: Leaf, options: argparse.Namespace) -> int:
    """End the quarantine; 0 also when there is none. The leaf itself is not touched, so the lock is not needed.

    Raises CommandFailed.
    """
    quarantine = Quarantine(leaf.settings.state_directory)
    try:
        entry = await quarantine.end()
    except OSError as error:
        raise CommandFailed(f"{quarantine.path}: {error.strerror}; METALPLANE_STATE_DIRECTORY", REFUSED) from error
    holder = await asyncio.to_thread(leaf.lock.holder)
    ended = entry if entry is not None and entry.reason else None
    if options.output == "json":
        told = {"generation": ended.generation, "reason": ended.reason} if ended is not None else None
        print_json({"tried_again": told, "held_by": holder})
    else:
        print_lines(_told(entry, holder))
    return 0


def _told(entry: Entry | None, holder: str) -> list[str]:
    if entry is None:
        return ["Nothing is set aside here: whatever the plane wants is tried."]
    if not entry.reason:
        return [
            f"Nothing is set aside here: generation {entry.generation} failed, attempt {entry.failures}, and is tried "
            "again by itself."
        ]
    who = f"by {holder}, within seconds" if holder else "when the agent runs again"
    return [f"Generation {entry.generation} is tried again {who}. It was set aside: {entry.reason}"]
