"""Who may have a machine: the compare-and-set, administrative states, deletion."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from metal_kit.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unavailable
from metalplane.inventory.v1 import machine_pb2 as pb

M1 = "00000001-0051-3510-8052-b4c04f4e3132"
M2 = "00000002-0051-3510-8052-b4c04f4e3132"
PROJECT = "0198c1d2-0000-7000-8000-000000000001"


def ids(count: int) -> list[str]:
    return [str(uuid4()) for _ in range(count)]


async def test_of_many_concurrent_binds_exactly_one_wins(inventory: Any) -> None:
    await inventory.replica()
    await inventory.waiting(M1)
    wanted = ids(20)
    results = await asyncio.gather(*(inventory.bind(M1, each, PROJECT) for each in wanted), return_exceptions=True)
    winners = [each.binding.allocation for each in results if isinstance(each, pb.Machine)]
    assert len(winners) == 1
    refused = [each.reason for each in results if isinstance(each, FailedPrecondition)]
    assert refused == ["MACHINE_BOUND_TO_OTHER"] * 19
    machine = await inventory.get(M1)
    assert (machine.binding.allocation, machine.binding.project) == (winners[0], PROJECT)
    assert not machine.waiting


async def test_binding_again_for_the_same_allocation_changes_nothing(inventory: Any) -> None:
    await inventory.waiting(M1)
    [allocation] = ids(1)
    first = await inventory.bind(M1, allocation, PROJECT)
    assert await inventory.bind(M1, allocation, PROJECT) == first


async def test_an_allocation_has_one_machine_at_most(inventory: Any) -> None:
    await inventory.waiting(M1)
    await inventory.waiting(M2)
    [allocation] = ids(1)
    results = await asyncio.gather(
        *(inventory.bind(machine, allocation, PROJECT) for machine in (M1, M2)), return_exceptions=True
    )
    [problem] = [each for each in results if isinstance(each, Exception)]
    assert isinstance(problem, FailedPrecondition)
    assert problem.reason == "ALLOCATION_HAS_MACHINE"
    assert len(await inventory.sql("SELECT 1 FROM machine WHERE allocation_id IS NOT NULL")) == 1


@pytest.mark.parametrize("named", [False, True])
async def test_a_locked_machine_is_refused_even_when_named(inventory: Any, named: bool) -> None:
    """L22."""
    await inventory.waiting(M1)
    await inventory.set_state(M1, "LOCKED", "evidence")
    with pytest.raises(FailedPrecondition, match="MACHINE_LOCKED"):
        await inventory.bind(M1, *ids(1), PROJECT, allow_tainted=named)


@pytest.mark.parametrize("named", [False, True])
async def test_a_machine_that_does_not_wait_is_refused_even_when_named(inventory: Any, named: bool) -> None:
    """L22."""
    await inventory.report(M1, "PXE_BOOTING", "PREPARING", "REGISTERING")
    await inventory.wipe(await inventory.register(M1))
    with pytest.raises(FailedPrecondition, match="MACHINE_NOT_WAITING"):
        await inventory.bind(M1, *ids(1), PROJECT, allow_tainted=named)


async def test_a_tainted_machine_is_only_given_to_those_who_name_it(inventory: Any) -> None:
    await inventory.waiting(M1)
    await inventory.set_state(M1, "TAINTED", "odd noises")
    with pytest.raises(FailedPrecondition, match="MACHINE_TAINTED"):
        await inventory.bind(M1, *ids(1), PROJECT)
    assert (await inventory.bind(M1, *ids(1), PROJECT, allow_tainted=True)).HasField("binding")


async def test_a_silent_machine_is_refused_before_the_sweep_has_noticed(inventory: Any) -> None:
    await inventory.waiting(M1)
    await inventory.silent_for(M1, "5 minutes 1 second")
    with pytest.raises(FailedPrecondition, match="MACHINE_NOT_ALIVE"):
        await inventory.bind(M1, *ids(1), PROJECT)


async def test_an_unbind_frees_once_and_never_hits_another_allocation(inventory: Any) -> None:
    await inventory.waiting(M1)
    old, new = ids(2)
    await inventory.bind(M1, old, PROJECT)
    assert (await inventory.unbind(M1, new)).binding.allocation == old
    assert not (await inventory.unbind(M1, old)).HasField("binding")
    again = await inventory.unbind(M1, old)
    assert not again.HasField("binding")
    await inventory.waiting(M1)
    await inventory.bind(M1, new, PROJECT)
    assert (await inventory.unbind(M1, old)).binding.allocation == new


async def test_a_locked_machine_is_not_unbound(inventory: Any) -> None:
    await inventory.waiting(M1)
    [allocation] = ids(1)
    await inventory.bind(M1, allocation, PROJECT)
    await inventory.set_state(M1, "LOCKED", "evidence")
    with pytest.raises(FailedPrecondition, match="MACHINE_LOCKED"):
        await inventory.unbind(M1, allocation)
    await inventory.set_state(M1, "AVAILABLE")
    assert not (await inventory.unbind(M1, allocation)).HasField("binding")


async def test_only_the_allocation_service_binds(inventory: Any) -> None:
    await inventory.waiting(M1)
    request = pb.BindMachineRequest(machine=M1, allocation=str(uuid4()), project=PROJECT)
    for caller in (inventory.machines(), inventory.boot()):
        with pytest.raises(PermissionDenied):
            await caller.BindMachine(request)


async def test_binding_an_unknown_machine_says_so(inventory: Any) -> None:
    with pytest.raises(NotFound):
        await inventory.bind(M1, *ids(1), PROJECT)


# -- administrative state


async def test_a_change_of_state_keeps_everything_else(inventory: Any) -> None:
    """L23."""
    before = await inventory.waiting(M1)
    after = await inventory.set_state(M1, "TAINTED", "odd noises")
    assert (after.state, after.state_description) == (pb.MACHINE_STATE_TAINTED, "odd noises")
    after = await inventory.set_state(M1, "AVAILABLE")
    for message in (before, after):
        message.etag = ""
        message.ClearField("update_time")
    assert after == before
    assert after.installer_version == "0.1.0"


async def test_a_state_needs_a_reason_and_is_left_through_available(inventory: Any) -> None:
    await inventory.report(M1, "PXE_BOOTING")
    with pytest.raises(InvalidArgument) as missing:
        await inventory.set_state(M1, "LOCKED", " ")
    assert (missing.value.reason, missing.value.field) == ("DESCRIPTION_MISSING", "description")
    with pytest.raises(InvalidArgument, match="DESCRIPTION_NOT_ALLOWED"):
        await inventory.set_state(M1, "AVAILABLE", "fine")
    await inventory.set_state(M1, "LOCKED", "evidence")
    with pytest.raises(FailedPrecondition, match="NOT_FROM_THIS_STATE"):
        await inventory.set_state(M1, "TAINTED", "odd noises")


async def test_an_update_that_saw_an_older_version_is_refused(inventory: Any) -> None:
    await inventory.report(M1, "PXE_BOOTING")
    seen = await inventory.get(M1)
    change = pb.UpdateMachineRequest(machine=pb.Machine(id=M1, description="new", labels={"a": "b"}, etag=seen.etag))
    changed = await inventory.machines().UpdateMachine(change)
    assert (changed.description, dict(changed.labels)) == ("new", {"a": "b"})
    with pytest.raises(Aborted, match="ETAG_MISMATCH"):
        await inventory.machines().UpdateMachine(change)


async def test_an_update_cannot_change_what_is_output_only(inventory: Any) -> None:
    await inventory.report(M1, "PXE_BOOTING")
    request = pb.UpdateMachineRequest(machine=pb.Machine(id=M1, rack="elsewhere"))
    request.update_mask.paths.append("rack")
    with pytest.raises(InvalidArgument) as refused:
        await inventory.machines().UpdateMachine(request)
    assert refused.value.field == "rack"


# -- deletion


async def delete(inventory: Any, machine: str = M1) -> None:
    await inventory.machines().DeleteMachine(pb.DeleteMachineRequest(id=machine))


async def test_a_dead_machine_is_forgotten_with_its_cables(inventory: Any) -> None:
    await inventory.waiting(M1)
    with pytest.raises(FailedPrecondition, match="MACHINE_STILL_ALIVE"):
        await delete(inventory)
    await inventory.silent_for(M1, "6 minutes")
    await delete(inventory)
    assert inventory.fabric.disconnected == [M1]
    with pytest.raises(NotFound):
        await inventory.get(M1)
    assert await inventory.sql("SELECT 1 FROM lifecycle UNION ALL SELECT 1 FROM machine_part") == []
    [change] = await inventory.sql("SELECT deleted, entity_id FROM change ORDER BY id DESC LIMIT 1")
    assert (change["deleted"], change["entity_id"]) == (True, M1)


async def test_bound_and_locked_machines_are_not_forgotten(inventory: Any) -> None:
    await inventory.waiting(M1)
    [allocation] = ids(1)
    await inventory.bind(M1, allocation, PROJECT)
    await inventory.silent_for(M1, "6 minutes")
    with pytest.raises(FailedPrecondition, match="MACHINE_BOUND"):
        await delete(inventory)
    await inventory.unbind(M1, allocation)
    await inventory.set_state(M1, "LOCKED", "evidence")
    with pytest.raises(FailedPrecondition, match="MACHINE_LOCKED"):
        await delete(inventory)


async def test_a_deletion_that_fails_halfway_leaves_a_machine_that_nobody_gets_and_can_be_repeated(
    inventory: Any,
) -> None:
    await inventory.waiting(M1)
    await inventory.silent_for(M1, "6 minutes")
    inventory.fabric.problem = Unavailable("DATABASE_UNREACHABLE", "the database cannot be reached")
    with pytest.raises(Unavailable):
        await delete(inventory)
    assert "deletion has begun" in (await inventory.get(M1)).cabling_error
    inventory.fabric.problem = None
    await delete(inventory)
    with pytest.raises(NotFound):
        await inventory.get(M1)


async def test_a_machine_that_registers_while_it_is_deleted_is_not_shown_with_cables_that_fabric_forgot(
    inventory: Any,
) -> None:
    await inventory.waiting(M1)
    await inventory.silent_for(M1, "6 minutes")
    inventory.fabric.meanwhile = lambda: inventory.waiting(M1)
    with pytest.raises(FailedPrecondition) as refused:
        await delete(inventory)
    assert refused.value.reason == "MACHINE_STILL_ALIVE"
    machine = await inventory.get(M1)
    assert (machine.rack, machine.cabling_error != "") == ("", True)
    with pytest.raises(FailedPrecondition) as unbindable:
        await inventory.bind(M1, *ids(2))
    assert unbindable.value.reason == "MACHINE_NOT_CABLED"
    assert (await inventory.register(M1)).rack == "rack-1"
