"""ipmitool's serial console on a terminal of its own, against the simulated BMC with both cipher suites."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from metal_sim.bmc import SimulatedBmc
from peer_programs import needs
from terminal import Terminal

MACHINE = "6f8e2c1a-0b7d-4e55-9a10-0242ac120003"
PASSWORD = "peer-test-password"

pytestmark = [
    *needs("ipmitool"),
    pytest.mark.parametrize("suite", ["3", "17"]),
]


@pytest.fixture
async def bmc() -> AsyncIterator[SimulatedBmc]:
    simulated = SimulatedBmc(MACHINE, password=PASSWORD)
    await simulated.start()
    yield simulated
    simulated.stop()


def command(bmc: SimulatedBmc, directory: Path, suite: str, *arguments: str) -> list[str]:
    secret = directory / "password"
    secret.write_text(PASSWORD)
    host, port = bmc.address
    login = ("-I", "lanplus", "-C", suite, "-H", host, "-p", str(port), "-U", "metal", "-f", str(secret))
    return ["ipmitool", *login, "sol", *arguments]


async def test_it_shows_what_is_printed_and_types(bmc: SimulatedBmc, tmp_path: Path, suite: str) -> None:
    async with Terminal.running(*command(bmc, tmp_path, suite, "activate")) as terminal:
        await terminal.shows(b"SOL Session operational")
        bmc.serial.write(b"hello from the machine\r\n" + b"x" * 1000 + b" end")
        await terminal.shows(b"hello from the machine\r\n" + b"x" * 1000 + b" end")
        terminal.type(b"uname -a\r")
        typed = b""
        async with asyncio.timeout(10):
            while typed != b"uname -a\r":
                typed += await bmc.serial.read()
        bmc.faults.switch_on("sol-drop", 40)
        bmc.serial.write(b"0123456789" * 20)
        await terminal.shows(b"0123456789" * 20)
        bmc.faults.clear()
        terminal.type(b"~B")
        await terminal.shows(b"send break")
        terminal.type(b"\r~.")
        assert await terminal.ended() == 0
    assert bmc.serial.breaks == 1
    assert not bmc.console_taken
    assert not bmc.active_sessions


async def test_a_second_one_is_told_and_may_end_the_first(bmc: SimulatedBmc, tmp_path: Path, suite: str) -> None:
    async with Terminal.running(*command(bmc, tmp_path, suite, "activate")) as first:
        await first.shows(b"SOL Session operational")
        async with Terminal.running(*command(bmc, tmp_path, suite, "activate")) as second:
            await second.shows(b"SOL payload already active on another session")
            assert await second.ended() != 0
        async with Terminal.running(*command(bmc, tmp_path, suite, "deactivate")) as third:
            assert await third.ended() == 0
        assert not bmc.console_taken


async def test_its_configuration_is_shown_and_set(bmc: SimulatedBmc, tmp_path: Path, suite: str) -> None:
    async with Terminal.running(*command(bmc, tmp_path, suite, "set", "retry-count", "5", "1")) as setting:
        assert await setting.ended() == 0
    async with Terminal.running(*command(bmc, tmp_path, suite, "info", "1")) as info:
        assert await info.ended() == 0
        assert b"Retry Count                     : 5" in info.screen
        assert b"Force Encryption                : true" in info.screen
