"""Loops of the kit (controllers, relays, consumers) that run while a test looks on, and have to end when told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol


class Loop(Protocol):
    """What runs until it is told to stop."""

    async def run(self, stopping: asyncio.Event) -> None: ...


@asynccontextmanager
async def running(*loops: Loop) -> AsyncIterator[asyncio.Event]:
    """Yields the event that ends them; they get 20 s for it."""
    stopping = asyncio.Event()
    tasks = [asyncio.create_task(loop.run(stopping)) for loop in loops]
    try:
        yield stopping
    finally:
        stopping.set()
        async with asyncio.timeout(20):
            await asyncio.gather(*tasks)
