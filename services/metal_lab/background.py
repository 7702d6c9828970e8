"""The lab as a process in the background: start it, wait for it, end what a killed one left behind."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

from metal_lab.control import LabNotRunning, ask
from metal_lab.state import State

READY_LIMIT = 120.0
END_LIMIT = 20.0
LOG_TAIL = 15


class LabDied(Exception):
    """The lab's process ended, or did not get ready; the text carries the end of its log."""


def spawn(state: State, *, processes: bool) -> subprocess.Popen[bytes]:
    """Start `metal-lab run` detached from this terminal."""
    command = [sys.executable, "-m", "metal_lab", "--state", str(state.directory), "run"]
    if processes:
        command.append("--processes")
    with state.path("log", "lab.log").open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, close_fds=True
        )


async def wait_ready(state: State, lab: subprocess.Popen[bytes], say: Callable[[str], None]) -> None:
    """Tell each stage as it comes until the lab is ready. Raises LabDied."""
    limit = time.monotonic() + READY_LIMIT
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
        if lab.poll() is not None:
            raise LabDied(f"the lab ended with code {lab.returncode}:\n{log_tail(state)}")
        if time.monotonic() > limit:
            lab.terminate()
            raise LabDied(f"the lab was still at {last or 'its start'} after {READY_LIMIT:.0f} s:\n{log_tail(state)}")
        await asyncio.sleep(0.1)


def log_tail(state: State) -> str:
    """The last lines of the lab's log."""
    try:
        lines = state.path("log", "lab.log").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "(no log)"
    return "\n".join(lines[-LOG_TAIL:])


async def kill_left_overs(state: State) -> list[str]:
    """End servers whose lab was killed, by the process ids and start times in their records; answers their names."""
    ended = []
    for record in sorted(state.directory.rglob("*.pid")) + sorted(state.sockets.rglob("*.pid")):
        process = _recorded(record.read_text(encoding="utf-8", errors="replace"))
        if process is None:
            continue
        try:
            process.terminate()
            await asyncio.to_thread(process.wait, END_LIMIT)
            ended.append(record.stem)
        except psutil.TimeoutExpired:
            process.kill()
            ended.append(f"{record.stem} (killed)")
        except psutil.NoSuchProcess:
            continue
    return ended


def _recorded(text: str) -> psutil.Process | None:
    """The living process that a record names: pid and kernel start time, so that a reused pid is nobody's."""
    try:
        pid, started = (int(part) for part in json.loads(text)["server"])
    except (ValueError, TypeError, KeyError):
        return None
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return psutil.Process(pid) if int(fields[19]) == started and fields[0] != "Z" else None
    except (OSError, IndexError, psutil.NoSuchProcess):
        return None
