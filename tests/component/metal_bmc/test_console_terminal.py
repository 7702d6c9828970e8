"""`metalctl machine console` on a terminal and between pipes, against the running service and a simulated BMC."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from metal_kit import identity
from metal_sim.bmc import SimulatedBmc
from terminal import Terminal

NewBmc = Callable[..., Awaitable[SimulatedBmc]]
Eventually = Callable[..., Awaitable[None]]
Sit = Callable[..., AbstractAsyncContextManager[Terminal]]


@pytest.fixture
async def bmc(plane: Any, new_bmc: NewBmc) -> SimulatedBmc:
    """Registered with the running service; its machine echoes."""
    await plane.start()
    made = await new_bmc()
    await plane.register(made)
    made.serial.on_input = made.serial.write
    return made


@pytest.fixture
def command(plane: Any, bmc: SimulatedBmc, tmp_path: Path) -> Callable[..., list[str]]:
    """The command line for the BMC's machine."""
    mine = plane.new_identity(identity.client_id("tester"))
    content = {
        "name": "test", "endpoints": {"bmc": plane.running.address}, "token": "operator",
        "ca": str(mine.ca), "cert": str(mine.cert), "key": str(mine.key),
    }  # fmt: skip
    path = tmp_path / "context.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(content))

    def line(*options: str) -> list[str]:
        return [sys.executable, "-m", "metalctl", "--context", str(path), "machine", "console", bmc.machine, *options]

    return line


@pytest.fixture
def sit(command: Callable[..., list[str]]) -> Sit:
    """At the console on a terminal."""
    return lambda *options: Terminal.running(*command(*options), env=environment())


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "METALPLANE_TOKEN"}


async def piped(command: list[str], given: bytes) -> tuple[int, bytes, bytes]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, env=environment(), stdin=pipe, stdout=pipe, stderr=pipe)
    async with asyncio.timeout(60):
        out, err = await process.communicate(given)
    return process.returncode or 0, out, err


async def test_keys_go_through_as_they_are_and_the_terminal_comes_back(
    bmc: SimulatedBmc, sit: Sit, eventually: Eventually
) -> None:
    async with sit() as terminal:
        before = terminal.settings
        await terminal.shows(b"user:operator types]")
        await eventually(lambda: terminal.raw)
        bmc.serial.write(b"login: ")
        await terminal.shows(b"login: ")
        # Ctrl-C, Ctrl-Z, Ctrl-D and an arrow are the machine's, too.
        terminal.type(b"root\x03\x1a\x04\x1b[A\r")
        await terminal.shows(b"root\x03\x1a\x04\x1b[A\r")
        terminal.type(b"~B")
        await eventually(lambda: bmc.serial.breaks == 1)
        terminal.type(b"~?")
        await terminal.shows(b"leaves, ~B sends a break")
        bmc.forget_sessions()
        terminal.type(b"x")
        await terminal.shows(b"console lost")
        await terminal.shows(b"console open again")
        terminal.type(b"\r~.")
        assert await terminal.ended() == 0
        assert terminal.settings == before
        assert not terminal.raw


@pytest.mark.parametrize("way", ["SIGTERM", "SIGHUP", "SIGINT", "the service stops", "the BMC is deleted"])
async def test_the_terminal_comes_back_whatever_ends_it(
    plane: Any, bmc: SimulatedBmc, sit: Sit, eventually: Eventually, way: str
) -> None:
    async with sit() as terminal:
        before = terminal.settings
        await eventually(lambda: terminal.raw)
        if way.startswith("SIG"):
            terminal.process.send_signal(signal.Signals[way])
            assert await terminal.ended() == 128 + signal.Signals[way]
        else:
            if way == "the service stops":
                await plane.running.stop(5)
            else:
                await plane.rows("DELETE FROM endpoint")
            assert await terminal.ended() == 5
            assert b"[STOPPING]" in terminal.screen or b"[CONSOLE_ELSEWHERE]" in terminal.screen
        assert terminal.settings == before


async def test_a_second_person_reads_and_may_take_over(bmc: SimulatedBmc, sit: Sit) -> None:
    async with sit() as first:
        await first.shows(b"at the console")
        async with sit() as refused:
            assert await refused.ended() == 1
            assert b"user:operator types at this console" in refused.screen
            assert b"CONSOLE_HAS_WRITER" in refused.screen
        async with sit("--take-over") as second:
            await first.shows(b"user:operator types from now on")
            await second.shows(b"at the console")
            second.type(b"from the second")
            await first.shows(b"from the second")


async def test_between_pipes_it_types_what_comes_and_prints_what_is_answered(
    bmc: SimulatedBmc, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    text = b"~.\n" + b"0123456789\n" * 2000
    code, out, err = await piped(command(), text)
    assert (code, out) == (0, text)
    assert err.startswith(b"[metalctl: console open; user:operator types]\n")
    code, out, err = await piped(command("--replay", "11", "--wait", "0.2"), b"")
    assert (code, out) == (0, b"0123456789\n")
    missing = [part.replace(bmc.machine, "01900000-0000-7000-8000-000000000000") for part in command()]
    code, out, err = await piped(missing, b"")
    assert (code, out) == (3, b"")
    assert err.count(b"\n") == 1


async def test_who_only_reads_reads_until_he_is_interrupted(
    bmc: SimulatedBmc, sit: Sit, eventually: Eventually
) -> None:
    async with sit("--read-only") as terminal:
        await terminal.shows(b"nobody types]")
        bmc.serial.write(b"booting\r\n")
        await terminal.shows(b"booting")
        assert not terminal.raw
        terminal.process.send_signal(signal.SIGINT)
        assert await terminal.ended() == 130
