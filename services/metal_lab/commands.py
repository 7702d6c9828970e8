"""What the commands of `metal-lab` do. Each answers an exit code and prints for people."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvloop
from metal_kit import logs
from metal_kit.errors import Problem
from metal_kit.process import StartError
from metal_kit.tls import Identity

from metal_lab import doctor
from metal_lab.background import LabDied, kill_left_overs, spawn, wait_ready
from metal_lab.control import LabNotRunning, ask
from metal_lab.faults import UnknownFault
from metal_lab.footprint import measure
from metal_lab.lab import Lab, rack_copy
from metal_lab.rack.model import RackFileError, load
from metal_lab.servers import ServerError
from metal_lab.state import State
from metal_lab.tour import Report, Tour, TourFailed

BEGAN = "METALPLANE_LAB_BEGAN"
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
        source = _rack_file(state, rack)
        load(source)
        rack_copy(state, source)
        problems = await doctor.failures(directory)
        if problems:
            return complain("the lab cannot start here:\n" + "\n".join(problems))
        say(f"starting the lab in {_shown(directory)} from {source.name}")
        await wait_ready(state, spawn(state, processes=processes), say)
    except (RackFileError, LabDied) as error:
        return complain(str(error))
    return 0


def run(directory: Path, rack: Path | None, *, processes: bool) -> int:
    """Run the lab here until SIGTERM, SIGINT or `metal-lab down`."""
    logs.configure("info", json=True)
    state = State(directory)
    try:
        source = rack_copy(state, _rack_file(state, rack))
        lab = Lab(state, load(source), processes=processes)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(lab))
    except (RackFileError, StartError, ServerError, Problem, OSError) as error:
        return complain(str(error))
    return 0


async def _serve(lab: Lab) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lab.stopping.set)
    async with lab:
        await lab.stopping.wait()


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
        return complain(f"this deletes {_shown(directory)}; say --yes")
    await down(directory)
    state = State(directory)
    if state.path("lab.json").exists() or state.path("pki").exists():
        shutil.rmtree(state.sockets, ignore_errors=True)
        shutil.rmtree(directory)
        say(f"deleted {_shown(directory)}")
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


async def tour(directory: Path) -> int:
    """Walk through the running lab."""
    state = State(directory)
    context = state.context()
    if context is None:
        return complain(f"no lab has been started in {_shown(directory)}; `metal-lab up` does it")
    try:
        report = await _walk(state, context)
    except (TourFailed, Problem, LabNotRunning) as error:
        return complain(str(error))
    _summary(state, report)
    return 0


async def ephemeral_tour(rack: Path | None, *, processes: bool) -> int:
    """Walk through a lab of its own, and stop it."""
    logs.configure("error", json=False)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="metalplane-") as temporary:
        state = State(Path(temporary) / "lab")
        try:
            lab = Lab(state, load(rack or EXAMPLE), processes=processes)
            async with lab:
                say(f"the plane is up after {time.monotonic() - began:.1f} s")
                context = state.context() or {}
                report = await _walk(state, context)
                _summary(state, report)
        except (TourFailed, RackFileError, StartError, ServerError, Problem) as error:
            return complain(str(error))
    return 0


async def _walk(state: State, context: Mapping[str, Any]) -> Report:
    async def ask_port(leaf: str, port: str) -> dict[str, Any]:
        return await ask(state.control_socket, f"/leaf/{leaf}/port/{port}")

    identity = Identity(context["ca"], context["cert"], context["key"])
    walk = Tour(dict(context["endpoints"]), identity, context["token"], say=say, ask_port=ask_port)
    return await walk.run()


def _summary(state: State, report: Report) -> None:
    say("\nTimings since the tour began:")
    for name, seconds in (
        ("all machines waiting", report.waiting),
        ("machine running", report.running),
        ("allocation released", report.released),
        ("machine waiting again", report.back),
    ):
        say(f"  {name:<24}{seconds:6.1f} s")
    info = state.info()
    if began := os.environ.get(BEGAN):
        # The tour's own times begin with the tour; the user's began with the command.
        since = time.time() - float(began) - (report.back - report.running)
        say(f"  first machine running {since:.1f} s after `make lab` began (goal: 60 s)")
    if info is not None:
        used = measure(info.pid)
        say(f"  memory of the lab: {used.rss_mib:.0f} MiB in {used.processes} processes (goal: 1536 MiB)")
    say("\nNext: metalctl machine list · metalctl allocation list · metal-lab status · metal-lab fault --help")


def _rack_file(state: State, given: Path | None) -> Path:
    """The file that was named, the one of the last start, or the example."""
    kept = state.path("rack.yaml")
    if given is not None:
        return given
    return kept if kept.exists() else EXAMPLE


def _shown(directory: Path) -> str:
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


def _loop_factory() -> Any:
    return uvloop.new_event_loop
