"""`metal-lab` as it is typed: every command explains itself, mistakes are answered with what exists."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from metal_lab import __main__ as command_line
from metal_lab import commands
from metal_lab.control import ControlServer
from metal_lab.fault_catalogue import FAULTS, UnknownFault
from metal_lab.state import LabInfo, State

COMMANDS = ("up", "run", "down", "destroy", "status", "doctor", "tour", "fault")


def refused(*words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.parse(list(words))
    assert ended.value.code == 2


def helped(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        command_line.parse([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_help_names_every_command_and_the_first_steps(capsys: pytest.CaptureFixture[str]) -> None:
    text = helped(capsys)
    for command in COMMANDS:
        assert f"\n    {command} " in text
    assert "First steps:" in text
    assert "METALPLANE_LAB" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_a_sentence_and_its_options(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = helped(capsys, command)
    assert f"usage: metal-lab {command}" in text
    assert "--state STATE" in text
    options = [line for line in text.splitlines() if line.startswith("  --")]
    assert all(len(line.split(maxsplit=2)) > 1 for line in options)


def test_the_help_of_faults_tells_what_each_does(capsys: pytest.CaptureFixture[str]) -> None:
    text = helped(capsys, "fault")
    for fault in FAULTS:
        assert fault.name in text
        assert fault.text in text


def test_the_state_directory_is_named_before_or_after_the_command() -> None:
    for words in (["--state", "/x", "status"], ["status", "--state", "/x"]):
        assert command_line.parse(words).state == Path("/x")
    assert command_line.parse(["status"]).state is None


def test_unknown_commands_and_faults_are_answered_with_what_exists(capsys: pytest.CaptureFixture[str]) -> None:
    refused()
    refused("start")
    said = capsys.readouterr().err
    assert all(command in said for command in COMMANDS)
    refused("fault", "fire", "rack-1-m1")
    said = capsys.readouterr().err
    assert "'fire'" in said
    assert all(fault.name in said for fault in FAULTS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fault", "bmc-hangs"], "which machine or leaf has bmc-hangs?"),
        (["fault", "bmc-hangs", "m1", "maybe"], "choose from 'on', 'off'"),
        (["tour", "--rack", "x.yaml"], "are for `tour --ephemeral`"),
        (["tour", "--processes"], "are for `tour --ephemeral`"),
        (["up", "--rack"], "expected one argument"),
        (["up", "extra"], "unrecognized arguments: extra"),
    ],
)
def test_wrong_arguments_are_explained(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(*words)
    assert said in capsys.readouterr().err


def test_a_fault_is_switched_on_unless_off_is_said() -> None:
    assert command_line.parse(["fault", "no-lldp", "m1"]).switch == "on"
    assert command_line.parse(["fault", "no-lldp", "m1", "off"]).switch == "off"
    assert command_line.parse(["fault", "list"]).target == ""


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "lab")


Said = pytest.CaptureFixture[str]


async def test_without_a_lab_the_commands_say_so_and_how_to_get_one(state: State, capsys: Said) -> None:
    assert await commands.status(state.directory) == 1
    assert await commands.fault(state.directory, "no-lldp", "m1", on=True) == 1
    assert capsys.readouterr().err.count("no lab has been started in") == 2
    assert await commands.down(state.directory) == 0
    assert capsys.readouterr().out == "no lab is running\n"
    assert await commands.destroy(state.directory, sure=True) == 0
    assert "there is no lab" in capsys.readouterr().out
    assert await commands.fault_list(state.directory) == 0
    assert "bmc-hangs" in capsys.readouterr().out
    assert not state.directory.exists()


@pytest.mark.parametrize(
    ("info", "said"),
    [
        (LabInfo(stage="failed", error="no room"), "failed to start: no room"),
        (LabInfo(stage="stopped"), "has been stopped; `metal-lab up` starts it again"),
        (LabInfo(stage="ready"), "was killed when it was ready"),
    ],
)
async def test_the_status_of_a_lab_that_ended_says_how(state: State, info: LabInfo, said: str, capsys: Said) -> None:
    state.prepare()
    state.write_info(info)
    assert await commands.status(state.directory) == 1
    assert said in capsys.readouterr().err


async def test_destroy_wants_to_be_sure(state: State, capsys: Said) -> None:
    state.prepare()
    assert await commands.destroy(state.directory, sure=False) == 1
    assert "say --yes" in capsys.readouterr().err
    assert state.exists
    assert await commands.destroy(state.directory, sure=True) == 0
    assert not state.directory.exists()


async def test_up_refuses_a_rack_that_is_not_the_one_of_the_state(state: State, capsys: Said) -> None:
    state.prepare()
    state.write_info(LabInfo(rack="rack-16", stage="stopped"))
    assert await commands.up(state.directory, commands.EXAMPLE, processes=False) == 1
    said = capsys.readouterr().err
    assert "holds a lab of the rack rack-16, and mini-rack.yaml is mini-rack" in said
    assert "destroy --yes" in said


async def test_up_with_a_file_that_is_not_there_makes_nothing(state: State, tmp_path: Path, capsys: Said) -> None:
    assert await commands.up(state.directory, tmp_path / "none.yaml", processes=False) == 1
    assert "none.yaml: cannot be read" in capsys.readouterr().err
    assert not state.directory.exists()


class FakeLab:
    """Something that answers on the lab's socket, over the real protocol."""

    def __init__(self, socket: Path) -> None:
        self.answer: dict[str, Any] = {
            "stage": "ready",
            "pid": 7,
            "rack": "mini",
            "failures": {},
            "machines": {"rack-1-m1": {"uuid": "u", "activity": "installer", "faults": ["no-lldp"]}},
            "leaves": {"leaf1": {"agent": "no power", "faults": ["leaf-dead"]}},
        }
        self.stop = asyncio.Event()
        self.server = ControlServer(socket, status=self.status, port=self.port, fault=self.fault, stop=self.stop)

    def status(self) -> dict[str, Any]:
        return self.answer

    async def port(self, leaf: str, port: str) -> dict[str, Any]:
        return {"vrf": leaf}

    async def fault(self, name: str, target: str, on: bool) -> str:
        if target == "broken":
            raise RuntimeError("a secret text")
        if target != "rack-1-m1":
            raise UnknownFault(f"no machine {target!r}; there are: rack-1-m1")
        return f"{target}: {name} {on}"


