"""Our client against a foreign BMC: OpenIPMI's ipmi_sim, whose chassis is a script. It knows cipher suite 3 only."""

from __future__ import annotations

import asyncio
import re
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from metal_bmc.drivers import errors
from metal_bmc.drivers.interface import Target
from metal_bmc.drivers.ipmi import IpmiDriver
from metal_bmc.drivers.sol import SolConsoles
from metal_bmc.rmcp import failures
from metal_bmc.rmcp.client import RmcpClient
from metal_bmc.rmcp.console import ConsoleLost, ConsoleTaken, Ears, Mode, SolConsole, Watch
from metal_bmc.rmcp.handshake import Login
from metal_bmc.rmcp.login import log_in
from metal_bmc.rmcp.messages import DEVICE_ID
from metal_bmc.rmcp.suites import SUITE_3, SUITE_17
from metal_bmc.rmcp.udp import UdpSocket
from peer_programs import needs

pytestmark = needs("ipmi_sim")

Eventually = Callable[..., Awaitable[None]]
PASSWORD = "peer-test"
LAN = """
name "bmc"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 {port}
    priv_limit admin
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "{script}"
  sol "telnet:127.0.0.1:{serial}" 115200
  user 2 true "metal" "{password}" admin 10 none md2 md5 straight
"""
COMMANDS = """
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02
sel_enable 0x20 1000 0x0a
mc_enable 0x20
"""
# Called as `get NAME…` or `set NAME VALUE…`; remembers values in files and every `set` in a log.
CHASSIS = """#!/bin/sh
cd "{directory}" || exit 1
action="$1"
shift
while [ $# -gt 0 ]; do
  if [ "$action" = get ]; then
    case "$1" in
      power) echo "power:$(cat power)";;
      boot) echo "boot:$(cat boot)";;
    esac
    shift
  else
    echo "$1 $2" >> log
    echo "$2" > "$1"
    shift $#
  fi
done
"""


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
async def chassis(tmp_path: Path) -> Path:
    """Where the machine's power, boot device and the log of what was set are kept."""
    directory = tmp_path / "chassis"
    directory.mkdir()
    for name, value in (("power", "0"), ("boot", "none"), ("log", "")):
        (directory / name).write_text(value)
    script = directory / "control"
    script.write_text(CHASSIS.format(directory=directory))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return directory


class SerialLine:
    """A machine's serial line, as a terminal server would offer it, that echoes what is typed."""

    def __init__(self) -> None:
        self.port = 0
        self.line: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.line = writer
        with suppress(ConnectionError):
            while data := await reader.read(4096):
                # What begins with 0xff is telnet's, three bytes each.
                writer.write(_TELNET.sub(b"", data))
        writer.close()


_TELNET = re.compile(rb"\xff..", re.DOTALL)


@pytest.fixture
async def serial() -> AsyncIterator[SerialLine]:
    line = SerialLine()
    server = await asyncio.start_server(line.serve, "127.0.0.1", 0)
    line.port = server.sockets[0].getsockname()[1]
    yield line
    server.close()


@pytest.fixture
async def bmc(tmp_path: Path, chassis: Path, serial: SerialLine) -> AsyncIterator[Target]:
    """A running ipmi_sim and how to log in."""
    port = free_port()
    config = LAN.format(port=port, script=chassis / "control", serial=serial.port, password=PASSWORD)
    (tmp_path / "lan.conf").write_text(config)
    (tmp_path / "commands").write_text(COMMANDS)
    (tmp_path / "state").mkdir()
    # It ends with its standard input, which is kept open.
    process = await asyncio.create_subprocess_exec(
        "ipmi_sim", "-n", "-c", "lan.conf", "-f", "commands", "-s", "state", cwd=tmp_path,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    yield Target("127.0.0.1", port, "metal", PASSWORD)
    process.kill()
    await process.wait()


async def test_power_is_switched_and_read_back(bmc: Target, chassis: Path, driver: IpmiDriver) -> None:
    assert not await driver.powered(bmc, deadline=20)
    await driver.set_power(bmc, on=True, deadline=20)
    assert await driver.powered(bmc, deadline=20)
    assert (chassis / "power").read_text().strip() == "1"
    await driver.reset(bmc, deadline=20)
    await driver.set_power(bmc, on=False, deadline=20)
    assert not await driver.powered(bmc, deadline=20)
    log = (chassis / "log").read_text().splitlines()
    assert [line.split()[0] for line in log] == ["power", "reset", "power"]


async def test_identity_is_read(bmc: Target, driver: IpmiDriver) -> None:
    info = await driver.inspect(bmc, deadline=30)
    assert (info.manufacturer_id, info.product_id) == (0x1291, 0xF02)
    assert info.machine
    assert not info.powered


async def test_a_hundred_logins_and_logouts_go_well(bmc: Target) -> None:
    udp = await UdpSocket.listen(socket.AF_INET)
    login = Login(bmc.host, bmc.port, bmc.user, bmc.password)
    loop = asyncio.get_running_loop()
    for _ in range(100):
        link = await log_in(udp, (bmc.host, bmc.port), login, give_up=loop.time() + 20)
        assert link.session.suite is SUITE_3
        assert (await link.ask(DEVICE_ID, waits=(1, 1), give_up=loop.time() + 5)).code == 0
        await link.close(give_up=loop.time() + 5)
    assert udp.waiting == 0
    udp.close()


async def test_its_serial_console_is_opened_typed_at_taken_over_and_given_back(
    bmc: Target, client: RmcpClient, serial: SerialLine, eventually: Eventually
) -> None:
    screen = bytearray()
    ears = Ears(screen.extend, lambda: None)
    consoles = SolConsoles(client, watch=Watch(silence=0.3, waits=(0.5, 0.5)))
    console = await consoles.open(bmc, ears, Mode(), deadline=20)
    assert isinstance(console, SolConsole)
    await console.type(b"0123456789" * 50)
    await eventually(lambda: bytes(screen) == b"0123456789" * 50)
    assert isinstance(await consoles.open(bmc, ears, Mode(), deadline=20), ConsoleTaken)
    second = await consoles.open(bmc, ears, Mode(take_over=True), deadline=20)
    assert isinstance(second, SolConsole)
    with pytest.raises(ConsoleLost, match="another session"):
        await asyncio.wait_for(console.keep(), 10)
    await console.close(give_back=False)
    screen.clear()
    assert serial.line is not None
    serial.line.write(b"still there")
    await eventually(lambda: bytes(screen) == b"still there")
    await second.close()
    third = await consoles.open(bmc, ears, Mode(), deadline=20)
    assert isinstance(third, SolConsole), "it was given back"
    await third.close()


async def test_it_refuses_suite_17_by_name(bmc: Target) -> None:
    udp = await UdpSocket.listen(socket.AF_INET)
    login = Login(bmc.host, bmc.port, bmc.user, bmc.password)
    give_up = asyncio.get_running_loop().time() + 20
    with pytest.raises(failures.SessionRefused, match="neither"):
        await log_in(udp, (bmc.host, bmc.port), login, give_up=give_up, suites=[SUITE_17])
    udp.close()


@pytest.mark.parametrize(("user", "password"), [("metal", "guess"), ("nobody", PASSWORD)])
async def test_a_wrong_login_is_refused(bmc: Target, driver: IpmiDriver, user: str, password: str) -> None:
    with pytest.raises(errors.BmcAuthFailed):
        await driver.powered(Target(bmc.host, bmc.port, user, password), deadline=20)
