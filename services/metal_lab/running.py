"""The commands of `metal-lab` that run a lab, or walk through one; each answers an exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import uvloop
from metal_kit import logs
from metal_kit.errors import Problem
from metal_kit.process import StartError
from metal_kit.tls import Identity

from metal_lab.commands import EXAMPLE, complain, rack_file, say, shown
from metal_lab.control import LabNotRunning, LabRefused, ask
from metal_lab.footprint import measure
from metal_lab.lab import Lab
from metal_lab.rack.model import RackFileError, load
from metal_lab.servers import ServerError
from metal_lab.state import State, StateInUse, StateUnusable
from metal_lab.tour import Report, Tour, TourFailed

BEGAN = "METALPLANE_LAB_BEGAN"
START_ERRORS = (RackFileError, StartError, ServerError, StateInUse, StateUnusable, Problem)


def run(directory: Path, rack: Path | None, *, processes: bool) -> int:
    """Run the lab here until SIGTERM, SIGINT or `metal-lab down`."""
    logs.configure("info", json=True)
    state = State(directory)
    try:
        source = rack_file(state, rack)
        lab = Lab(state, load(source), processes=processes)
        with state.lock(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
            state.keep_rack_file(source)
            runner.run(_serve(lab))
    except (*START_ERRORS, OSError) as error:
        return complain(str(error))
    return 0


async def _serve(lab: Lab) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lab.stopping.set)
    async with lab:
        await lab.stopping.wait()


async def tour(directory: Path) -> int:
    """Walk through the running lab."""
    state = State(directory)
    context = state.context()
    if context is None:
        return complain(f"no lab has been started in {shown(directory)}; `metal-lab up` does it")
    try:
        stage = (await ask(state.control_socket, "/status"))["stage"]
        if stage != "ready":
            return complain(f"the lab is {stage}, no place for a tour; `metal-lab status` says more")
        report = await _walk(state, context)
    except LabNotRunning:
        return complain(f"no lab runs in {shown(directory)}; `metal-lab up` starts it")
    except (TourFailed, Problem, LabRefused) as error:
        return complain(str(error))
    _summary(state, report)
    return 0


async def ephemeral_tour(rack: Path | None, *, processes: bool) -> int:
    """Walk through a lab of its own, and stop it."""
    logs.configure("error", json=False)
    began = time.monotonic()
    walk = asyncio.current_task()
    if walk is not None:
        # Told to end, it ends as it would at its own end: servers stopped, directory removed.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, walk.cancel)
    with tempfile.TemporaryDirectory(prefix="metalplane-") as temporary:
        state = State(Path(temporary) / "lab")
        try:
            lab = Lab(state, load(rack or EXAMPLE), processes=processes)
            async with lab:
                say(f"the plane is up after {time.monotonic() - began:.1f} s")
                context = state.context() or {}
                report = await _walk(state, context)
                _summary(state, report)
        except asyncio.CancelledError:
            return complain("the tour was ended before its end")
        except (TourFailed, LabNotRunning, LabRefused, *START_ERRORS, OSError) as error:
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


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    return uvloop.new_event_loop
