"""A foreign client, ipmitool, against the simulated BMC with both cipher suites."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from metal_sim.bmc import PowerAction, SimulatedBmc
from metal_sim.bmc.sensors import SENSORS
from peer_programs import needs

MACHINE = "6f8e2c1a-0b7d-4e55-9a10-0242ac120002"
PASSWORD = "peer-test-password"

pytestmark = needs("ipmitool")


@pytest.fixture
async def bmc() -> AsyncIterator[SimulatedBmc]:
    simulated = SimulatedBmc(MACHINE, password=PASSWORD)
    await simulated.start()
    yield simulated
    simulated.stop()


@pytest.fixture(params=["3", "17"])
def suite(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def ipmitool(
    bmc: SimulatedBmc, directory: Path, suite: str, *arguments: str, user: str = "metal", password: str = PASSWORD
) -> tuple[int, str]:
    secret = directory / "password"
    secret.write_text(password)
    host, port = bmc.address
    login = ("-I", "lanplus", "-C", suite, "-H", host, "-p", str(port), "-U", user, "-f", str(secret))
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


async def test_sensors_and_their_limits_are_shown(bmc: SimulatedBmc, tmp_path: Path, suite: str) -> None:
    bmc.chassis.powered = True
    bmc.readings.set("CPU1 Temp", 96)
    bmc.readings.set("PSU2 Status", 0x03)
    code, output = await ipmitool(bmc, tmp_path, suite, "sdr", "elist", "full")
    assert code == 0, output
    rows = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in map(_cells, output.splitlines())}
    assert rows["CPU1 Temp"][1:] == ["ucr", "3.1", "96 degrees C"]
    assert rows["FAN1"][-1] == "8200 RPM"
    assert rows["12V"][-1] == "12 Volts"
    assert rows["Pwr Consumption"][-1] == "184 Watts"
    assert rows["PSU1 Status"][-1] == "Presence detected"
    assert rows["PSU2 Status"][-1] == "Presence detected, Failure detected"
    assert len(rows) == len(SENSORS)
    _, output = await ipmitool(bmc, tmp_path, suite, "sensor", "get", "Inlet Temp")
    assert "Sensor Reading        : 24 (+/- 0) degrees C" in output
    assert "Upper Critical        : 45.000" in output
    _, output = await ipmitool(bmc, tmp_path, suite, "dcmi", "power", "reading")
    assert "Instantaneous power reading:                   184 Watts" in output


def _cells(line: str) -> list[str]:
    return line.split("|")


async def test_the_event_log_is_read_and_cleared(bmc: SimulatedBmc, tmp_path: Path, suite: str) -> None:
    for order in ("on", "reset", "off"):
        assert (await ipmitool(bmc, tmp_path, suite, "power", order))[0] == 0
    bmc.event_log.add(0x08, 0x31, (0x01, 0xFF, 0xFF))
    code, output = await ipmitool(bmc, tmp_path, suite, "sel", "list")
    assert code == 0, output
    lines = [line.split("|")[3:5] for line in output.splitlines()]
    assert [cell.strip() for line in lines for cell in line[1:]] == [
        "Initiated by power up", "Initiated by hard reset", "Power off/down", "Failure detected",
    ]  # fmt: skip
    _, output = await ipmitool(bmc, tmp_path, suite, "sel", "info")
    assert "Entries          : 4" in output
    code, output = await ipmitool(bmc, tmp_path, suite, "sel", "delete", "2")
    assert code == 0, output
    assert len(bmc.event_log) == 3
    code, output = await ipmitool(bmc, tmp_path, suite, "sel", "clear")
    assert code == 0, output
    assert len(bmc.event_log) == 0
    _, output = await ipmitool(bmc, tmp_path, suite, "sel", "list")
    assert "SEL has no entries" in output


async def test_a_user_is_made_and_logs_in(bmc: SimulatedBmc, tmp_path: Path, suite: str) -> None:
    orders = (
        ("set", "name", "3", "anna"), ("set", "password", "3", "another-pw"), ("priv", "3", "4", "1"), ("enable", "3"),
    )  # fmt: skip
    for order in orders:
        code, output = await ipmitool(bmc, tmp_path, suite, "user", *order)
        assert code == 0, (order, output)
    _, output = await ipmitool(bmc, tmp_path, suite, "user", "list", "1")
    assert [line.split()[:2] for line in output.splitlines()[2:4]] == [["2", "metal"], ["3", "anna"]]
    code, output = await ipmitool(bmc, tmp_path, suite, "power", "on", user="anna", password="another-pw")
    assert code == 0, output
    assert bmc.chassis.powered
    assert (await ipmitool(bmc, tmp_path, suite, "user", "disable", "3"))[0] == 0
    code, _ = await ipmitool(bmc, tmp_path, suite, "power", "off", user="anna", password="another-pw")
    assert code != 0
    assert bmc.chassis.powered
