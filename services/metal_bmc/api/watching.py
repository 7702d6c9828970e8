"""Following commands as they are given, begun and ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from metal_kit import watch
from metal_kit.db import Database
from metalplane.bmc.v1 import bmc_pb2 as pb
from metalplane.bmc.v1.events_pb2 import CommandChanged

# How often a watcher who is told nothing gets a new position. Not with each change of others: that is their business.
_POSITION_EVERY = 10.0


async def follow(
    db: Database, stopping: asyncio.Event, *, position: str, machine: str, command: str
) -> AsyncIterator[pb.WatchCommandsResponse]:
    """Batches of changes after `position` until `stopping` is set; empty `machine` and `command` stand for all."""
    loop = asyncio.get_running_loop()
    told = loop.time()
    async for batch in watch.follow(db, stopping, entity="command", position=position):
        # The end of a command is another event with the same content.
        changed = [CommandChanged.FromString(change.payload).command for change in batch]
        shown = [
            each for each in changed if (not machine or each.machine == machine) and (not command or each.id == command)
        ]
        if shown or loop.time() - told >= _POSITION_EVERY:
            told = loop.time()
            yield pb.WatchCommandsResponse(commands=shown, position=batch[-1].position)
