"""From the request to the bound machine: each request once, each machine once, nothing kept of what came to nothing."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from allocation_peers import NETWORK, TWIN
from metal_kit.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Problem,
    ResourceExhausted,
    Unavailable,
)
from metalplane.allocation.v1 import allocation_pb2 as pb
from metalplane.inventory.v1.machine_pb2 import MachineState

STRANGER = "01980000-0000-7000-8000-0000000000ff"
PROJECT = "01980000-0000-7000-8000-000000000001"
OTHER_PROJECT = "01980000-0000-7000-8000-000000000002"


async def counts(world: Any) -> dict[str, int]:
    return {
        "claims": await world.value("SELECT count(*) FROM claim"),
        "present": await world.value("SELECT count(*) FROM allocation WHERE phase <> 'released'"),
        "bound": sum(bool(each.binding.allocation) for each in world.machines.values()),
    }


async def test_parallel_requests_get_a_machine_each_and_the_rest_is_told_there_is_none(world: Any) -> None:
    await world.add_machines(20, racks=4)
    outcomes = await asyncio.gather(*(world.create(f"web{n}") for n in range(30)), return_exceptions=True)
    made = [each for each in outcomes if not isinstance(each, BaseException)]
    refused = [each for each in outcomes if isinstance(each, BaseException)]
    assert len({each.status.machine for each in made}) == len(made) == 20
    assert all(isinstance(each, ResourceExhausted) and each.reason == "NO_MACHINE" for each in refused)
    assert await counts(world) == {"claims": 20, "present": 20, "bound": 20}
    assert len(world.bound) == len({machine for _, machine in world.bound})
    # Spread over the racks although all came at once: the claims in flight count.
    racks = [each.status.rack for each in made]
    assert {racks.count(rack) for rack in set(racks)} == {5}


async def test_a_quota_holds_among_parallel_requests(world: Any) -> None:
    await world.add_machines(10)
    world.quota = 3
    outcomes = await asyncio.gather(*(world.create(f"web{n}") for n in range(8)), return_exceptions=True)
    refused = [each for each in outcomes if isinstance(each, Problem)]
    assert [each.reason for each in refused] == ["QUOTA"] * 5
    assert (await counts(world))["claims"] == 3


async def test_copies_of_a_request_are_one_allocation(world: Any, new_request_id: str) -> None:
    await world.add_machines(5)
    made = await asyncio.gather(*(world.create(request_id=new_request_id) for _ in range(6)))
    assert len({each.id for each in made}) == 1
    assert await counts(world) == {"claims": 1, "present": 1, "bound": 1}
    later = await world.create(request_id=new_request_id)
    assert later.id == made[0].id
    with pytest.raises(InvalidArgument, match="different request"):
        await world.create("another", request_id=new_request_id)


async def test_a_retry_while_the_first_copy_still_binds_gets_the_same_allocation(
    world: Any, new_request_id: str
) -> None:
    await world.add_machines(2)
    gate = world.gate("BindMachine")
    first = asyncio.create_task(world.create(request_id=new_request_id))
    await gate.reached.wait()
    second = await world.create(request_id=new_request_id)
    gate.open.set()
    assert second.id == (await first).id
    assert await counts(world) == {"claims": 1, "present": 1, "bound": 1}


async def test_a_request_that_came_to_nothing_can_be_sent_again_with_its_id(world: Any, new_request_id: str) -> None:
    [machine] = await world.add_machines(1)
    await world.stop_comparing()
    world.machines[machine].state = MachineState.MACHINE_STATE_LOCKED
    with pytest.raises(Problem):
        await world.create(request_id=new_request_id)
    assert await counts(world) == {"claims": 0, "present": 0, "bound": 0}
    world.machines[machine].state = MachineState.MACHINE_STATE_AVAILABLE
    world.touch(world.machines[machine])
    assert (await world.create(request_id=new_request_id)).status.machine == machine


def spoil(world: Any, machine: str, how: str) -> None:
    """Something happens to a machine that allocation still takes for free, since it has stopped comparing."""
    known = world.machines[machine]
    match how:
        case "locked":
            known.state = MachineState.MACHINE_STATE_LOCKED
        case "tainted":
            known.state = MachineState.MACHINE_STATE_TAINTED
        case "not waiting":
            known.waiting = False
        case "taken":
            known.binding.allocation = STRANGER
        case "vanished":
            del world.machines[machine]


@pytest.mark.parametrize("how", ["locked", "tainted", "not waiting", "taken", "vanished"])
async def test_a_machine_that_is_no_longer_to_be_had_is_given_up_for_the_next(world: Any, how: str) -> None:
    machines = await world.add_machines(3)
    await world.stop_comparing()
    for machine in machines[:2]:
        spoil(world, machine, how)
    allocation = await world.create()
    assert allocation.status.machine == machines[2]
    assert await world.value("SELECT array_agg(machine::text) FROM claim") == [machines[2]]
    refused = [line for line in allocation.status.timeline if line.reason == "CANDIDATE_REFUSED"]
    assert len(refused) <= 2


@pytest.mark.parametrize("how", ["locked", "not waiting", "vanished"])
async def test_when_every_machine_is_refused_nothing_is_kept_and_the_counts_say_why(world: Any, how: str) -> None:
    machines = await world.add_machines(3)
    await world.stop_comparing()
    for machine in machines:
        spoil(world, machine, how)
    with pytest.raises(ResourceExhausted) as caught:
        await world.create()
    assert caught.value.metadata["refused"] == "3"
    assert (await counts(world))["claims"] == 0
    assert (await counts(world))["present"] == 0


async def test_after_eight_refusals_the_caller_is_told_to_come_again(world: Any) -> None:
    machines = await world.add_machines(10)
    await world.stop_comparing()
    for machine in machines:
        spoil(world, machine, "taken")
    with pytest.raises(Unavailable) as caught:
        await world.create()
    assert caught.value.reason == "CANDIDATES_REFUSED"
    assert (await counts(world))["claims"] == 0


async def test_a_machine_whose_disks_do_not_fit_is_unbound_before_the_next_is_tried(world: Any) -> None:
    machines = await world.add_machines(2)
    for machine in machines:
        world.machines[machine].hardware.disks[0].size_bytes = 1 << 20
    with pytest.raises(FailedPrecondition) as caught:
        await world.create()
    assert caught.value.reason == "LAYOUT_DISK_SMALL"
    assert await counts(world) == {"claims": 0, "present": 0, "bound": 0}
    assert len(world.bound) == 2


async def test_only_operators_name_a_machine_and_a_tainted_one_is_theirs(world: Any) -> None:
    [machine] = await world.add_machines(1)
    named = {"machine": machine, "partition": "", "size": ""}
    with pytest.raises(PermissionDenied) as caught:
        await world.create(**named)
    assert caught.value.field == "spec.machine" or "spec.machine" in str(caught.value.violations)
    spoil(world, machine, "tainted")
    allocation = await world.create(token="operator", **named)
    assert allocation.status.machine == machine
    with pytest.raises(FailedPrecondition) as taken:
        await world.create(token="operator", **named)
    assert taken.value.reason == "MACHINE_TAKEN"


async def test_a_machine_named_by_its_uuid_that_does_not_exist_is_not_found(world: Any) -> None:
    with pytest.raises(NotFound) as caught:
        await world.create(token="operator", machine=STRANGER, partition="", size="")
    assert any(each.field == "spec.machine" for each in caught.value.violations) or caught.value.field == "spec.machine"


async def test_nobody_creates_in_a_project_of_others(world: Any) -> None:
    await world.add_machines(1)
    for token, refusal in (
        (f"editor {OTHER_PROJECT}", NotFound),
        (f"viewer {PROJECT}", PermissionDenied),
        ("plane-viewer", PermissionDenied),
    ):
        with pytest.raises(refusal):
            await world.create(token=token)
    assert await counts(world) == {"claims": 0, "present": 0, "bound": 0}


@pytest.mark.parametrize("fault", ["refuse", "lose"])
async def test_what_the_request_could_not_bind_for_sure_the_controller_binds(world: Any, fault: str) -> None:
    await world.add_machines(1)
    world.faults["BindMachine"] = [fault]
    allocation = await world.create()
    assert await world.phase(allocation.id) in {"binding", "addressing", "installing"}
    await world.reach(allocation.id, "installing")
    assert len(world.bound) == 1


async def test_a_binding_that_the_controller_finds_refused_ends_the_allocation_visibly(world: Any) -> None:
    [machine] = await world.add_machines(1)
    world.faults["BindMachine"] = ["refuse"]
    allocation = await world.create()
    spoil(world, machine, "taken")
    await world.reach(allocation.id, "released")
    assert world.machines[machine].binding.allocation == STRANGER
    await world.nothing_is_left(allocation.id)
    reasons = [line.reason for line in (await world.get(allocation.id)).status.timeline]
    assert "MACHINE_BOUND_TO_OTHER" in reasons


async def test_the_allocation_names_what_was_resolved_and_never_the_user_data(world: Any) -> None:
    await world.add_machines(1)
    allocation = await world.create(userdata=b"password: hunter2", labels={"app": "web"})
    assert allocation.status.image == "debian-13.0.1"
    assert allocation.status.filesystem_layout == "plain"
    assert not allocation.spec.userdata
    await world.reach(allocation.id, "installing")
    stored = await world.sql.fetch("SELECT payload FROM change")
    assert not any(b"hunter2" in row["payload"] for row in stored)
    await world.free(allocation.id)
    await world.reach(allocation.id, "released")
    assert await world.value("SELECT userdata FROM allocation WHERE id = $1", UUID(allocation.id)) == b""


async def test_a_change_of_labels_while_a_machine_is_refused_does_not_cost_the_allocation(world: Any) -> None:
    machines = await world.add_machines(2)
    await world.stop_comparing()
    gate = world.gate("BindMachine", before=True)
    creating = asyncio.create_task(world.create())
    await gate.reached.wait()
    [found] = (await world.allocations().ListAllocations(pb.ListAllocationsRequest())).allocations
    change = pb.Allocation(id=found.id, spec=pb.AllocationSpec(description="labelled by a bot", labels={"team": "a"}))
    await world.allocations().UpdateAllocation(pb.UpdateAllocationRequest(allocation=change))
    spoil(world, found.status.machine, "not waiting")
    gate.open.set()
    allocation = await creating
    assert [allocation.status.machine] == [each for each in machines if each != found.status.machine]
    assert allocation.status.phase >= pb.ALLOCATION_PHASE_ADDRESSING
    assert (allocation.spec.description, dict(allocation.spec.labels)) == ("labelled by a bot", {"team": "a"})


async def test_two_projects_whose_networks_overlap_have_machines_with_the_same_address(world: Any) -> None:
    await world.add_machines(2)
    one = await world.create()
    two = await world.create(
        token=f"editor {OTHER_PROJECT}", project=OTHER_PROJECT, networks=[pb.AllocationNetwork(network=TWIN)]
    )
    for each in (one, two):
        await world.bring_to(each, "running")
    shown = [(await world.get(each.id)).status.networks[0] for each in (one, two)]
    assert [(network.network, list(network.ips), network.vrf) for network in shown] == [
        (NETWORK, ["10.0.0.1"], 20), (TWIN, ["10.0.0.1"], 21),
    ]  # fmt: skip
    asked = {request.allocation: request for method, request in world.calls if method == "AttachMachine"}
    assert [asked[each.id].vrf for each in (one, two)] == [20, 21]
    assert [dict(asked[each.id].networks) for each in (one, two)] == [{20: NETWORK}, {21: TWIN}]
    assert list(asked[one.id].allowed_prefixes) == list(asked[two.id].allowed_prefixes)
    await world.free(one.id)
    await world.reach(one.id, "released")
    await world.nothing_is_left(one.id)
    assert await world.phase(two.id) == "running"
    assert world.ips == {two.id: (TWIN, "10.0.0.1")}
