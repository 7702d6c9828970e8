"""The commands of `metal-lab` that only look at a lab or send it a word; each answers an exit code.

They import nothing of the plane: a command that stops a lab must not take seconds to load it. See `running.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from metal_lab import doctor
from metal_lab.background import LabDied, end, kill_left_overs, spawn, wait_ready
from metal_lab.control import LabNotRunning, LabRefused, ask
from metal_lab.fault_catalogue import FAULTS
from metal_lab.rack.model import RackFileError, load
from metal_lab.state import State, StateUnusable

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
        source = rack_file(state, rack)
        name = load(source).name
        if pid := state.holder():
            return await _join(state, pid, name if rack is not None else "")
        known = state.info()
        if known is not None and known.rack and known.rack != name:
            return complain(
                f"{shown(directory)} holds a lab of the rack {known.rack}, and {source.name} is {name}: "
                f"name another --state, or begin anew with `metal-lab destroy --yes`"
            )
        # Before the checks: a server that is about to end still has its port.
        if ended := await kill_left_overs(state):
            say(f"ended what an earlier lab had left behind: {', '.join(ended)}")
        if problems := await doctor.failures(directory):
            return complain("the lab cannot start here:\n" + "\n".join(problems))
        say(f"starting the lab in {shown(directory)} from {source.name}")
        await wait_ready(state, spawn(state, source, processes=processes), say)
    except (RackFileError, LabDied, LabNotRunning, LabRefused, StateUnusable) as error:
        return complain(str(error))
    return 0


async def _join(state: State, pid: int, rack: str) -> int:
    """A lab lives here already: wait until it is ready, unless it is one of another rack."""
    await wait_ready(state, None, say)
    answer = await ask(state.control_socket, "/status")
    if rack and rack != answer["rack"]:
        return complain(
            f"a lab of the rack {answer['rack']} runs here (process {pid}); "
            f"stop it with `metal-lab down`, or name another --state for {rack}"
        )
    say(f"the lab is running already (process {pid}, {answer['stage']})")
    return 0


async def down(directory: Path) -> int:
    """Stop the lab. What a killed one left behind is ended too, by the ids that it recorded."""
    state = State(directory)
    pid = state.holder()
    if pid and not await end(state, limit=STOP_LIMIT):
        if state.holder():
            return complain(f"process {pid} does not end; {shown(state.path('log', 'lab.log'))} says why")
        say(f"the lab did not stop within {STOP_LIMIT:.0f} s and was killed")
    else:
        say("the lab has stopped" if pid else "no lab is running")
    if ended := await kill_left_overs(state):
        say(f"ended what an earlier lab had left behind: {', '.join(ended)}")
    return 0


async def destroy(directory: Path, *, sure: bool) -> int:
    """Stop the lab and delete its state, and nothing else that is in the directory."""
    state = State(directory)
    if not state.exists:
        say(f"there is no lab in {shown(directory)}")
        return 0
    if not sure:
        return complain(f"this stops the lab in {shown(directory)} and deletes it; say --yes")
    if code := await down(directory):
        return code
    try:
        others = state.delete()
    except OSError as error:
        return complain(f"{error.filename}: {error.strerror}")
    left = f"; left alone, as no lab made it: {', '.join(others)}" if others else ""
    say(f"deleted the lab in {shown(directory)}{left}")
    return 0


async def status(directory: Path) -> int:
    """Print what the lab is doing; exit code 0 only when it runs and is well."""
    state = State(directory)
    try:
        answer = await ask(state.control_socket, "/status")
    except LabNotRunning:
        return complain(_absent(state))
    except LabRefused as error:
        return complain(str(error))
    say(f"lab {answer['rack']}: {answer['stage']} (process {answer['pid']}, state in {shown(directory)})")
    for name, text in answer["failures"].items():
        say(f"  FAILED {name} {text}")
    for name, machine in answer["machines"].items():
        say(f"  {name:<14} {machine['uuid']}  {machine['activity']}{_marked(machine['faults'])}")
    for name, leaf in answer["leaves"].items():
        say(f"  {name:<14} {leaf['agent']}{_marked(leaf['faults'])}")
    if answer["failures"]:
        say(f"  {shown(state.path('log', 'lab.log'))} says more; `metal-lab down` and `up` start it all anew")
    return 1 if answer["failures"] else 0


def _absent(state: State) -> str:
    """Why nobody answers."""
    where = shown(state.directory)
    if pid := state.holder():
        return f"process {pid} runs the lab in {where} and does not answer yet; {shown(state.path('log'))} says more"
    info = state.info()
    if info is None:
        return f"no lab has been started in {where}; `metal-lab up` does it"
    if info.stage == "failed":
        return f"the lab in {where} failed to start: {info.error}"
    how = "has been stopped" if info.stage in {"stopping", "stopped"} else f"was killed when it was {info.stage}"
    return f"the lab in {where} {how}; `metal-lab up` starts it again"


def _marked(faults: list[str]) -> str:
    return f"  [{', '.join(faults)}]" if faults else ""


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
    state = State(directory)
    try:
        answer = await ask(state.control_socket, "/fault", {"name": name, "target": target, "on": on})
    except LabNotRunning:
        return complain(_absent(state))
    except LabRefused as error:
        return complain(str(error))
    say(answer["text"])
    return 0


async def fault_list(directory: Path) -> int:
    """Print the faults that there are, and who has one now."""
    try:
        answer = await ask(State(directory).control_socket, "/status")
    except (LabNotRunning, LabRefused):
        answer = {}
    having: dict[str, list[str]] = {}
    for name, one in {**answer.get("machines", {}), **answer.get("leaves", {})}.items():
        for each in one["faults"]:
            having.setdefault(each, []).append(name)
    for each in FAULTS:
        now = f"  (on: {', '.join(having[each.name])})" if each.name in having else ""
        say(f"{each.name:<22} {each.target:<8} {each.text}{now}")
    return 0


def rack_file(state: State, given: Path | None) -> Path:
    """The file that was named, the one of the last start, or the example."""
    kept = state.path("rack.yaml")
    if given is not None:
        return given
    return kept if kept.exists() else EXAMPLE


def shown(directory: Path) -> str:
    """A path as a person here would type it."""
    try:
        return str(directory.relative_to(Path.cwd()))
    except ValueError:
        return str(directory)
