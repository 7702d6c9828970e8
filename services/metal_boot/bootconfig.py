"""The partition's kernel, ramdisk and command line, kept at hand so that no boot waits for it.

Read at the start and again every half minute; while inventory cannot be asked the last one stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

from metal_kit.backoff import Backoff, pause
from metal_kit.errors import Problem
from metal_kit.logs import get_logger
from metalplane.inventory.v1 import partition_pb2

from metal_boot.script import BootConfig

log = get_logger(__name__)

REFRESH = timedelta(seconds=30)
_BACKOFF = Backoff(first=timedelta(seconds=0.2), most=timedelta(seconds=10))


class CurrentBootConfig:
    """Holds the configuration; `current` is None until it has been read once."""

    def __init__(self, read: Callable[[], Awaitable[partition_pb2.BootConfig]]) -> None:
        self._read = read
        self.current: BootConfig | None = None

    async def run(self, stopping: asyncio.Event) -> None:
        """Keep the configuration fresh until the service stops."""
        attempt = 0
        while not stopping.is_set():
            try:
                await self.refresh()
            except Problem as problem:
                log.warning("boot_config.unreadable", reason=problem.reason)
                await pause(stopping, _BACKOFF.delay(attempt, problem.retry_after))
                attempt += 1
                continue
            attempt = 0
            await pause(stopping, REFRESH)

    async def refresh(self) -> None:
        """Read it now. Raises Problem. A partition without a configuration keeps what there was."""
        found = await self._read()
        if found.kernel_url and found.initrd_url:
            self.current = BootConfig(found.kernel_url, found.initrd_url, found.cmdline)
