"""Our client against a foreign BMC: pyghmi's own, in a process of its own.

Whatever cipher suite it is asked for, it says "success" with the algorithms of suite 3, so it shows what our client
does with an answer to 17 that lies. Its sessions are never freed; each test has a BMC of its own.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator

import pytest
from metal_bmc.drivers import errors
from metal_bmc.drivers.interface import BootMode, BootTarget, BootWish, Target
from metal_bmc.drivers.ipmi import IpmiDriver
from metal_bmc.rmcp import failures
from metal_bmc.rmcp.client import RmcpClient
from metal_bmc.rmcp.handshake import Login
from metal_bmc.rmcp.login import log_in
from metal_bmc.rmcp.suites import SUITE_3, SUITE_17
from metal_bmc.rmcp.udp import UdpSocket

pytestmark = pytest.mark.peer

PASSWORD = "peer-test"
BMC = """
import sys
from pyghmi.ipmi import bmc

class Machine(bmc.Bmc):
    power, boot = "off", "default"

    def get_power_state(self):
        return self.power

    def power_on(self):
        self.power = "on"

    def power_off(self):
        self.power = "off"

    def power_reset(self):
        print("reset", flush=True)

    def get_boot_device(self):
        return self.boot

    def set_boot_device(self, device):
        self.boot = device

machine = Machine({"metal": sys.argv[2]}, port=int(sys.argv[1]), address="127.0.0.1")
print("up", flush=True)
machine.listen()
"""


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
async def process() -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    port = free_port()
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BMC, str(port), PASSWORD, stdout=asyncio.subprocess.PIPE
    )
    assert started.stdout is not None
    assert await asyncio.wait_for(started.stdout.readline(), 30) == b"up\n"
    yield started, port
    if started.returncode is None:
        started.kill()
    await started.wait()


@pytest.fixture
def bmc(process: tuple[asyncio.subprocess.Process, int]) -> Target:
    """How to log in to it."""
    return Target("127.0.0.1", process[1], "metal", PASSWORD)


async def test_power_is_switched_reset_and_read_back(
    bmc: Target, driver: IpmiDriver, client: RmcpClient, process: tuple[asyncio.subprocess.Process, int]
) -> None:
    assert not await driver.powered(bmc, deadline=20)
    await driver.set_power(bmc, on=True, deadline=20)
    assert await driver.powered(bmc, deadline=20)
    await driver.reset(bmc, deadline=20)
    assert process[0].stdout is not None
    assert await asyncio.wait_for(process[0].stdout.readline(), 10) == b"reset\n"
    await driver.set_power(bmc, on=False, deadline=20)
    assert not await driver.powered(bmc, deadline=20)
    assert client.sessions == 1


async def test_the_boot_device_is_set_and_what_it_forgets_is_seen(bmc: Target, driver: IpmiDriver) -> None:
    setting = await driver.set_boot(bmc, BootWish(BootTarget.PXE), deadline=20)
    # It keeps the device, and neither that it is for good nor that it is for UEFI.
    assert (setting.target, setting.persistent, setting.mode) == (BootTarget.PXE, False, BootMode.BIOS)


async def test_an_answer_to_suite_17_that_means_3_is_refused_and_3_is_asked_for(bmc: Target) -> None:
    udp = await UdpSocket.listen(socket.AF_INET)
    login = Login(bmc.host, bmc.port, bmc.user, bmc.password)
    give_up = asyncio.get_running_loop().time() + 20
    with pytest.raises(failures.SessionRefused, match="neither"):
        await log_in(udp, (bmc.host, bmc.port), login, give_up=give_up, suites=[SUITE_17])
    link = await log_in(udp, (bmc.host, bmc.port), login, give_up=give_up)
    assert link.session.suite is SUITE_3
    await link.close(give_up=give_up)
    assert udp.waiting == 0
    udp.close()


async def test_identify_is_not_known_there_and_no_silent_success(bmc: Target, driver: IpmiDriver) -> None:
    with pytest.raises(errors.BmcUnsupported):
        await driver.set_identify(bmc, on=True, deadline=20)


async def test_a_wrong_password_is_found_out_by_us(bmc: Target, driver: IpmiDriver, client: RmcpClient) -> None:
    with pytest.raises(errors.BmcAuthFailed):
        await driver.powered(Target(bmc.host, bmc.port, bmc.user, "guess"), deadline=20)
    assert client.sessions == 0


async def test_an_unknown_user_meets_silence(bmc: Target, driver: IpmiDriver) -> None:
    with pytest.raises(errors.BmcTimeout):
        await driver.powered(Target(bmc.host, bmc.port, "nobody", PASSWORD), deadline=2)
