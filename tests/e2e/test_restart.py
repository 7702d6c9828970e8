"""`metal-lab` as people run it, each command a process: a lab is killed and goes on, is stopped and leaves nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from metal_lab.background import READY_LIMIT
from metal_lab.commands import STOP_LIMIT
from metal_lab.control import LabNotRunning, ask
from metal_lab.state import State
from metal_lab.tour import Limits

if TYPE_CHECKING:
    from tests.e2e.conftest import Cloud, NewCloud

    Eventually = Callable[..., Awaitable[None]]

pytestmark = pytest.mark.timeout(240)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# A command says itself what it waited for in vain, so it gets longer here than it gives itself: `up` and `down` as long
# as they wait for a lab that starts or ends, the tour as long as it waits for each of its parts on the way.
COMMAND_LIMIT = READY_LIMIT + STOP_LIMIT
TOUR_LIMIT = COMMAND_LIMIT + sum(astuple(Limits()))


@dataclass(frozen=True)
class Answer:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Subject:
    """A state directory, and the commands that are given for it."""

    directory: Path

    @property
    def state(self) -> State:
        """Its small files."""
        return State(self.directory)

    async def command(self, *words: str, limit: float = COMMAND_LIMIT) -> Answer:
        """Run `metal-lab`; its processes are found again by the environment that they inherit."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "metal_lab",
            *words,
            env={**os.environ, "METALPLANE_LAB": str(self.directory)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), limit)
        except TimeoutError:
            process.kill()
            await process.wait()
            pytest.fail(f"metal-lab {' '.join(words)} did not end within {limit:g} s")
        answer = Answer(process.returncode or 0, out.decode(), err.decode())
        assert "Traceback" not in answer.err
        return answer

    async def up(self) -> None:
        """A lab runs here after this, and is well."""
        answer = await self.command("up")
        assert answer.code == 0, answer.err

    async def status(self) -> dict[str, Any]:
        """What the lab says; empty when nobody answers."""
        try:
            return await ask(self.state.control_socket, "/status")
        except LabNotRunning:
            return {}

    def processes(self) -> list[str]:
        """Every living process of this directory: named in its environment or arguments, or working in it."""
        mark = str(self.directory)
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                    continue
                traces = [*process.cmdline(), process.cwd(), process.environ().get("METALPLANE_LAB", "")]
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if any(mark in trace for trace in traces):
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
        return found


@pytest.fixture(scope="module")
def directory(server_directory: Path) -> Iterator[Path]:
    path = server_directory / "restart"
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
async def subject(directory: Path) -> AsyncIterator[Subject]:
    """One state directory for all tests here; each brings the lab up, which is a word when it is: so they are in this
    order."""
    found = Subject(directory)
    yield found
    await found.command("down")


@pytest.fixture(scope="module")
async def cloud(subject: Subject, new_cloud: NewCloud) -> AsyncIterator[Cloud]:
    """A tenant in it. Its channels outlive the lab: ports, certificates and tokens hold after a restart."""
    await subject.up()
    settled = await new_cloud(subject.state.context() or {})
    yield settled
    await settled.close()


async def test_two_starts_at_once_make_one_lab(subject: Subject) -> None:
    await subject.command("down")
    first, second = await asyncio.gather(subject.command("up"), subject.command("up"))
    assert (first.code, second.code) == (0, 0), first.err + second.err
    runs = [line for line in subject.processes() if re.search(r"metal_lab .*\brun\b", line)]
    assert len(runs) == 1, runs


async def test_a_second_up_on_a_living_lab_says_so_and_changes_nothing(subject: Subject) -> None:
    await subject.up()
    pid = subject.state.holder()
    again = await subject.command("up")
    assert again.code == 0
    assert f"is running already (process {pid}, ready)" in again.out
    another = await subject.command("up", "--rack", str(EXAMPLES / "rack-16.yaml"))
    assert another.code == 1
    assert "a lab of the rack mini-rack runs here" in another.err
    foreground = await subject.command("run")
    assert foreground.code == 1
    assert f"in use by process {pid}" in foreground.err
    assert subject.state.holder() == pid
    assert (await subject.status())["rack"] == "mini-rack"


async def test_down_leaves_no_process_behind_and_a_second_one_is_harmless(subject: Subject) -> None:
    await subject.up()
    family = _family(subject)
    assert len(family) > 8, "the lab, its servers, their backends, the BMC drivers"
    first = await subject.command("down")
    assert (first.code, first.out) == (0, "the lab has stopped\n")
    assert _living(family) == []
    assert subject.processes() == []
    second = await subject.command("down")
    assert (second.code, second.out) == (0, "no lab is running\n")
    assert "has been stopped; `metal-lab up` starts it again" in (await subject.command("status")).err


