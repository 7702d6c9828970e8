"""Inventory hears of a reboot before it happens, or it would take what the machine does next for a crash loop."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from metal_sim.bmc import ChassisControl, PowerAction, SimulatedBmc
from metalplane.bmc.v1 import bmc_pb2 as pb
from metalplane.inventory.v1.machine_pb2 import PROVISIONING_EVENT_TYPE_PLANNED_REBOOT
from structlog.testing import capture_logs

NewBmc = Callable[..., Awaitable[SimulatedBmc]]
Eventually = Callable[..., Awaitable[None]]
UNANNOUNCED = "bmc.reboot.unannounced"


@pytest.fixture
async def bmc(plane: Any, new_bmc: NewBmc) -> SimulatedBmc:
    """A registered BMC of a machine that is on, at a running service that waits for inventory for a second."""
    await plane.start(announce_seconds=1)
    simulated = await new_bmc(powered=True)
    await plane.register(simulated)
    return simulated


def state(command: pb.Command) -> str:
    return pb.CommandState.Name(command.state).removeprefix("COMMAND_STATE_")


@pytest.mark.parametrize("action", ["RESET", "CYCLE", "POWER_OFF", "PXE_CYCLE"])
async def test_a_reboot_is_announced_once_and_before_it_happens(action: str, plane: Any, bmc: SimulatedBmc) -> None:
    done_before: list[list[PowerAction]] = []

    async def note() -> None:
        done_before.append(list(bmc.chassis.history))

    plane.inventory.before_events = note
    command = await plane.command(bmc, action)
    assert state(command) == "SUCCEEDED"
    ((machine, event),) = plane.inventory.events
    assert (machine, event.type) == (bmc.machine, PROVISIONING_EVENT_TYPE_PLANNED_REBOOT)
    assert uuid.UUID(event.id).version == 5
    assert command.id in event.message
    assert done_before == [[]]
    assert bmc.chassis.history


async def test_two_commands_are_two_events(plane: Any, bmc: SimulatedBmc) -> None:
    await plane.command(bmc, "RESET")
    await plane.command(bmc, "RESET")
    assert len({event.id for _, event in plane.inventory.events}) == 2


@pytest.mark.parametrize("action", ["POWER_ON", "BOOT_PXE", "BOOT_DISK", "IDENTIFY_ON"])
async def test_what_reboots_nothing_is_not_announced(action: str, plane: Any, bmc: SimulatedBmc) -> None:
    assert state(await plane.command(bmc, action)) == "SUCCEEDED"
    assert plane.inventory.events == []


@pytest.mark.parametrize("action", ["RESET", "CYCLE", "POWER_OFF", "PXE_CYCLE"])
async def test_an_allocation_announces_its_own_reboots(action: str, plane: Any, bmc: SimulatedBmc) -> None:
    assert state(await plane.command(bmc, action, allocation=str(uuid.uuid4()))) == "SUCCEEDED"
    assert plane.inventory.events == []


@pytest.mark.parametrize(("action", "announced"), [("RESET", 0), ("POWER_OFF", 0), ("CYCLE", 1), ("PXE_CYCLE", 1)])
async def test_a_machine_that_is_off_has_a_reboot_ahead_only_if_it_is_switched_on(
    action: str, announced: int, plane: Any, bmc: SimulatedBmc
) -> None:
    bmc.chassis.machine_powered_off()
    await plane.command(bmc, action)
    assert len(plane.inventory.events) == announced


@pytest.mark.parametrize("fault", ["hang", "wrong-password"])
async def test_a_bmc_that_cannot_be_asked_announces_nothing(fault: str, plane: Any, bmc: SimulatedBmc) -> None:
    bmc.faults.switch_on(fault)
    timeout = pb.CreateCommandRequest().timeout
    timeout.seconds = 4
    assert state(await plane.command(bmc, "RESET", timeout=timeout)) == "FAILED"
    assert plane.inventory.events == []


async def test_an_inventory_that_is_away_holds_a_command_up_for_a_moment_and_is_named(
    plane: Any, bmc: SimulatedBmc
) -> None:
    plane.inventory.away = True
    started = time.monotonic()
    with capture_logs() as lines:
        command = await plane.command(bmc, "RESET")
    assert state(command) == "SUCCEEDED"
    # How long exactly is jitter's: another try that would come too late is not waited for.
    assert plane.inventory.turned_away >= 2
    assert time.monotonic() - started < 10
    (line,) = [line for line in lines if line["event"] == UNANNOUNCED]
    assert (line["machine"], line["command"], line["cause"]) == (bmc.machine, command.id, "RESTARTING")
    assert bmc.chassis.history == [PowerAction.RESET]


async def test_an_inventory_that_does_not_answer_is_not_waited_for(plane: Any, bmc: SimulatedBmc) -> None:
    async def hang() -> None:
        await asyncio.sleep(60)

    plane.inventory.before_events = hang
    with capture_logs() as lines:
        assert state(await plane.command(bmc, "RESET")) == "SUCCEEDED"
    assert [line["cause"] for line in lines if line["event"] == UNANNOUNCED] == ["TRANSPORT_DEADLINE_EXCEEDED"]


async def test_a_short_command_keeps_most_of_its_time_for_the_bmc(plane: Any, new_bmc: NewBmc) -> None:
    await plane.start(announce_seconds=60)
    bmc = await new_bmc(powered=True)
    await plane.register(bmc)
    plane.inventory.away = True
    timeout = pb.CreateCommandRequest().timeout
    timeout.seconds = 6
    assert state(await plane.command(bmc, "RESET", timeout=timeout)) == "SUCCEEDED"


async def test_an_inventory_that_comes_back_in_time_still_hears_of_it(
    plane: Any, new_bmc: NewBmc, eventually: Eventually
) -> None:
    await plane.start(announce_seconds=60)
    bmc = await new_bmc(powered=True)
    await plane.register(bmc)
    plane.inventory.away = True
    given = await plane.stub("").CreateCommand(
        pb.CreateCommandRequest(machine=bmc.machine, action=pb.COMMAND_ACTION_RESET)
    )
    await eventually(lambda: plane.inventory.turned_away >= 2)
    plane.inventory.away = False
    assert state(await plane.ended(given.id)) == "SUCCEEDED"
    assert len(plane.inventory.events) == 1


async def test_an_announcement_that_is_repeated_has_the_same_id(
    plane: Any, bmc: SimulatedBmc, eventually: Eventually
) -> None:
    async def die() -> None:
        """The service is killed while inventory answers."""
        plane.inventory.before_events = None
        await asyncio.sleep(30)

    plane.inventory.before_events = die
    given = await plane.stub("").CreateCommand(
        pb.CreateCommandRequest(machine=bmc.machine, action=pb.COMMAND_ACTION_CYCLE)
    )
    await eventually(lambda: plane.inventory.events)
    await plane.running.stop(0)
    assert bmc.chassis.history == []
    await plane.start()
    assert state(await plane.ended(given.id)) == "SUCCEEDED"
    first, second = (event.id for _, event in plane.inventory.events)
    assert first == second


async def test_enforcing_power_off_is_announced_once(plane: Any, new_bmc: NewBmc, eventually: Eventually) -> None:
    await plane.start()
    bmc = await new_bmc(powered=True)
    bmc.faults.switch_on("does-nothing")
    await plane.register(bmc, desired_power=pb.POWER_OFF)
    # Ordered in vain, and then again with success.
    await eventually(lambda: bmc.seen[0, 2] >= 2, seconds=30)
    bmc.faults.clear()
    await eventually(lambda: not bmc.chassis.powered, seconds=30)
    assert {(machine, event.type) for machine, event in plane.inventory.events} == {
        (bmc.machine, PROVISIONING_EVENT_TYPE_PLANNED_REBOOT)
    }
    assert len({event.id for _, event in plane.inventory.events}) == 1


async def test_power_off_that_is_enforced_again_is_announced_again(
    plane: Any, new_bmc: NewBmc, eventually: Eventually
) -> None:
    await plane.start(poll_seconds=0.2)
    bmc = await new_bmc(powered=True)
    await plane.register(bmc, desired_power=pb.POWER_OFF)
    await eventually(lambda: not bmc.chassis.powered)
    await eventually(lambda: plane.rows("SELECT FROM endpoint WHERE NOT reported_on"))
    assert bmc.chassis.control(ChassisControl.ON)
    await eventually(lambda: not bmc.chassis.powered)
    assert len({event.id for _, event in plane.inventory.events}) == 2


async def test_enforcing_power_on_announces_nothing(plane: Any, new_bmc: NewBmc, eventually: Eventually) -> None:
    await plane.start()
    bmc = await new_bmc()
    await plane.register(bmc, desired_power=pb.POWER_ON)
    await eventually(lambda: bmc.chassis.powered)
    assert plane.inventory.events == []


async def test_without_an_inventory_commands_work(plane: Any, new_bmc: NewBmc) -> None:
    del plane.peers["inventory"]
    await plane.start()
    bmc = await new_bmc(powered=True)
    await plane.register(bmc)
    assert state(await plane.command(bmc, "RESET")) == "SUCCEEDED"
