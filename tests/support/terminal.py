"""A program on a terminal of its own: what it shows, what is typed at it, how its terminal is set, how it ends."""

from __future__ import annotations

import asyncio
import os
import pty
import termios
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any


class Terminal:
    """`screen` is all that the program has written to its terminal."""

    def __init__(self, master: int, line: int, process: asyncio.subprocess.Process) -> None:
        self.screen = b""
        self.process = process
        self._master, self._line = master, line
        self._news = asyncio.Event()
        self._end = asyncio.create_task(process.wait())
        self._end.add_done_callback(lambda _: self._news.set())
        asyncio.get_running_loop().add_reader(master, self._read)

    @classmethod
    @asynccontextmanager
    async def running(cls, *command: str, env: Mapping[str, str] | None = None) -> AsyncIterator[Terminal]:
        """Runs a program until the end of the block, where it is killed if it still runs."""
        master, line = pty.openpty()
        # The line stays open here, so that it can be looked at after the program has gone.
        process = await asyncio.create_subprocess_exec(
            *command, stdin=line, stdout=line, stderr=line, env=env, start_new_session=True
        )
        made = cls(master, line, process)
        try:
            yield made
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await made._end
            asyncio.get_running_loop().remove_reader(master)
            os.close(master)
            os.close(line)

    @property
    def settings(self) -> list[Any]:
        """How the line is set (termios)."""
        return termios.tcgetattr(self._line)

    @property
    def raw(self) -> bool:
        """Whether keys reach the program one by one, and unseen."""
        return not self.settings[3] & (termios.ICANON | termios.ECHO)

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    async def shows(self, text: bytes, seconds: float = 20) -> None:
        """Wait until the text is on the screen. Fails with the screen when it does not come."""
        try:
            async with asyncio.timeout(seconds):
                while text not in self.screen and not self._end.done():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass
        self._read()
        assert text in self.screen, f"{text!r} is not on the screen: {self.screen!r}"

    async def ended(self, seconds: float = 20) -> int:
        """The exit code, once the program has ended by itself."""
        async with asyncio.timeout(seconds):
            code = await asyncio.shield(self._end)
        self._read()
        return code

    def _read(self) -> None:
        os.set_blocking(self._master, False)
        with suppress(BlockingIOError, OSError):
            while data := os.read(self._master, 65536):
                self.screen += data
                self._news.set()
