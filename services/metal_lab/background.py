"""The lab as a process in the background: start it, wait for it, end what a killed one left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metal_lab.control import LabNotRunning, LabRefused, ask
from metal_lab.servers.process import identity, is_alive
from metal_lab.state import State

READY_LIMIT = 120.0
END_LIMIT = 20.0
LOG_TAIL = 15


class LabDied(Exception):
    """The lab's process ended, or did not get ready; the text carries the end of its log."""


def spawn(state: State, rack: Path, *, processes: bool) -> subprocess.Popen[bytes]:
    """Start `metal-lab run` detached from this terminal. Raises StateUnusable."""
    state.prepare()
    command = [
        sys.executable,
        "-m",
        "metal_lab",
        "--state",
        str(state.directory),
        "run",
        "--rack",
        str(rack.absolute()),
    ]
    if processes:
        command.append("--processes")
    with state.path("log", "lab.log").open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, close_fds=True
        )


async def wait_ready(state: State, lab: subprocess.Popen[bytes] | None, say: Callable[[str], None]) -> None:
    """Tell each stage as it comes until the lab is ready; `lab` is None when somebody else started it.

    Raises LabDied when it ends or takes too long; one that we started is ended then.
    """
    began = time.monotonic()
    last = ""
    while True:
        try:
            answer = await ask(state.control_socket, "/status")
        except LabNotRunning:
            answer = {}
        stage = str(answer.get("stage", ""))
        if stage and stage != last:
            last = stage
            say(f"{time.monotonic() - began:6.1f} s  {stage}")
        if stage == "ready":
            return
        if stage == "degraded":
            raise LabDied(f"the lab is up, but {failures(answer)}")
        # A holder that is not ours: two starts at once, and the other one was faster.
        if (lab is None or lab.poll() is not None) and not state.holder():
            raise LabDied(_last_words(state, lab))
        if time.monotonic() - began > READY_LIMIT:
            if lab is not None:
                lab.terminate()
                await asyncio.to_thread(lab.wait)
            raise LabDied(f"the lab was still at {last or 'its start'} after {READY_LIMIT:.0f} s:\n{log_tail(state)}")
        await asyncio.sleep(0.1)


def _last_words(state: State, lab: subprocess.Popen[bytes] | None) -> str:
    """Why a lab ended: what it said itself, or the end of its log when it could not say anything."""
    info = state.info()
    if lab is not None and info is not None and info.pid == lab.pid and info.error:
        return f"the lab could not start: {info.error}\n(more in {state.path('log', 'lab.log')})"
    code = "" if lab is None else f" with code {lab.returncode}"
    return f"the lab ended{code}:\n{log_tail(state)}"


async def end(state: State, *, limit: float) -> bool:
    """End the lab that holds the directory, in order within `limit` seconds, else by force; False when it was force.

    Asked over its socket, or told by SIGTERM when it does not listen yet.
    """
    pid = state.holder()
    who = identity(pid)
    try:
        await ask(state.control_socket, "/stop", {})
    except (LabNotRunning, LabRefused):
        _signal(pid, signal.SIGTERM)
    if await _ended(state, who, limit):
        return True
    _signal(pid, signal.SIGKILL)
    await _ended(state, who, END_LIMIT)
    return False


async def _ended(state: State, who: Sequence[int], limit: float) -> bool:
    """Wait for the end of the process as well: it lets go of the lock a moment before."""
    until = time.monotonic() + limit
    while state.holder() or is_alive(who):
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.05)
    return True


def failures(answer: Mapping[str, Any]) -> str:
    """What has failed in a degraded lab, in one line, by its answer to /status."""
    return "; ".join(f"{name} {text}" for name, text in answer.get("failures", {}).items())


def _signal(pid: int, number: signal.Signals) -> None:
    if pid > 0:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def log_tail(state: State) -> str:
    """The last lines of the lab's log."""
    try:
        lines = state.path("log", "lab.log").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "(no log)"
    return "\n".join(lines[-LOG_TAIL:])


async def kill_left_overs(state: State) -> list[str]:
    """End servers whose lab was killed, by the process ids and start times in their records; answers their names.

    Only while nobody holds the directory: the servers of a living lab are not left over.
    """
    found = [(record.stem, _read(record)) for record in _records(state)]
    living = [(name, server) for name, server in found if server is not None and is_alive(server)]
    for _, (pid, _started) in living:
        _signal(pid, signal.SIGTERM)
    ended = []
    until = time.monotonic() + END_LIMIT
    for name, server in living:
        while is_alive(server) and time.monotonic() < until:  # noqa: ASYNC110 - no event tells of a stranger's end
            await asyncio.sleep(0.05)
        killed = is_alive(server)
        if killed:
            _signal(server[0], signal.SIGKILL)
        ended.append(f"{name} (killed)" if killed else name)
    return ended


def _records(state: State) -> list[Path]:
    # The servers' own directories only: a machine's disks may hold anything.
    places = [state.path("postgres"), state.path("nats"), state.path("log"), *state.sockets.glob("*/")]
    return sorted(record for place in places for record in place.glob("*.pid"))


def _read(record: Path) -> tuple[int, int] | None:
    try:
        pid, started = (int(part) for part in json.loads(record.read_text(encoding="utf-8"))["server"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return pid, started
