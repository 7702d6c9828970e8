"""Whether every part of the lab that has to run does run.

A part that ends by itself is told once, by the log and by `metal-lab status`, and the lab is degraded from then on: a
database that is gone, or a service that lost a worker, would otherwise look like a plane that is slow. Nothing is
started again here; what a plane does about its failures is the business of whoever runs it for real.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from metal_kit.logs import get_logger

log = get_logger(__name__)


class Health:
    """What has failed, by name, with a reason each. `changed` is called after each failure."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.failures: dict[str, str] = {}
        self._changed = changed
        self._watches: set[asyncio.Task[None]] = set()
        self._stopping = False

    def watch(self, name: str, end: Coroutine[Any, Any, str]) -> None:
        """Wait for the end of a part; `end` returns when it has come, with a text that goes on after the name."""
        task = asyncio.create_task(self._watch(name, end), name=f"watch {name}")
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    def failed(self, name: str, text: str) -> None:
        """Say that a part has failed; the first reason is the one that is kept."""
        if self._stopping or name in self.failures:
            return
        self.failures[name] = text
        log.error("lab.part_failed", part=name, reason=text)
        self._changed()

    def expect_end(self) -> None:
        """From now on parts may end: the lab is being stopped."""
        self._stopping = True

    async def stop(self) -> None:
        """Watch nothing any more."""
        self.expect_end()
        for task in list(self._watches):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _watch(self, name: str, end: Coroutine[Any, Any, str]) -> None:
        try:
            text = await end
        except Exception:
            log.exception("lab.watch_failed", part=name)
            text = "can no longer be watched"
        self.failed(name, text)