async def test_a_lab_that_was_killed_goes_on_where_it_was(
    subject: Subject, cloud: Cloud, eventually: Eventually
) -> None:
    await subject.up()
    wanted = next(iter((await subject.status())["machines"].values()))["uuid"]
    await cloud.until_waiting(wanted)
    made = await cloud.allocate()
    before = await cloud.until_phase(made.id, "RUNNING")
    uuid = before.status.machine
    name = next(name for name, each in (await subject.status())["machines"].items() if each["uuid"] == uuid)
    root = next(subject.state.path("machines", name).rglob("etc/hostname")).parent.parent
    (root / "written-by-the-tenant").write_text("keep this")
    killed = subject.state.holder()

    os.kill(killed, signal.SIGKILL)
    await eventually(lambda: subject.state.holder() == 0, what="the kernel lets go of the lock")
    status = await subject.command("status")
    assert status.code == 1
    assert "was killed when it was ready" in status.err
    await subject.up()

    assert subject.state.holder() not in {0, killed}
    after = await cloud.until_phase(made.id, "RUNNING")
    assert after.status.machine == uuid
    assert after.status.networks == before.status.networks
    assert after.status.networks[0].vrf == cloud.network.vrf
    assert (await cloud.machine(uuid)).binding.allocation == made.id

    async def runs() -> bool:
        return str((await subject.status())["machines"][name]["activity"]).startswith("running ")

    await eventually(runs, seconds=60, what=f"{name} runs its own system again")
    assert (root / "written-by-the-tenant").read_text() == "keep this"

    async def attached() -> bool:
        ports = [
            await ask(subject.state.control_socket, f"/leaf/{link.switch_id}/port/{link.port}")
            for link in (await cloud.machine(uuid)).links
        ]
        return [(port.get("vni"), port.get("up")) for port in ports] == [(cloud.network.vrf, True)] * 2

    await eventually(attached, seconds=60, what="both leaves have the machine in its VRF")
    await cloud.free(made.id)
    await cloud.until_phase(made.id, "RELEASED")
    await cloud.until_waiting(uuid)


async def test_a_lab_that_lost_its_servers_says_so(subject: Subject, eventually: Eventually) -> None:
    await subject.up()
    for child in psutil.Process(subject.state.holder()).children():
        if child.name() == "nats-server" or (child.name() == "redis-server" and child.cwd().endswith("leaf1")):
            child.kill()
    parts = {"nats", "redis of leaf1"}

    async def told() -> bool:
        return parts <= set((await subject.status())["failures"])

    await eventually(told, seconds=10)
    status = await subject.command("status")
    assert status.code == 1
    assert "lab mini-rack: degraded" in status.out
    again, tour = await asyncio.gather(subject.command("up"), subject.command("tour"))
    assert again.code == 1
    assert tour.code == 1
    assert "the lab is degraded" in tour.err
    lines = [json.loads(line) for line in _log(subject) if line.startswith("{")]
    logged = {line["part"] for line in lines if line["event"] == "lab.part_failed"}
    for part in parts:
        assert f"FAILED {part} has ended with signal 9" in status.out
        assert f"{part} has ended" in again.err
        assert part in logged
    assert (await subject.command("down")).code == 0


async def test_down_ends_what_a_killed_lab_left_behind(subject: Subject, eventually: Eventually) -> None:
    await subject.up()
    family = _family(subject)
    os.kill(subject.state.holder(), signal.SIGKILL)
    await eventually(lambda: subject.state.holder() == 0)
    answer = await subject.command("down")
    assert answer.code == 0
    await eventually(lambda: not _living(family) and not subject.processes(), what="nothing is left")


async def test_a_broken_rack_file_starts_nothing_and_does_not_replace_a_good_one(
    subject: Subject, tmp_path: Path
) -> None:
    await subject.command("down")
    kept = subject.state.path("rack.yaml").read_text() if subject.state.path("rack.yaml").exists() else ""
    broken = tmp_path / "broken.yaml"
    broken.write_text((EXAMPLES / "mini-rack.yaml").read_text().replace("count: 4", "count: four"))
    answer = await subject.command("up", "--rack", str(broken))
    assert answer.code == 1
    assert f"{broken}: 1 mistake\n  racks.0.machines.0.count: " in answer.err
    assert subject.processes() == []
    assert (subject.state.path("rack.yaml").read_text() if kept else "") == kept


async def test_what_the_plane_refuses_of_a_rack_file_is_told_and_nothing_is_left_running(
    server_directory: Path, tmp_path: Path
) -> None:
    fresh = Subject(server_directory / "refused")
    refused = tmp_path / "refused.yaml"
    refused.write_text((EXAMPLES / "mini-rack.yaml").read_text().replace("{ipv4: 22,", "{ipv4: 8,"))
    answer = await fresh.command("up", "--rack", str(refused))
    assert answer.code == 1
    assert "the plane refuses the network tenant-super-mini" in answer.err
    assert "default_child_prefix_length" in answer.err
    assert fresh.processes() == []
    (fresh.directory / "notes.txt").write_text("a stranger's")
    gone = await fresh.command("destroy", "--yes")
    assert gone.code == 0
    assert "left alone, as no lab made it: notes.txt" in gone.out
    assert [path.name for path in fresh.directory.iterdir()] == ["notes.txt"]


@pytest.mark.timeout(TOUR_LIMIT + 30)
async def test_the_ephemeral_tour_tells_times_and_memory_and_leaves_nothing(server_directory: Path) -> None:
    place = Subject(server_directory / "ephemeral")
    place.directory.mkdir()
    answer = await place.command("tour", "--ephemeral", limit=TOUR_LIMIT)
    assert answer.code == 0, answer.err
    for words in (
        "the plane is up after",
        "all machines waiting",
        "machine running",
        "allocation released",
        "machine waiting again",
        "proved by reading back",
    ):
        assert words in answer.out
    memory = re.search(r"memory of the lab: (\d+) MiB in (\d+) processes \(goal: 1536 MiB\)", answer.out)
    assert memory is not None
    assert 0 < int(memory[1]) <= 1536
    assert place.processes() == []
    assert not list(place.directory.iterdir()), "it uses a directory of its own"


def _log(subject: Subject) -> list[str]:
    return subject.state.path("log", "lab.log").read_text().splitlines()


def _family(subject: Subject) -> list[psutil.Process]:
    """The lab's process and all that descend from it."""
    root = psutil.Process(subject.state.holder())
    return [root, *root.children(recursive=True)]


def _living(family: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
