"""Our Redfish driver against a foreign BMC: sushy-tools' emulator with its fake machines, over TLS, in its own process.

It has no sessions, no entity tags, reports `Once` as `Continuous`, and takes its time to switch.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import bcrypt
import pytest
from metal_bmc.drivers import errors
from metal_bmc.drivers.interface import BootMode, BootSetting, BootTarget, BootWish, Capability, DriverKind, Target
from metal_bmc.drivers.redfish import RedfishDriver
from metal_sim.redfish.certificate import self_signed

pytestmark = pytest.mark.peer

Eventually = Callable[..., Awaitable[None]]
MACHINE = str(uuid.uuid4())
PASSWORD = "peer-test"
CONFIG = """
SUSHY_EMULATOR_FAKE_DRIVER = True
SUSHY_EMULATOR_LISTEN_IP = "127.0.0.1"
SUSHY_EMULATOR_LISTEN_PORT = {port}
SUSHY_EMULATOR_SSL_CERT = "{directory}/crt"
SUSHY_EMULATOR_SSL_KEY = "{directory}/key"
SUSHY_EMULATOR_AUTH_FILE = "{directory}/htpasswd"
SUSHY_EMULATOR_STATE_DIR = "{directory}"
SUSHY_EMULATOR_FAKE_SYSTEMS = [
    {{"uuid": "{machine}", "name": "peer", "power_state": "Off", "external_notifier": False, "nics": []}}
]
"""
# A machine of the emulator takes 1 to 11 s to switch, at random. The shortest will do.
PROGRAM = "import random; random.randint = min; from sushy_tools.emulator import main; main.main()"


@pytest.fixture(scope="module")
async def emulator(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    """A running emulator and how to log in."""
    directory: Path = tmp_path_factory.mktemp("sushy")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
    identity = self_signed("emulator")
    (directory / "crt").write_bytes(identity.certificate)
    (directory / "key").write_bytes(identity.key)
    sealed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4, prefix=b"2b")).decode()
    (directory / "htpasswd").write_text(f"metal:$2y{sealed.removeprefix('$2b')}\n")
    config = directory / "config"
    config.write_text(CONFIG.format(port=port, directory=directory, machine=MACHINE))
    with (directory / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, "--config", str(config), stdout=log, stderr=log
        )
    await _listening(port, process, directory / "log")
    yield Target("127.0.0.1", port, "metal", PASSWORD, driver=DriverKind.REDFISH, fingerprint=identity.fingerprint)
    process.kill()
    await process.wait()


async def _listening(port: int, process: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(30):
        while True:
            assert process.returncode is None, await asyncio.to_thread(log.read_text)
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


async def test_power_is_switched_and_read_back(
    emulator: Target, redfish: RedfishDriver, eventually: Eventually
) -> None:
    assert not await redfish.powered(emulator, deadline=20)
    with pytest.raises(errors.BmcRefused, match="off"):
        await redfish.reset(emulator, deadline=20)
    for on in (True, False, True):
        await redfish.set_power(emulator, on=on, deadline=20)

        async def switched(on: bool = on) -> bool:
            return await redfish.powered(emulator, deadline=20) is on

        await eventually(switched)
    await redfish.reset(emulator, deadline=20)
    # It shows a reset as off and, later, on.
    await eventually(lambda: redfish.powered(emulator, deadline=20))


async def test_the_boot_override_is_set_and_read_back(emulator: Target, redfish: RedfishDriver) -> None:
    for wish in (BootWish(BootTarget.PXE), BootWish(BootTarget.DISK, mode=BootMode.UEFI)):
        setting = await redfish.set_boot(emulator, wish, deadline=20)
        assert setting == BootSetting(wish.target, persistent=True, mode=BootMode.UEFI)
    once = await redfish.set_boot(emulator, BootWish(BootTarget.PXE, persistent=False), deadline=20)
    assert once == BootSetting(BootTarget.PXE, persistent=True, mode=BootMode.UEFI)
    with pytest.raises(errors.BmcUnsupported, match="BiosSetup"):
        await redfish.set_boot(emulator, BootWish(BootTarget.BIOS, persistent=False), deadline=20)


async def test_the_identify_light_is_read_back(emulator: Target, redfish: RedfishDriver) -> None:
    assert await redfish.set_identify(emulator, on=True, deadline=20) is True
    assert await redfish.set_identify(emulator, on=False, deadline=20) is False


async def test_it_says_who_it_is_and_what_it_can_do(emulator: Target, redfish: RedfishDriver) -> None:
    info = await redfish.inspect(emulator, deadline=20)
    assert (info.machine, info.firmware) == (MACHINE, "1.00")
    assert info.fru["Manufacturer"] == "Sushy Emulator"
    assert info.capabilities >= {Capability.POWER_ON, Capability.POWER_RESET, Capability.BOOT_UEFI, Capability.IDENTIFY}
    assert info.fingerprint == emulator.fingerprint != hashlib.sha256(b"").digest()


async def test_a_wrong_password_is_refused(emulator: Target, redfish: RedfishDriver) -> None:
    wrong = Target(emulator.host, emulator.port, "metal", "guess", fingerprint=emulator.fingerprint)
    with pytest.raises(errors.BmcAuthFailed):
        await redfish.powered(wrong, deadline=20)


async def test_another_certificate_is_not_trusted(emulator: Target, redfish: RedfishDriver) -> None:
    other = Target(emulator.host, emulator.port, "metal", PASSWORD, fingerprint=self_signed("other").fingerprint)
    with pytest.raises(errors.BmcUntrusted):
        await redfish.powered(other, deadline=20)
