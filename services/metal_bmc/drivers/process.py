"""One driver process as its owner sees it: started until it says that it is ready, asked one order at a time, ended."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence

from metal_kit.logs import get_logger

from metal_bmc.drivers import frames
from metal_bmc.drivers.errors import DriverCrashed

_log = get_logger(__name__)
_INHERITED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV", "PYTHONHOME")
_READY_SECONDS = 60.0
_REAP_SECONDS = 5.0


class DriverProcess:
    """Gets neither our environment, which may hold keys, nor a command line that names anything."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self.orders = 0

    @classmethod
    async def start(cls, command: Sequence[str]) -> DriverProcess:
        """Returns when the process is ready for orders. Raises DriverCrashed when that fails or takes over 60 s."""
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        worker = cls(
            await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment)
        )
        try:
            async with asyncio.timeout(_READY_SECONDS):
                await worker._read()
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError, frames.FrameError):
            await worker.end()
            raise DriverCrashed("the driver process did not start") from None
        except BaseException:
            await asyncio.shield(worker.end())
            raise
        return worker

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can be given an order."""
        return self._process.returncode is None

    async def ask(self, order: frames.Message) -> frames.Message:
        """One order and its answer. Raises IncompleteReadError, ConnectionError or FrameError when the pipe breaks."""
        self.orders += 1
        if self._stdin.transport.is_closing():
            # uvloop would raise RuntimeError: the process has ended, and its exit status is still to come.
            raise ConnectionResetError
        self._stdin.write(frames.encode(order))
        await self._stdin.drain()
        return await self._read()

    async def end(self) -> None:
        """Kill and reap. A kill cannot be refused, so the wait is short; it is bounded all the same."""
        if self._process.returncode is None:
            self._process.kill()
        try:
            await asyncio.wait_for(self._process.wait(), _REAP_SECONDS)
        except TimeoutError:
            _log.error("bmc.driver.not_reaped", pid=self.pid)

    async def _read(self) -> frames.Message:
        header = await self._stdout.readexactly(frames.LENGTH_BYTES)
        return frames.decode(await self._stdout.readexactly(frames.body_length(header)))