@pytest.fixture
async def lab(state: State) -> AsyncIterator[FakeLab]:
    state.prepare()
    fake = FakeLab(state.control_socket)
    await fake.server.start()
    yield fake
    await fake.server.stop()


async def test_the_status_shows_machines_leaves_and_faults(lab: FakeLab, state: State, capsys: Said) -> None:
    assert await commands.status(state.directory) == 0
    out = capsys.readouterr().out
    assert "lab mini: ready (process 7" in out
    assert "rack-1-m1      u  installer  [no-lldp]" in out
    assert "leaf1          no power  [leaf-dead]" in out
    assert await commands.fault_list(state.directory) == 0
    assert "(on: rack-1-m1)" in capsys.readouterr().out


async def test_the_status_of_a_lab_that_is_not_well_fails(lab: FakeLab, state: State, capsys: Said) -> None:
    lab.answer |= {"stage": "degraded", "failures": {"nats": "has ended with signal 9"}}
    assert await commands.status(state.directory) == 1
    assert "FAILED nats has ended with signal 9" in capsys.readouterr().out


async def test_what_the_lab_refuses_is_told_without_a_trace(lab: FakeLab, state: State, capsys: Said) -> None:
    assert await commands.fault(state.directory, "no-lldp", "rack-1-m1", on=False) == 0
    assert capsys.readouterr().out == "rack-1-m1: no-lldp False\n"
    assert await commands.fault(state.directory, "no-lldp", "m9", on=True) == 1
    assert "no machine 'm9'; there are: rack-1-m1" in capsys.readouterr().err
    assert await commands.fault(state.directory, "no-lldp", "broken", on=True) == 1
    said = capsys.readouterr().err
    assert "its log says why" in said
    assert "secret" not in said


async def test_the_socket_is_for_its_owner_only(lab: FakeLab, state: State) -> None:
    assert state.control_socket.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["postgres", "log", "run/leaf1"])
def test_down_ends_servers_that_a_killed_lab_left_behind_and_nobody_else(state: State, name: str) -> None:
    state.prepare()
    # Where Unix sockets go depends on how long the directory's path is.
    place = state.sockets / name.removeprefix("run/") if name.startswith("run/") else state.path(name)
    place.mkdir(exist_ok=True, parents=True)
    left, bystander = (subprocess.Popen(["sleep", "300"]) for _ in range(2))
    try:
        started = int(Path(f"/proc/{left.pid}/stat").read_text().rpartition(")")[2].split()[19])
        (place / "server.pid").write_text(json.dumps({"server": [left.pid, started], "keeper": [1, 1]}))
        (place / "reused.pid").write_text(json.dumps({"server": [bystander.pid, 7], "keeper": [1, 1]}))
        (place / "torn.pid").write_text('{"server": [')
        answer = subprocess.run(
            [sys.executable, "-m", "metal_lab", "--state", str(state.directory), "down"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert answer.returncode == 0
        assert "ended what an earlier lab had left behind: server" in answer.stdout
        assert left.wait(5) == -signal.SIGTERM
        assert bystander.poll() is None
    finally:
        for process in (left, bystander):
            process.kill()
            process.wait()
