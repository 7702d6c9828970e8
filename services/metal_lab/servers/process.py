"""One server process: started, waited for, recorded, stopped, and found again after a crash of whoever started it.

The record (`NAME.pid`) names the server and its keeper by pid *and* start time, so that a pid that the kernel handed to
somebody else is never signalled. It does not restart a server that dies: the keeper decides what that means.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import IO

_LAUNCH = Path(__file__).with_name("launch.py")
_LOG_TAIL_LINES = 15
_POLL_SECONDS = 0.01


class ServerError(Exception):
    """A server could not be found, started or stopped; the message says what to do about it."""


class ServerProcess:
    """A child process with a log file `NAME.log` and a record `NAME.pid` in `directory`.

    `stop_signal` asks it to end in an orderly way; it is also sent by the kernel when the keeper dies (Linux).
    """

    def __init__(self, name: str, directory: Path, *, stop_signal: signal.Signals) -> None:
        self.name = name
        self.log_path = directory / f"{name}.log"
        self._record_path = directory / f"{name}.pid"
        self._stop_signal = stop_signal
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Pid of the running server. Raises ServerError when it is not running."""
        if self._process is None or self._process.returncode is not None:
            raise ServerError(f"{self.name} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the server was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(
        self,
        command: Sequence[str],
        *,
        ready: Callable[[], Awaitable[bool]],
        limit: timedelta,
        prefix: Sequence[str] = (),
        uid: int = 0,
        gid: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start `command` and wait until `ready()` holds, at most `limit`.

        Raises:
            ServerError: it is already in use by a living keeper, it ended, or it was not ready in time; the message
                carries the end of the server's log.
        """
        await self.clear_left_over()
        launcher = [*prefix, sys.executable, "-I", "-S", str(_LAUNCH)]
        words = [str(int(self._stop_signal)), str(os.getpid()), str(uid), str(gid)]
        with _fresh_log(self.log_path) as log:
            self._process = await asyncio.create_subprocess_exec(
                *launcher,
                *words,
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(environment) if environment is not None else None,
                start_new_session=True,  # Ctrl-C in a terminal must reach the keeper, which then stops us in order
            )
        try:
            self._write_record()
            await self._wait_ready(ready, limit)
        except BaseException:
            await self.kill()
            raise

    async def stop(self, *, grace: timedelta = timedelta(seconds=10)) -> None:
        """Ask the server to end, kill it after `grace`; a no-op when it is not running."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(self._stop_signal)
            try:
                async with asyncio.timeout(grace.total_seconds()):
                    await process.wait()
            except TimeoutError:
                await self.kill()
        self._record_path.unlink(missing_ok=True)

    async def kill(self) -> None:
        """End the server at once (SIGKILL), as a crash would."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        self._record_path.unlink(missing_ok=True)

    async def wait(self) -> int:
        """Wait until the server ends; its exit status."""
        if self._process is None:
            raise ServerError(f"{self.name} is not running")
        return await self._process.wait()

    def log_tail(self, lines: int = _LOG_TAIL_LINES) -> str:
        """The last lines of the server's log."""
        try:
            text = self.log_path.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    async def clear_left_over(self, *, limit: timedelta = timedelta(seconds=20)) -> None:
        """Stop a server that an earlier keeper left behind when it was killed.

        Raises:
            ServerError: its keeper is alive (the directory is in use), or the server does not end.
        """
        try:
            record = json.loads(self._record_path.read_text())
            server, keeper = record["server"], record["keeper"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        if keeper[0] != os.getpid() and is_alive(keeper):
            raise ServerError(
                f"{self.name}: {self._record_path.parent} is in use by process {keeper[0]}; stop that first"
            )
        if is_alive(server):
            _signal(server, self._stop_signal)
            half = limit.total_seconds() / 2
            if not await _gone(server, half):
                _signal(server, signal.SIGKILL)
                if not await _gone(server, half):
                    raise ServerError(
                        f"{self.name}: process {server[0]} of an earlier run does not end; kill it by hand"
                    )
        self._record_path.unlink(missing_ok=True)

    def _write_record(self) -> None:
        assert self._process is not None
        record = {"server": identity(self._process.pid), "keeper": identity(os.getpid())}
        temporary = self._record_path.with_suffix(".pid.new")
        temporary.write_text(json.dumps(record))
        temporary.replace(self._record_path)

    async def _wait_ready(self, ready: Callable[[], Awaitable[bool]], limit: timedelta) -> None:
        assert self._process is not None
        try:
            async with asyncio.timeout(limit.total_seconds()):
                while self._process.returncode is None:
                    if await ready():
                        return
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            reason = f"was not ready within {limit.total_seconds():g} s"
        else:
            reason = f"ended with status {self._process.returncode}"
        raise ServerError(f"{self.name} {reason}; the end of {self.log_path}:\n{self.log_tail()}")


def _fresh_log(path: Path) -> IO[bytes]:
    if path.exists():
        path.replace(path.with_suffix(".log.previous"))
    return path.open("wb")


def identity(pid: int) -> list[int]:
    """What `is_alive` takes: the pid, and when its process started, so that no later process is mistaken for it."""
    return [pid, _start_time(pid)]


def _start_time(pid: int) -> int:
    """Start of the process in clock ticks after boot; 0 where the kernel does not tell (no /proc) or it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The second field is the program's name in brackets and may hold spaces and brackets itself.
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] == "Z" else int(fields[19])


def is_alive(who: Sequence[int]) -> bool:
    """Whether the process of a record, (pid, start time), lives; one that has ended and was not reaped does not."""
    pid, started = who
    if started or sys.platform == "linux":
        return started != 0 and _start_time(pid) == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _signal(who: list[int], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(who[0], number)


async def _gone(who: list[int], seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            while True:
                if not is_alive(who):
                    return True
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        return False
