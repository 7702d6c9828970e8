"""Where allocation orders power: inventory hears of it first, under its guard, and nobody else's machine is touched."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from metal_kit.errors import Unavailable
from metalplane.bmc.v1 import bmc_pb2

STRANGER = "01980000-0000-7000-8000-0000000000ff"


async def test_a_machine_that_installs_again_is_announced_before_it_is_rebooted(world: Any) -> None:
    await world.add_machines(1)
    allocation = await world.create()
    await world.reach(allocation.id, "installing")
    await world.fail_install(allocation)
    await world.eventually(lambda: "PXE_CYCLE" in world.story[allocation.id])
    assert world.story[allocation.id] == ["PLANNED_REBOOT", "PXE_CYCLE"]
    # The second failure is another reboot, and so another event.
    await world.eventually(lambda: installs_again(world, allocation.id, 1))
    await world.fail_install(allocation)
    await world.eventually(lambda: len(world.story[allocation.id]) == 4)
    assert world.story[allocation.id] == ["PLANNED_REBOOT", "PXE_CYCLE"] * 2


async def installs_again(world: Any, id_: str, times: int) -> bool:
    await world.hurry()
    query = "SELECT count(*) FROM timeline WHERE allocation = $1 AND reason = 'INSTALL_AGAIN'"
    return bool(await world.value(query, UUID(id_)) == times)


async def test_a_reboot_that_inventory_cannot_be_told_of_waits(world: Any) -> None:
    await world.add_machines(1)
    allocation = await world.create()
    await world.reach(allocation.id, "installing")
    world.faults["RecordEvents"] = [Unavailable("PEER_DOWN", "inventory is away")] * 3
    await world.fail_install(allocation)
    await world.eventually(lambda: used_up(world, "RecordEvents"))
    await world.eventually(lambda: installs_again(world, allocation.id, 1))
    assert world.story[allocation.id] == ["PLANNED_REBOOT", "PXE_CYCLE"]


async def used_up(world: Any, method: str) -> bool:
    await world.hurry()
    return not world.faults[method]


async def test_an_announcement_whose_answer_is_lost_is_one_event(world: Any) -> None:
    await world.add_machines(1)
    allocation = await world.create()
    await world.reach(allocation.id, "installing")
    world.faults["RecordEvents"] = ["lose"]
    world.faults["CreateCommand"] = ["lose"]
    await world.fail_install(allocation)
    await world.eventually(lambda: installs_again(world, allocation.id, 1))
    assert world.story[allocation.id] == ["PLANNED_REBOOT", "PXE_CYCLE"]


@pytest.mark.parametrize("holder", [STRANGER, ""])
async def test_a_machine_that_is_no_longer_bound_to_us_is_not_installed_again(world: Any, holder: str) -> None:
    [machine] = await world.add_machines(1)
    allocation = await world.create()
    await world.reach(allocation.id, "installing")
    world.machines[machine].ClearField("binding")
    if holder:
        world.machines[machine].binding.allocation = holder
    await world.fail_install(allocation)

    async def said() -> bool:
        await world.hurry()
        shown = await world.get(allocation.id)
        return any(each.reason == "BINDING_LOST" for each in shown.status.conditions)

    await world.eventually(said)
    assert world.story[allocation.id] == []


async def test_after_three_failures_the_allocation_holds_still_and_can_be_freed(world: Any) -> None:
    await world.add_machines(1)
    allocation = await world.create()
    await world.reach(allocation.id, "installing")
    for failure in range(1, 4):
        await world.fail_install(allocation)
        await world.eventually(lambda failure=failure: installs_again(world, allocation.id, failure))
    await world.fail_install(allocation)

    async def gave_up() -> bool:
        await world.hurry()
        shown = await world.get(allocation.id)
        return any(each.reason == "INSTALL_GAVE_UP" for each in shown.status.conditions)

    await world.eventually(gave_up)
    assert world.story[allocation.id].count("PXE_CYCLE") == 3
    await world.free(allocation.id)
    await world.reach(allocation.id, "released")
    await world.nothing_is_left(allocation.id)


async def test_a_bmc_that_is_away_for_a_while_does_not_use_up_the_attempts_to_install(world: Any) -> None:
    await world.add_machines(1)
    allocation = await world.create()
    await world.reach(allocation.id, "installing")
    world.bmc_fails = ["TIMEOUT"] * 4
    await world.fail_install(allocation)
    await world.eventually(lambda: installs_again(world, allocation.id, 1))
    await world.install(allocation)
    await world.reach(allocation.id, "starting")


async def test_a_freed_machine_is_announced_before_it_is_rebooted_once_for_all_attempts(world: Any) -> None:
    await world.add_machines(1)
    allocation = await world.create()
    await world.bring_to(allocation, "running")
    world.bmc_fails = ["SESSIONS_FULL", "TIMEOUT"]
    world.story.clear()
    await world.free(allocation.id)
    await world.reach(allocation.id, "released")
    assert world.story[allocation.id] == ["MACHINE_RECLAIM", "PXE_CYCLE", "PXE_CYCLE", "PXE_CYCLE"]


async def test_a_machine_on_a_dead_leaf_is_announced_and_switched_off_before_it_is_reclaimed(world: Any) -> None:
    await world.add_machines(1)
    allocation = await world.create()
    await world.bring_to(allocation, "running")
    world.leaves_answer = False
    world.story.clear()
    await world.free(allocation.id)
    await world.reach(allocation.id, "released")
    assert world.story[allocation.id] == ["PLANNED_REBOOT", "POWER_OFF", "MACHINE_RECLAIM", "PXE_CYCLE"]


async def test_a_machine_on_a_dead_leaf_is_switched_off_even_when_inventory_is_away(world: Any) -> None:
    await world.add_machines(1)
    allocation = await world.create()
    await world.bring_to(allocation, "running")
    world.leaves_answer = False
    world.story.clear()
    world.faults["RecordEvents"] = [Unavailable("PEER_DOWN", "inventory is away")]
    # Locked means inventory is asked in the request, not in the step: only the step's call fails.
    await world.free(allocation.id)
    await world.reach(allocation.id, "released")
    assert world.story[allocation.id] == ["POWER_OFF", "MACHINE_RECLAIM", "PXE_CYCLE"]


@pytest.mark.parametrize("leaves_answer", [True, False])
async def test_an_attachment_of_somebody_else_is_left_alone_and_ours_is_over(world: Any, leaves_answer: bool) -> None:
    [machine] = await world.add_machines(1)
    allocation = await world.create()
    await world.bring_to(allocation, "running")
    world.attachments[machine] = STRANGER
    world.machines[machine].binding.allocation = STRANGER
    world.leaves_answer = leaves_answer
    world.story.clear()
    await world.free(allocation.id)
    await world.reach(allocation.id, "released")
    assert world.attachments[machine] == STRANGER
    assert world.machines[machine].binding.allocation == STRANGER
    assert world.story[allocation.id] == [], "the other's machine was rebooted"
    assert allocation.id not in {*world.ips, *world.numbers}
    timeline = [line.reason for line in (await world.get(allocation.id)).status.timeline]
    assert "NOT_BOUND" in timeline


async def test_a_machine_that_fabric_gives_us_and_inventory_another_is_not_switched_off(world: Any) -> None:
    [machine] = await world.add_machines(1)
    allocation = await world.create()
    await world.bring_to(allocation, "running")
    world.machines[machine].binding.allocation = STRANGER
    world.leaves_answer = False
    world.story.clear()
    await world.free(allocation.id)
    await world.reach(allocation.id, "released")
    assert world.story[allocation.id] == []


async def test_a_machine_whose_binding_got_lost_is_still_sent_back(world: Any) -> None:
    [machine] = await world.add_machines(1)
    allocation = await world.create()
    await world.bring_to(allocation, "running")
    world.machines[machine].ClearField("binding")
    world.story.clear()
    await world.free(allocation.id)
    await world.reach(allocation.id, "released")
    assert world.story[allocation.id] == ["PXE_CYCLE"]


async def test_a_machine_that_has_vanished_everywhere_is_let_go_of(world: Any) -> None:
    [machine] = await world.add_machines(1)
    allocation = await world.create()
    await world.bring_to(allocation, "running")
    del world.machines[machine]
    world.uncabled.add(machine)
    world.without_bmc.add(machine)
    world.attachments.clear()
    await world.free(allocation.id)
    await world.reach(allocation.id, "released")
    await world.nothing_is_left(allocation.id)
    timeline = [line.reason for line in (await world.get(allocation.id)).status.timeline]
    assert "MACHINE_GONE" in timeline


async def test_a_machine_without_a_bmc_is_not_taken_for_reclaimed(world: Any) -> None:
    [machine] = await world.add_machines(1)
    allocation = await world.create()
    await world.bring_to(allocation, "running")
    world.without_bmc.add(machine)
    await world.free(allocation.id)

    async def said() -> bool:
        await world.hurry()
        return bool(await world.value("SELECT max(command_attempts) FROM allocation") >= 3)

    await world.eventually(said)
    shown = await world.get(allocation.id)
    assert any(each.reason == "BMC_UNKNOWN" for each in shown.status.conditions)
    assert await world.phase(allocation.id) == "reclaiming"
    assert world.ips[allocation.id], "the address is still the machine's"
    world.without_bmc.clear()
    await world.reach(allocation.id, "released")


async def test_a_bmc_that_cannot_set_the_boot_device_does_not_stop_an_allocation(world: Any) -> None:
    [machine] = await world.add_machines(1)
    world.without_boot_device.add(machine)
    allocation = await world.create()
    await world.bring_to(allocation, "starting")
    assert await condition(world, allocation.id, "BootOrderSet") == (False, "BMC_CANNOT")
    assert await world.value("SELECT count(*) FROM allocation WHERE command_attempts > 1") == 0


async def test_a_person_who_declines_to_set_the_boot_device_is_not_asked_again(world: Any) -> None:
    await world.add_machines(1)
    allocation = await world.create()
    world.bmc_fails = ["DECLINED"]
    await world.bring_to(allocation, "starting")
    assert await condition(world, allocation.id, "BootOrderSet") == (False, "DECLINED")
    assert world.story[allocation.id].count("BOOT_DISK") == 1


async def test_freeing_waits_for_the_person_who_is_to_send_the_machine_back(world: Any) -> None:
    [machine] = await world.add_machines(1)
    allocation = await world.create()
    await world.bring_to(allocation, "running")
    world.by_hand.add(machine)
    await world.free(allocation.id)
    await world.reach(allocation.id, "reclaiming")

    async def asked() -> bool:
        await world.hurry()
        return "PXE_CYCLE" in world.story[allocation.id]

    await world.eventually(asked)
    for _ in range(3):
        await world.hurry()
        assert await world.phase(allocation.id) == "reclaiming"
    assert world.story[allocation.id].count("PXE_CYCLE") == 1
    for command in world.requests.values():
        command.state = bmc_pb2.COMMAND_STATE_SUCCEEDED
    await world.reach(allocation.id, "released")
    assert world.story[allocation.id].count("PXE_CYCLE") == 1


async def condition(world: Any, allocation: str, name: str) -> tuple[bool, str]:
    """A condition's status and reason."""
    shown = await world.get(allocation)
    (found,) = (each for each in shown.status.conditions if each.type == name)
    return found.status, found.reason
