"""Reading text that somebody else writes, within limits: regular files only, so many bytes, lines of so many."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from metal_bmc.sources.lease import Problems

MOST_BYTES = 64 << 20
"""Some 200,000 records. DHCP servers clean their files up, so a larger one is not looked after, or none."""
_MOST_LINE = 64 << 10

Stamp = tuple[int, int, int, int]
"""Device, inode, size and time of change: as long as it is the same, so is the content."""


class Unreadable(Exception):
    """A file cannot be read; the text says why, for people."""


def stamp(path: Path) -> Stamp | None:
    """The stamp of a file; None when there is none. Raises Unreadable."""
    try:
        seen = path.stat()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Unreadable(_why(error)) from None
    return (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)


def lines(path: Path, problems: Problems, *, most_bytes: int = MOST_BYTES) -> Iterator[str]:
    """The lines of a file with their ends. What is not text is noted and replaced; too long a line is cut.

    Raises Unreadable: not there, not allowed, not a regular file, too large.
    """
    try:
        with _opened(path, most_bytes) as file:
            yield from _lines(file, problems, most_bytes)
    except OSError as error:
        raise Unreadable(_why(error)) from None


def _opened(path: Path, most_bytes: int) -> BinaryIO:
    # Without O_NONBLOCK a named pipe would hold us up until somebody writes to it.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        seen = os.fstat(number)
        if not stat.S_ISREG(seen.st_mode):
            raise Unreadable("it is not a regular file")
        if seen.st_size > most_bytes:
            raise Unreadable(f"it has {seen.st_size >> 20} MiB, more than {most_bytes >> 20}: is it cleaned up?")
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def _lines(file: BinaryIO, problems: Problems, most_bytes: int) -> Iterator[str]:
    number, total, cut = 0, 0, False
    while raw := file.readline(_MOST_LINE):
        total += len(raw)
        if total > most_bytes:
            raise Unreadable(f"it grew beyond {most_bytes >> 20} MiB while it was read")
        whole = raw.endswith(b"\n")
        if cut:
            cut = not whole
            continue
        number += 1
        cut = not whole and len(raw) == _MOST_LINE
        text = raw.decode("utf-8", errors="replace")
        if cut:
            problems.add(number, f"a line of more than {_MOST_LINE >> 10} KiB, cut")
        elif "\x00" in text or "\ufffd" in text:
            problems.add(number, "the line is not text")
        yield text


def _why(error: OSError | ValueError) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else "the name is not a path"
