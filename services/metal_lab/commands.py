"""The commands of `metal-lab` that only look at a lab or send it a word; each answers an exit code.

They import nothing of the plane: a command that stops a lab must not take seconds to load it. See `running.py`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from pathlib import Path

from metal_lab import doctor
from metal_lab.background import LabDied, kill_left_overs, spawn, wait_ready
from metal_lab.control import LabNotRunning, ask
from metal_lab.fault_catalogue import UnknownFault
from metal_lab.rack.model import RackFileError, load
from metal_lab.state import State

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "mini-rack.yaml"
STOP_LIMIT = 60.0


def say(text: str) -> None:
    """Print at once: progress that arrives late is none."""
    print(text, flush=True)


def complain(text: str) -> int:
    """Print what went wrong; the exit code of a command that failed."""
    print(f"metal-lab: {text}", file=sys.stderr, flush=True)
    return 1


async def up(directory: Path, rack: Path | None, *, processes: bool) -> int:
    """Start the lab in the background, show how it comes up, and return when it is ready."""
    state = State(directory)
    try:
        answer = await ask(state.control_socket, "/status")
        say(f"the lab is running already (process {answer['pid']}, {answer['stage']})")
        return 0 if answer["stage"] == "ready" else complain("it is not ready; look at its log")
    except LabNotRunning:
        pass
    try:
        source = rack_file(state, rack)
        load(source)
        state.keep_rack_file(source)
        problems = await doctor.failures(directory)
        if problems:
            return complain("the lab cannot start here:\n" + "\n".join(problems))
        say(f"starting the lab in {shown(directory)} from {source.name}")
        await wait_ready(state, spawn(state, processes=processes), say)
    except (RackFileError, LabDied) as error:
        return complain(str(error))
    return 0


async def down(directory: Path) -> int:
    """Stop the lab. What a killed one left behind is ended too, by the ids that it recorded."""
    state = State(directory)
    try:
        pid = (await ask(state.control_socket, "/status"))["pid"]
        await ask(state.control_socket, "/stop", {})
        limit = time.monotonic() + STOP_LIMIT
        while _alive(pid):
            if time.monotonic() > limit:
                return complain(f"process {pid} is still stopping after {STOP_LIMIT:.0f} s; its log says why")
            await asyncio.sleep(0.1)
        say("the lab has stopped")
    except LabNotRunning:
        say("no lab is running")
    ended = await kill_left_overs(state)
    if ended:
        say(f"ended what an earlier lab had left behind: {', '.join(ended)}")
    return 0


async def destroy(directory: Path, *, sure: bool) -> int:
    """Stop the lab and delete its state."""
    if not sure:
        return complain(f"this deletes {shown(directory)}; say --yes")
    await down(directory)
    state = State(directory)
    if state.path("lab.json").exists() or state.path("pki").exists():
        shutil.rmtree(state.sockets, ignore_errors=True)
        shutil.rmtree(directory)
        say(f"deleted {shown(directory)}")
    return 0


async def status(directory: Path) -> int:
    """Print what the lab is doing."""
    try:
        answer = await ask(State(directory).control_socket, "/status")
    except LabNotRunning as error:
        return complain(str(error))
    say(f"lab {answer['rack']}: {answer['stage']} (process {answer['pid']})")
    for name, machine in answer["machines"].items():
        say(f"  {name:<14} {machine['uuid']}  {machine['activity']}")
    for name, leaf in answer["leaves"].items():
        say(f"  {name:<14} {'dead' if leaf['dead'] else 'up'}")
    return 0


async def examine(directory: Path) -> int:
    """Check everything that the lab needs; say what to do about what is missing."""
    checks = await doctor.examine(directory)
    for check in checks:
        mark = "ok  " if check.ok else ("FAIL" if check.needed else "note")
        say(f"{mark}  {check.name}: {check.found}")
        if not check.ok:
            say(f"      {check.consequence}\n      remedy: {check.remedy}")
    return 1 if any(not check.ok and check.needed for check in checks) else 0


async def fault(directory: Path, name: str, target: str, *, on: bool) -> int:
    """Switch a fault on or off in the running lab."""
    try:
        answer = await ask(State(directory).control_socket, "/fault", {"name": name, "target": target, "on": on})
    except (LabNotRunning, UnknownFault) as error:
        return complain(str(error))
    say(answer["text"])
    return 0


def rack_file(state: State, given: Path | None) -> Path:
    """The file that was named, the one of the last start, or the example."""
    kept = state.path("rack.yaml")
    if given is not None:
        return given
    return kept if kept.exists() else EXAMPLE


def shown(directory: Path) -> str:
    try:
        return str(directory.relative_to(Path.cwd()))
    except ValueError:
        return str(directory)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
