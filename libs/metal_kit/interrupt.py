"""Running one command of a program that people use, so that Ctrl-C always ends it."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_command(command: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, with an interrupt that always wakes the loop. Raises KeyboardInterrupt.

    The first one cancels `command`, which may tidy up; the second ends that too. Python's own handler, which
    `asyncio.run` relies on, only leaves a note: a loop that falls asleep at that moment, or one whose signal went to
    another thread (gRPC has some), reads it when the next thing happens, and in a quiet stream nothing does.
    """
    interrupted = asyncio.Event()
    try:
        return asyncio.run(_interruptible(command, interrupted))
    except asyncio.CancelledError:
        if interrupted.is_set():
            raise KeyboardInterrupt from None
        raise


async def _interruptible(command: Coroutine[Any, Any, T], interrupted: asyncio.Event) -> T:
    work = asyncio.ensure_future(command)

    def interrupt() -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        work.cancel()

    if threading.current_thread() is threading.main_thread():
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)
    return await work
