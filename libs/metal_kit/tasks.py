"""Background tasks with an owner: one that ends although it should not takes the process down, with a log line.

A consumer or a relay that died in silence looks like a healthy service that does nothing; a restart is better.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from metal_kit import metrics
from metal_kit.logs import get_logger

log = get_logger("tasks")


class Tasks:
    """The tasks of one owner. `failed` gets the name of the first one that ended before `stop` was called; several
    owners may share it."""

    def __init__(self, failed: asyncio.Future[str] | None = None) -> None:
        self.failed: asyncio.Future[str] = failed or asyncio.get_running_loop().create_future()
        self._patience: dict[asyncio.Task[None], float] = {}
        self._stopping = False

    def spawn(self, name: str, work: Coroutine[Any, Any, None], *, patience: float = 0) -> None:
        """Run `work` until `stop`; its end before that counts as a failure, whether it raised or returned.

        `patience` is how many seconds it gets to end by itself when it is stopped; after them it is cancelled.
        """
        task = asyncio.create_task(work, name=name)
        self._patience[task] = patience
        task.add_done_callback(self._ended)

    def expect_end(self) -> None:
        """From now on tasks may end: what they watch for has been told."""
        self._stopping = True

    async def stop(self) -> None:
        """Wait for the tasks to end, each as long as its patience, then cancel them; all have ended after this."""
        self.expect_end()
        ends = [asyncio.create_task(_end(task, patience)) for task, patience in self._patience.items()]
        await asyncio.gather(*ends)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._patience[task]
        error = None if task.cancelled() else task.exception()
        if self._stopping:
            if error is not None:
                log.error("task.failed_while_stopping", task=task.get_name(), exc_info=error)
            return
        metrics.BACKGROUND_FAILURES.labels(task.get_name()).inc()
        log.error("task.ended", task=task.get_name(), cancelled=task.cancelled(), exc_info=error)
        if not self.failed.done():
            self.failed.set_result(task.get_name())


async def _end(task: asyncio.Task[None], patience: float) -> None:
    if patience:
        await asyncio.wait([task], timeout=patience)
        if not task.done():
            log.warning("task.cancelled", task=task.get_name(), after=patience)
    task.cancel()
    await asyncio.wait([task])
