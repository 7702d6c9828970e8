"""Background tasks with an owner: one that ends although it should not takes the process down, with a log line.

A consumer or a relay that died in silence looks like a healthy service that does nothing; a restart is better.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from metal_kit.logs import get_logger

log = get_logger("tasks")


class Tasks:
    """The tasks of one owner. `failed` gets the name of the first one that ended before `stop` was called."""

    def __init__(self) -> None:
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until `stop`; its end before that counts as a failure, whether it raised or returned."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def expect_end(self) -> None:
        """From now on tasks may end: what they watch for has been told."""
        self._stopping = True

    async def stop(self, patience: float) -> None:
        """Wait up to `patience` seconds for the tasks to end by themselves, then cancel them; all have ended after."""
        self.expect_end()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience)
        late = list(self._tasks)
        for task in late:
            log.warning("task.cancelled", task=task.get_name())
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if self._stopping:
            if error is not None:
                log.error("task.failed_while_stopping", task=task.get_name(), exc_info=error)
            return
        log.error("task.ended", task=task.get_name(), cancelled=task.cancelled(), exc_info=error)
        if not self.failed.done():
            self.failed.set_result(task.get_name())
