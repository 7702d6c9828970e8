"""One process changes a leaf at a time: the agent for as long as it runs, or a person's command.

An advisory lock on a file (flock). The kernel releases it with the process that holds it, however that ends, so there
is no stale lock to clean up. What the file says about the holder is for people only.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class LockHeld(Exception):
    """Somebody else changes this leaf; the message says who."""


class LeafLock:
    """The lock in the agent's state directory. Blocking calls, but none waits."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "lock"

    @contextmanager
    def held(self, who: str) -> Iterator[None]:
        """Hold the lock as `who`. Raises LockHeld, and OSError where the directory cannot be written to."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LockHeld(_said_in(file)) from error
            os.ftruncate(file, 0)
            os.pwrite(file, f"{who}, process {os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(file)

    def holder(self) -> str:
        """Who holds the lock now; empty when nobody does."""
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return ""
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _said_in(file)
        finally:
            os.close(file)
        return ""


def _said_in(file: int) -> str:
    return os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
