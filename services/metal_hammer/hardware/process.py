"""Running external programs with a deadline and bounded output."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress

from metal_hammer.hardware.facts import Completed

KEPT = 64 * 1024
"""Bytes of output that are kept: the last ones, which say how it ended."""

_GRACE = 5.0
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/"}


async def run(argv: Sequence[str], *, deadline: float, stdin: bytes = b"") -> Completed:
    """Run a program to its end, in a session of its own so that its children go with it.

    A missing program is exit code 127, as in a shell. Raises TimeoutError after `deadline` seconds. Whether it times
    out or the caller is cancelled: when this is left, the program has ended.
    """
    try:
        process = await _start(argv, asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL)
    except (FileNotFoundError, PermissionError) as error:
        return Completed(127, b"", f"{argv[0]}: {error.strerror}\n".encode())
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(deadline):
            out, err, _ = await asyncio.gather(_last(process.stdout), _last(process.stderr), _feed(process, stdin))
            return Completed(await process.wait(), out, err)
    finally:
        if process.returncode is None:
            await _end(process)


async def _start(argv: Sequence[str], stdin: int) -> asyncio.subprocess.Process:
    """Start a program. Cancelled in between, asyncio would kill the program and leave its children."""
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *argv,
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env=_ENVIRONMENT,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with suppress(OSError):
            await _end(await starting)
        raise


async def _last(stream: asyncio.StreamReader) -> bytes:
    kept = b""
    while chunk := await stream.read(KEPT):
        kept = (kept + chunk)[-KEPT:]
    return kept


async def _feed(process: asyncio.subprocess.Process, stdin: bytes) -> None:
    if process.stdin is None:
        return
    with suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(stdin)
        await process.stdin.drain()
    process.stdin.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the whole session. A program in uninterruptible sleep is left behind after a grace time."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _GRACE)
