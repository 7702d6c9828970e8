"""What operators do to the power of machines that wait is no crash loop (inventory hears of it beforehand)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from metalplane.bmc.v1 import bmc_pb2 as bmc
from metalplane.bmc.v1.bmc_pb2_grpc import BmcServiceStub
from metalplane.inventory.v1 import machine_pb2 as inventory
from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceStub

if TYPE_CHECKING:
    from tests.e2e.conftest import World

pytestmark = pytest.mark.timeout(240)
WAITING = inventory.PROVISIONING_EVENT_TYPE_WAITING
PLANNED_REBOOT = inventory.PROVISIONING_EVENT_TYPE_PLANNED_REBOOT


async def events(world: World, machine: str, after: int = 0) -> list[inventory.ProvisioningEvent]:
    """The events of a machine after that number, oldest first."""
    stub = world.operator.stub(MachineServiceStub, "inventory")
    answer = await stub.ListMachineEvents(inventory.ListMachineEventsRequest(machine=machine, page_size=100))
    return sorted((e for e in answer.events if e.sequence > after), key=lambda event: event.sequence)


async def give(world: World, machine: str, action: str) -> None:
    """Give a command and wait until it has succeeded."""
    stub = world.operator.stub(BmcServiceStub, "bmc")
    number = bmc.CommandAction.Value(f"COMMAND_ACTION_{action}")
    given = await stub.CreateCommand(bmc.CreateCommandRequest(machine=machine, action=number))

    async def ended() -> bool:
        command = await stub.GetCommand(bmc.GetCommandRequest(id=given.id))
        assert command.state not in (bmc.COMMAND_STATE_FAILED, bmc.COMMAND_STATE_EXPIRED), command.reason
        return command.state == bmc.COMMAND_STATE_SUCCEEDED

    await world.eventually(ended, seconds=60, what=f"{action} of {machine}")


@pytest.mark.parametrize("actions", [["RESET"], ["PXE_CYCLE"], ["POWER_OFF", "POWER_ON"]], ids="+".join)
async def test_a_waiting_machine_that_an_operator_restarts_waits_again_without_alarm(
    world: World, actions: list[str]
) -> None:
    await world.until_all_waiting()
    machine = world.machine_named("rack-1-m2").placed.uuid
    error_before = (await world.machine(machine)).lifecycle.last_error
    before = (await events(world, machine))[-1].sequence

    for action in actions:
        await give(world, machine, action)

    async def waits_anew() -> bool:
        return any(event.type == WAITING for event in await events(world, machine, before))

    await world.eventually(waits_anew, seconds=60)
    found = await world.until_waiting(machine)
    story = await events(world, machine, before)
    assert story[0].type == PLANNED_REBOOT
    assert sum(event.type == PLANNED_REBOOT for event in story) == 1
    assert not [event.message for event in story if "unexpectedly" in event.message]
    assert not found.lifecycle.crash_loop
    assert found.lifecycle.last_error == error_before


async def test_a_machine_that_is_reset_tells_on_its_console_what_it_does(world: World) -> None:
    await world.until_all_waiting()
    machine = world.machine_named("rack-1-m2").placed.uuid
    console = world.operator.stub(BmcServiceStub, "bmc").Console()
    await console.write(bmc.ConsoleRequest(open=bmc.ConsoleOpen(machine=machine, read_only=True)))
    assert (await console.read()).status.event == bmc.CONSOLE_EVENT_OPENED
    await give(world, machine, "RESET")
    printed = b""
    async with asyncio.timeout(60):
        while b"[rack-1-m2] installer" not in printed:
            printed += (await console.read()).data
    assert printed.index(b"self test") < printed.index(b"PXE") < printed.index(b"installer")
    console.cancel()
    await world.until_waiting(machine)
