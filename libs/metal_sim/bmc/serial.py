"""A machine's serial port, as the BMC that redirects it sees it.

    port.write(b"login: ")          # the machine prints
    await port.read()               # what was typed at it meanwhile
    port.on_input = port.write      # a machine that echoes

What the machine prints while nobody listens is gone, as on a real port.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_MOST_TYPED = 1 << 16


class SerialPort:
    """`on_input` takes what is typed instead of `read`; `breaks` counts the breaks that came over the line."""

    def __init__(self) -> None:
        self.on_input: Callable[[bytes], None] | None = None
        self.breaks = 0
        self._typed = bytearray()
        self._came = asyncio.Event()
        self._listener: Callable[[bytes], None] | None = None

    def write(self, data: bytes) -> None:
        """The machine prints."""
        if self._listener is not None and data:
            self._listener(data)

    async def read(self) -> bytes:
        """What was typed since the last read; waits for the first byte. The oldest goes beyond 64 KiB."""
        while not self._typed:
            self._came.clear()
            await self._came.wait()
        typed = bytes(self._typed)
        self._typed.clear()
        return typed

    def listen(self, listener: Callable[[bytes], None]) -> None:
        """The BMC's side: where what is printed goes."""
        self._listener = listener

    def type(self, data: bytes) -> None:
        """The BMC's side: characters for the machine."""
        if self.on_input is not None:
            self.on_input(data)
            return
        self._typed += data
        del self._typed[:-_MOST_TYPED]
        self._came.set()

    def send_break(self) -> None:
        """The BMC's side: hold the line low for a moment."""
        self.breaks += 1
