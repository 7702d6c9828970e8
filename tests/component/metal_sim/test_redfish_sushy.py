"""The simulated Redfish BMCs are real enough for sushy, which others wrote for Ironic."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import pytest
import sushy
from metal_sim.bmc import PowerAction
from metal_sim.redfish import PERSONALITIES, RedfishFarm, SimulatedRedfish
from sushy import exceptions

pytestmark = pytest.mark.peer

PASSWORD = "peer-test"
# It looks at the list of what a BMC offers, and takes "no list" for everything.
MAKES = ["plain", "strict", "weak", "old", "basic"]
_T = TypeVar("_T")


@pytest.fixture(params=MAKES)
async def bmc(request: pytest.FixtureRequest) -> AsyncIterator[SimulatedRedfish]:
    """One of each make."""
    made = SimulatedRedfish(str(uuid.uuid4()), password=PASSWORD, personality=PERSONALITIES[request.param])
    await made.start()
    yield made
    await made.stop()


async def drive(bmc: SimulatedRedfish, work: Callable[[Any], _T], *, password: str = PASSWORD) -> _T:
    """Let sushy, which blocks, work in a thread; logged in by a session where there are any."""

    def run() -> _T:
        with _connected(bmc, password) as root:
            return work(root)

    return await asyncio.wait_for(asyncio.to_thread(run), 60)


@contextmanager
def _connected(bmc: SimulatedRedfish, password: str) -> Any:
    kind = sushy.auth.SessionAuth if bmc.state.personality.sessions else sushy.auth.BasicAuth
    with kind(bmc.user, password) as login:
        yield sushy.Sushy(f"https://{bmc.address[0]}:{bmc.address[1]}/redfish/v1/", auth=login, verify=False)


def machine(root: Any) -> Any:
    """The only machine."""
    (found,) = root.get_system_collection().get_members()
    return found


async def test_sushy_switches_power(bmc: SimulatedRedfish) -> None:
    def work(root: Any) -> list[Any]:
        system, seen = machine(root), []
        for order in (sushy.RESET_TYPE_ON, sushy.RESET_TYPE_FORCE_RESTART, sushy.RESET_TYPE_FORCE_OFF):
            system.reset_system(order)
            system.refresh(force=True)
            seen.append(system.power_state)
        return seen

    assert await drive(bmc, work) == [sushy.POWER_STATE_ON, sushy.POWER_STATE_ON, sushy.POWER_STATE_OFF]
    assert bmc.chassis.history == [PowerAction.ON, PowerAction.RESET, PowerAction.OFF]
    assert len(bmc.sessions) == 0


async def test_sushy_sets_the_boot_override(bmc: SimulatedRedfish) -> None:
    modes = bmc.state.personality.modes

    def work(root: Any) -> tuple[Any, Any]:
        system = machine(root)
        system.set_system_boot_options(
            target=sushy.BOOT_SOURCE_TARGET_PXE,
            enabled=sushy.BOOT_SOURCE_ENABLED_ONCE,
            mode=sushy.BOOT_SOURCE_MODE_UEFI if modes else None,
        )
        system.refresh(force=True)
        return system.boot.target, system.boot.enabled

    lasting = bmc.state.personality.once_reads_continuous
    expected = sushy.BOOT_SOURCE_ENABLED_CONTINUOUS if lasting else sushy.BOOT_SOURCE_ENABLED_ONCE
    assert await drive(bmc, work) == (sushy.BOOT_SOURCE_TARGET_PXE, expected)
    assert bmc.chassis.flags.hex() == "a004000000"


async def test_sushy_switches_the_identify_light(bmc: SimulatedRedfish) -> None:
    def work(root: Any) -> None:
        (case,) = root.get_chassis_collection().get_members()
        (case if bmc.state.personality.light_on_chassis else machine(root)).set_indicator_led(sushy.INDICATOR_LED_LIT)

    await drive(bmc, work)
    assert bmc.chassis.identify_state() == 2


async def test_sushy_reads_who_it_is_and_what_it_measures(bmc: SimulatedRedfish) -> None:
    def work(root: Any) -> tuple[Any, ...]:
        system = machine(root)
        (manager,) = root.get_manager_collection().get_members()
        (case,) = root.get_chassis_collection().get_members()
        newer = bmc.state.personality.newer
        supplies = [] if newer else [each.name for each in case.power.power_supplies]
        return system.uuid, manager.firmware_version, case.chassis_type, supplies

    newer = bmc.state.personality.newer
    supplies = [] if newer else ["PSU 1", "PSU 2"]
    assert await drive(bmc, work) == (bmc.machine, "1.20", sushy.CHASSIS_TYPE_RACK_MOUNT, supplies)


async def test_sushy_is_told_that_a_password_is_wrong(bmc: SimulatedRedfish) -> None:
    with pytest.raises(exceptions.AccessError):
        await drive(bmc, machine, password="guess")
    assert bmc.logins.failed > 0


@pytest.fixture
async def farm() -> AsyncIterator[RedfishFarm]:
    """A few BMCs on addresses of their own."""
    made = RedfishFarm(3, first="127.7.0.1", password=PASSWORD, session_limit=2)
    await made.start()
    yield made
    await made.stop()


async def test_sushy_comes_to_the_limit_of_sessions(farm: RedfishFarm) -> None:
    first, *others = farm
    for _ in range(2):
        first.sessions.open()
    with pytest.raises(exceptions.HTTPError) as caught:
        await drive(first, machine)
    assert "SessionLimitExceeded" in str(caught.value.code)
    for bmc in others:
        assert (await drive(bmc, machine)).uuid == bmc.machine
    assert farm.open_sessions == 2


async def test_sushy_follows_an_update_through_the_restart_of_the_bmc(farm: RedfishFarm) -> None:
    bmc = farm.bmcs[0]

    def work(root: Any) -> tuple[bool, str]:
        monitor = root.get_update_service().simple_update("https://images.example/bmc-1.21.bin")
        was_processing = monitor.is_processing
        # The BMC cuts the connection when it restarts with its new firmware, and knows of no task afterwards.
        lost = (exceptions.ConnectionError, exceptions.ResourceNotFoundError, exceptions.AccessError)
        while bmc.state.firmware["BMC"] != "1.21":
            with suppress(*lost):
                monitor.refresh()
        (manager,) = root.get_manager_collection().get_members()
        return was_processing, manager.firmware_version

    assert await drive(bmc, work) == (True, "1.21")
