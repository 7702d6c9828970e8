"""The faults that a rack has, one at a time, through the whole plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from metalplane.inventory.v1 import machine_pb2 as inventory
from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceStub

if TYPE_CHECKING:
    from tests.e2e.conftest import World

pytestmark = pytest.mark.timeout(240)


async def test_a_machine_whose_disk_cannot_be_wiped_is_quarantined_loudly(world: World) -> None:
    await world.until_all_waiting()
    machine = world.machine_named("rack-1-m4")
    uuid = machine.placed.uuid
    await world.lab.fault("wipe-fails", "rack-1-m4", True)
    machine.bmc.chassis.control(3)

    async def quarantined() -> bool:
        found = await world.machine(uuid)
        return any(result.error for result in found.wipe_results) and not found.disks_clean

    await world.eventually(quarantined, seconds=60)
    stub = world.operator.stub(MachineServiceStub, "inventory")
    issues = await stub.ListMachineIssues(inventory.ListMachineIssuesRequest())
    assert [issue for issue in issues.issues if issue.machine == uuid and "quarantin" in issue.rule]
    assert not (await world.machine(uuid)).waiting

    await world.lab.fault("wipe-fails", "rack-1-m4", False)
    machine.bmc.chassis.control(3)
    await world.until_waiting(uuid)


async def test_an_installer_that_crashes_once_installs_in_the_end(world: World) -> None:
    await world.until_all_waiting()
    machine = world.machine_named("rack-1-m3")
    await world.lab.fault("crash-during-install", "rack-1-m3", True)
    made = await world.allocate(machine=machine.placed.uuid)

    running = await world.until_phase(made.id, "RUNNING", seconds=120)

    reasons = [line.message for line in running.status.timeline]
    assert any("unpack" in text for text in reasons), reasons
    await world.free(made.id)
    await world.until_phase(made.id, "RELEASED")
    await world.until_waiting(machine.placed.uuid)


async def test_a_system_that_is_silent_on_lldp_is_not_called_running(world: World) -> None:
    await world.until_all_waiting()
    machine = world.machine_named("rack-1-m2")
    made = await world.allocate(machine=machine.placed.uuid)
    await world.lab.fault("no-lldp", "rack-1-m2", True)
    starting = await world.until_phase(made.id, "STARTING")
    ready = next(each for each in starting.status.conditions if each.type == "Ready")
    assert not ready.status
    await world.lab.fault("no-lldp", "rack-1-m2", False)
    await world.until_phase(made.id, "RUNNING")
    await world.free(made.id)
    await world.until_phase(made.id, "RELEASED")
    await world.until_waiting(machine.placed.uuid)


async def test_a_machine_whose_installer_hears_no_lldp_is_nowhere_and_says_why(world: World) -> None:
    await world.until_all_waiting()
    machine = world.machine_named("rack-1-m2")
    uuid = machine.placed.uuid
    await world.lab.fault("no-lldp", "rack-1-m2", True)
    machine.bmc.chassis.control(3)
    stub = world.operator.stub(MachineServiceStub, "inventory")

    async def complains() -> bool:
        issues = await stub.ListMachineIssues(inventory.ListMachineIssuesRequest())
        return any(
            issue.machine == uuid and issue.rule == "no-cabling" and "NO_NEIGHBOURS" in issue.message
            for issue in issues.issues
        )

    await world.eventually(complains, seconds=60)
    nowhere = await world.machine(uuid)
    assert not nowhere.rack
    assert not nowhere.links

    await world.lab.fault("no-lldp", "rack-1-m2", False)
    machine.bmc.chassis.control(3)

    async def cabled() -> bool:
        return len((await world.machine(uuid)).links) == 2

    await world.eventually(cabled, seconds=60)
    assert not await complains()
    await world.until_waiting(uuid)


async def test_a_leaf_that_gets_its_power_back_has_its_links_again(world: World) -> None:
    await world.until_all_waiting()
    cable = world.machine_named("rack-1-m1").placed.cables[0]
    await world.lab.fault("leaf-dead", cable.leaf, True)
    assert not (await world.lab.port(cable.leaf, cable.port))["up"]
    await world.lab.fault("leaf-dead", cable.leaf, False)
    assert (await world.lab.port(cable.leaf, cable.port))["up"]
    await world.until_all_waiting()


async def test_a_free_does_not_go_on_while_the_bmc_is_silent(world: World) -> None:
    await world.until_all_waiting()
    machine = world.machine_named("rack-1-m1")
    made = await world.allocate(machine=machine.placed.uuid)
    await world.until_phase(made.id, "RUNNING")
    await world.lab.fault("bmc-hangs", "rack-1-m1", True)
    await world.free(made.id)
    held = await world.until_phase(made.id, "RECLAIMING")

    async def says_why() -> bool:
        conditions = (await world.allocation(made.id)).status.conditions
        ready = next(each for each in conditions if each.type == "Ready")
        return ready.reason not in {"FENCED", "COMMAND_RUNNING", "RECLAIMING"}

    await world.eventually(says_why, seconds=90)
    assert held.status.networks, "what it owns is not released before the machine is known to be gone"
    assert (await world.machine(machine.placed.uuid)).binding.allocation == made.id

    await world.lab.fault("bmc-hangs", "rack-1-m1", False)
    await world.until_phase(made.id, "RELEASED", seconds=150)
    await world.until_waiting(machine.placed.uuid)


async def test_with_a_dead_leaf_a_machine_is_fenced_by_its_power(world: World) -> None:
    await world.until_all_waiting()
    machine = world.machine_named("rack-1-m1")
    made = await world.allocate(machine=machine.placed.uuid)
    await world.until_phase(made.id, "RUNNING")
    await world.lab.fault("leaf-dead", "leaf2", True)
    await world.free(made.id)

    released = await world.until_phase(made.id, "RELEASED", seconds=150)

    fenced = next(each for each in released.status.conditions if each.type == "Fenced")
    assert fenced.status
    assert fenced.reason == "POWERED_OFF"
    await world.lab.fault("leaf-dead", "leaf2", False)
    machine.bmc.chassis.control(3)
    await world.until_waiting(machine.placed.uuid, seconds=120)
