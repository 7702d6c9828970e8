"""The terminal of whoever sits at a machine's console: raw and back again, its keys, and the escapes among them."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from enum import Enum

from metalctl.output import BROKEN_PIPE

_ESCAPE, _LINE_ENDS = ord("~"), b"\r\n"
_AT_ONCE = 1024


class Escape(Enum):
    """What is meant for metalctl and not for the machine."""

    DETACH = b"."
    BREAK = b"B"
    HELP = b"?"


ESCAPES = "~. leaves, ~B sends a break, ~? shows this, ~~ types a tilde; each at the beginning of a line"


class Keys:
    """Finds the escapes in what is typed. As in ssh they count after Enter only, and a tilde waits for the next key."""

    def __init__(self) -> None:
        self._begins, self._waits = True, False

    def press(self, keys: bytes) -> Iterator[bytes | Escape]:
        """What the keys come to, in their order."""
        out = bytearray()
        for key in keys:
            if self._waits:
                self._waits = False
                escape = next((each for each in Escape if each.value[0] == key), None)
                if escape is not None:
                    if out:
                        yield bytes(out)
                        out.clear()
                    yield escape
                    continue
                if key != _ESCAPE:
                    out.append(_ESCAPE)
            elif key == _ESCAPE and self._begins:
                self._waits = True
                continue
            out.append(key)
            self._begins = key in _LINE_ENDS
        if out:
            yield bytes(out)


@contextmanager
def raw(descriptor: int) -> Iterator[None]:
    """Every key goes through as it is, for the length of the block; then the terminal is as it was."""
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


async def typed(descriptor: int) -> AsyncIterator[bytes]:
    """What comes from a terminal, a pipe or a file, until its end."""
    loop = asyncio.get_running_loop()
    while True:
        ready = asyncio.Event()
        try:
            loop.add_reader(descriptor, ready.set)
        except PermissionError:
            pass  # a file, which is always ready
        else:
            try:
                await ready.wait()
            finally:
                loop.remove_reader(descriptor)
        try:
            keys = os.read(descriptor, _AT_ONCE)
        except OSError:  # a terminal that was closed
            return
        if not keys:
            return
        yield keys


async def show(data: bytes) -> None:
    """Print as it is. A terminal that is stopped (Ctrl-S) holds up nothing but this."""
    await asyncio.to_thread(_write, data)


def _write(data: bytes) -> None:
    try:
        while data:
            data = data[os.write(sys.stdout.fileno(), data) :]
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(BROKEN_PIPE) from None
