"""A foreign client, ipmitool, against the simulated BMC with both cipher suites."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from metal_sim.bmc import PowerAction, SimulatedBmc

MACHINE = "6f8e2c1a-0b7d-4e55-9a10-0242ac120002"
PASSWORD = "peer-test-password"

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(
        shutil.which("ipmitool") is None and os.environ.get("METALPLANE_REQUIRE_PEERS") != "1",
        reason="ipmitool is not installed",
    ),
]


@pytest.fixture
async def bmc() -> AsyncIterator[SimulatedBmc]:
    simulated = SimulatedBmc(MACHINE, password=PASSWORD)
    await simulated.start()
    yield simulated
    simulated.stop()


@pytest.fixture(params=["3", "17"])
def suite(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def ipmitool(bmc: SimulatedBmc, directory: Path, suite: str, *arguments: str) -> tuple[int, str]:
    secret = directory / "password"
    secret.write_text(PASSWORD)
    host, port = bmc.address
    login = ("-I", "lanplus", "-C", suite, "-H", host, "-p", str(port), "-U", "metal", "-f", str(secret))
    process = await asyncio.create_subprocess_exec(
        "ipmitool", *login, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, output.decode()


async def test_power_is_read_and_switched(bmc: SimulatedBmc, tmp_path: Path, suite: str) -> None:
    assert await ipmitool(bmc, tmp_path, suite, "power", "status") == (0, "Chassis Power is off\n")
    for order in ("on", "reset", "off"):
        code, output = await ipmitool(bmc, tmp_path, suite, "power", order)
        assert code == 0, output
    assert bmc.chassis.history == [PowerAction.ON, PowerAction.RESET, PowerAction.OFF]


async def test_the_boot_flags_are_kept(bmc: SimulatedBmc, tmp_path: Path, suite: str) -> None:
    code, output = await ipmitool(bmc, tmp_path, suite, "chassis", "bootdev", "pxe", "options=persistent,efiboot")
    assert code == 0, output
    assert bmc.chassis.flags.hex() == "e004000000"
    _, output = await ipmitool(bmc, tmp_path, suite, "chassis", "bootparam", "get", "5")
    assert "Force PXE" in output
    assert "Options apply to all future boots" in output


async def test_identity_is_shown(bmc: SimulatedBmc, tmp_path: Path, suite: str) -> None:
    code, output = await ipmitool(bmc, tmp_path, suite, "fru", "print", "0")
    assert code == 0, output
    assert bmc.fru_info.board_serial in output
    code, output = await ipmitool(bmc, tmp_path, suite, "mc", "info")
    assert code == 0, output
    assert "IPMI Version              : 2.0" in output
    code, output = await ipmitool(bmc, tmp_path, suite, "mc", "guid")
    assert MACHINE in output.lower(), output


async def test_users_are_listed(bmc: SimulatedBmc, tmp_path: Path, suite: str) -> None:
    code, output = await ipmitool(bmc, tmp_path, suite, "user", "list", "1")
    assert code == 0, output
    assert "metal" in output


async def test_a_session_without_authentication_is_refused(bmc: SimulatedBmc, tmp_path: Path) -> None:
    code, _ = await ipmitool(bmc, tmp_path, "0", "power", "on")
    assert code != 0
    assert not bmc.chassis.powered
