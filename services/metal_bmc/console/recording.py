"""What consoles print, in files: one a machine, turned over by size. Off unless a directory is given.

What is typed is not recorded, only what the machine makes of it. Files are written in a thread of their own; what does
not fit into the queue before it is left out, which the file says.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from datetime import UTC, datetime
from pathlib import Path

from metal_kit.logs import get_logger

log = get_logger(__name__)

_MOST_WAITING = 1 << 20
_LEFT_OUT = b"\r\n[%d bytes were not recorded]\r\n"


class Recorder:
    """Files in `directory`, each up to `most_bytes`, `files` of them for each machine. Run `run` for as long as it is
    used; `close` writes what is left."""

    def __init__(self, directory: Path, *, most_bytes: int, files: int) -> None:
        self._directory, self._most, self._files = directory, most_bytes, files
        self._queue: deque[tuple[str, bytes]] = deque()
        self._waiting = 0
        self._left_out: dict[str, int] = {}
        self._wake = asyncio.Event()

    def note(self, machine: str, text: str) -> None:
        """A line about the console itself, with the time."""
        self.record(machine, f"\r\n[{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}]\r\n".encode())

    def record(self, machine: str, data: bytes) -> None:
        """Queue what was printed."""
        if self._waiting + len(data) > _MOST_WAITING:
            self._left_out[machine] = self._left_out.get(machine, 0) + len(data)
            return
        if missing := self._left_out.pop(machine, 0):
            data = _LEFT_OUT % missing + data
        self._queue.append((machine, data))
        self._waiting += len(data)
        self._wake.set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Write until `stopping` is set."""
        stopper = asyncio.create_task(self._wake_at(stopping), name="recorder stop")
        try:
            while not stopping.is_set():
                await self._wake.wait()
                self._wake.clear()
                await self.close()
        finally:
            stopper.cancel()

    async def close(self) -> None:
        """Write what waits. A disk that takes nothing costs the recording, not the console."""
        batches: dict[str, list[bytes]] = {}
        while self._queue:
            machine, data = self._queue.popleft()
            batches.setdefault(machine, []).append(data)
        self._waiting = 0
        for machine, parts in batches.items():
            try:
                await asyncio.to_thread(self._write, machine, b"".join(parts))
            except OSError as error:
                log.warning("console.not_recorded", machine=machine, cause=os.strerror(error.errno or 0))

    async def _wake_at(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._wake.set()

    def _write(self, machine: str, data: bytes) -> None:
        path = self._directory / f"{machine}.log"
        for start in range(0, len(data), self._most):
            part = data[start : start + self._most]
            if path.exists() and path.stat().st_size + len(part) > self._most:
                self._turn_over(path)
            # Nobody but this service reads it: what is printed may hold secrets.
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "ab") as file:
                file.write(part)

    def _turn_over(self, path: Path) -> None:
        older = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, self._files))]
        for newer, elder in zip(reversed(older[:-1]), reversed(older), strict=False):
            if newer.exists():
                newer.replace(elder)
        if len(older) == 1:
            path.unlink()
