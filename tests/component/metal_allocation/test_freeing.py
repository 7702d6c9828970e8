"""Freeing in any phase, once or often, while machines are locked; cuts between any two steps; workers given up."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any
from uuid import UUID

import pytest
from metal_kit.errors import FailedPrecondition, NotFound, PermissionDenied
from metalplane.inventory.v1.machine_pb2 import MachineState

OTHER_PROJECT = "01980000-0000-7000-8000-000000000002"
PHASES = ["addressing", "installing", "attaching", "boot_order", "starting", "running"]


async def only_id(world: Any) -> str:
    return str(await world.value("SELECT id FROM allocation"))


@pytest.mark.parametrize("phase", PHASES)
async def test_freed_in_any_phase_nothing_is_left(world: Any, phase: str) -> None:
    [machine] = await world.add_machines(1)
    if phase == "addressing":
        world.faults["AcquireNumber"] = ["refuse"] * 1000
    allocation = await world.create()
    await world.bring_to(allocation, phase)
    freed = await world.free(allocation.id)
    assert freed.status.HasField("free_time")
    world.faults.clear()
    await world.reach(allocation.id, "released")
    await world.nothing_is_left(allocation.id)
    # Before the installer was told anything, the machine was never touched and goes on waiting.
    touched = "PXE_CYCLE" in world.story[allocation.id]
    assert touched is (phase != "addressing")
    if touched:
        assert (machine, allocation.id) in world.detached, "fenced before it was reclaimed"


async def test_freed_while_its_binding_is_under_way_the_machine_is_let_go_of(world: Any) -> None:
    [machine] = await world.add_machines(1)
    gate = world.gate("BindMachine")
    creating = asyncio.create_task(world.create())
    await gate.reached.wait()
    id_ = await only_id(world)
    await world.free(id_)
    await world.reach(id_, "released")
    gate.open.set()
    assert (await creating).id == id_
    await world.nothing_is_left(id_)
    assert not world.machines[machine].binding.allocation


async def test_a_binding_that_comes_after_the_release_is_found_and_ended(world: Any) -> None:
    [machine] = await world.add_machines(1)
    gate = world.gate("BindMachine", before=True)
    creating = asyncio.create_task(world.create())
    await gate.reached.wait()
    id_ = await only_id(world)
    await world.free(id_)
    await world.reach(id_, "released")
    gate.open.set()
    await creating
    assert world.machines[machine].binding.allocation == id_, "the late call has bound it"
    await world.sql.execute("UPDATE allocation SET phase_time = phase_time - interval '5 minutes'")
    await world.look_at_all()
    await world.eventually(lambda: not world.machines[machine].binding.allocation)
    await world.nothing_is_left(id_)


async def test_a_machine_that_a_late_call_bound_after_another_was_claimed_is_let_go_of(world: Any) -> None:
    """The request goes on to the next machine while the controller, which took over, still asks for the one before."""
    machines = await world.add_machines(2)
    asked = world.gate("BindMachine", before=True)
    creating = asyncio.create_task(world.create())
    await asked.reached.wait()
    id_ = await only_id(world)
    first = await world.value("SELECT machine::text FROM claim")
    taken_over = world.gate("BindMachine", before=True)
    await world.hurry()
    await taken_over.reached.wait()
    again = world.gate("BindMachine", before=True)
    world.machines[first].waiting = False  # its installer lost the connection for a moment
    asked.open.set()
    await again.reached.wait()
    world.machines[first].waiting = True
    taken_over.open.set()
    await world.eventually(lambda: world.machines[first].binding.allocation == id_)
    again.open.set()
    await asyncio.gather(creating, return_exceptions=True)  # refused, or shown how the controller has ended it
    await world.reach(id_, "released")
    assert await world.value("SELECT machine::text FROM allocation") in set(machines) - {first}
    await world.eventually(lambda: not world.machines[first].binding.allocation)
    await world.nothing_is_left(id_)


async def test_freeing_twice_or_at_once_is_freeing_once(world: Any) -> None:
    await world.add_machines(1)
    allocation = await world.create()
    await world.bring_to(allocation, "running")
    await asyncio.gather(*(world.free(allocation.id) for _ in range(5)))
    await world.free(allocation.id)
    await world.reach(allocation.id, "released")
    again = await world.free(allocation.id)
    reasons = Counter(line.reason for line in again.status.timeline)
    assert reasons["FREE_REQUESTED"] == 1
    assert world.story[allocation.id].count("PXE_CYCLE") == 1


async def test_a_locked_machine_is_not_freed_and_one_locked_meanwhile_waits_to_be_unlocked(world: Any) -> None:
    [machine] = await world.add_machines(1)
    allocation = await world.create()
    await world.bring_to(allocation, "running")
    world.machines[machine].state = MachineState.MACHINE_STATE_LOCKED
    with pytest.raises(FailedPrecondition) as caught:
        await world.free(allocation.id)
    assert caught.value.reason == "MACHINE_LOCKED"
    assert await world.phase(allocation.id) == "running"
    world.machines[machine].state = MachineState.MACHINE_STATE_AVAILABLE
    gate = world.gate("ReleaseOwned")
    await world.free(allocation.id)
    await world.reach(allocation.id, "releasing")
    await gate.reached.wait()
    world.machines[machine].state = MachineState.MACHINE_STATE_LOCKED
    gate.open.set()
    await world.reach(allocation.id, "unbinding")

    async def said() -> bool:
        shown = await world.get(allocation.id)
        return any(each.reason == "MACHINE_LOCKED" for each in shown.status.conditions)

    await world.eventually(said)
    world.machines[machine].state = MachineState.MACHINE_STATE_AVAILABLE
    await world.reach(allocation.id, "released")
    await world.nothing_is_left(allocation.id)


async def test_only_editors_of_the_project_free_and_strangers_learn_nothing(world: Any) -> None:
    await world.add_machines(1)
    allocation = await world.create()
    project = allocation.project
    with pytest.raises(PermissionDenied):
        await world.free(allocation.id, token=f"viewer {project}")
    with pytest.raises(NotFound) as hidden:
        await world.free(allocation.id, token=f"editor {OTHER_PROJECT}")
    missing_id = allocation.id[:-4] + "0000"
    with pytest.raises(NotFound) as missing:
        await world.free(missing_id, token=f"editor {OTHER_PROJECT}")
    assert hidden.value.message.replace(allocation.id, missing_id) == missing.value.message
    assert not (await world.get(allocation.id)).status.HasField("free_time")


async def test_a_freed_machine_is_not_given_away_before_it_is_unbound(world: Any) -> None:
    await world.add_machines(1)
    first = await world.create("first")
    await world.bring_to(first, "running")
    gate = world.gate("UnbindMachine", before=True)
    await world.free(first.id)
    await world.reach(first.id, "unbinding")
    await gate.reached.wait()
    assert await world.value("SELECT count(*) FROM claim") == 1
    gate.open.set()
    await world.reach(first.id, "released")
    assert await world.value("SELECT count(*) FROM claim") == 0


HELD = [
    "BindMachine", "AcquireNumber", "AcquireIps", "AttachMachine", "CreateCommand", "DetachMachine", "RecordEvents",
    "ReleaseOwned", "UnbindMachine",
]  # fmt: skip


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("method", HELD)
async def test_a_worker_taken_for_dead_in_a_call_changes_nothing_when_it_comes_back(
    world: Any, method: str, before: bool
) -> None:
    """The other worker goes all the way from running to released meanwhile, or as far as the life has come."""
    await world.add_machines(1)
    gate = world.gate(method, before=before)
    creating = asyncio.create_task(world.create())
    if method == "BindMachine":
        await gate.reached.wait()
        allocation = await world.get(await only_id(world))
    else:
        allocation = await creating
    if method in {"AcquireNumber", "AcquireIps"}:
        await passed(world, gate, allocation.id)
    await world.reach(allocation.id, "installing")
    await world.install(allocation)
    if method in {"AttachMachine", "CreateCommand"}:
        await passed(world, gate, allocation.id)
    await world.reach(allocation.id, "starting")
    world.phone_home(allocation.status.machine)
    await world.reach(allocation.id, "running")
    await world.free(allocation.id)
    if method in {"DetachMachine", "RecordEvents", "ReleaseOwned", "UnbindMachine"}:
        await passed(world, gate, allocation.id)
    await world.reach(allocation.id, "released")
    version = await world.value("SELECT version FROM allocation WHERE id = $1", UUID(allocation.id))
    gate.open.set()
    await creating
    await world.sql.execute("UPDATE allocation SET phase_time = phase_time - interval '5 minutes'")

    async def settled() -> bool:
        await world.look_at_all()
        return not await world.value("SELECT count(*) FROM reconcile_queue WHERE key = $1", allocation.id)

    await world.eventually(settled)
    await world.nothing_is_left(allocation.id)
    assert await world.value("SELECT version FROM allocation WHERE id = $1", UUID(allocation.id)) == version
    assert Counter(world.story[allocation.id])["PXE_CYCLE"] == 1
    assert len(world.bound) <= 2


async def passed(world: Any, gate: Any, id_: str) -> None:
    await gate.reached.wait()
    await world.steal_lease(id_)


async def test_a_life_in_which_every_call_fails_once_and_loses_its_answer_once_is_a_life(world: Any) -> None:
    """Each call of each step is refused first, then carried out with its answer lost, then answered."""
    await world.add_machines(6)
    tries: Counter[tuple[str, str]] = Counter()
    during_requests = {"CheckToken", "GetProject", "GetPartition", "GetSize", "ResolveImage", "MatchFilesystemLayout"}

    def chaos(method: str, request: Any) -> str | None:
        owner = getattr(getattr(request, "owner", None), "id", "")
        key = owner or getattr(request, "allocation", "") or getattr(request, "machine", "")
        if method in during_requests or not key:
            return None
        tries[method, key] += 1
        return {1: "refuse", 2: "lose"}.get(tries[method, key])

    world.chaos = chaos
    made = [await world.create(f"web{n}") for n in range(6)]

    async def live(allocation: Any, until: str) -> None:
        if until == "released":
            await world.reach(allocation.id, "starting", seconds=60)
            world.phone_home(allocation.status.machine)
            await world.reach(allocation.id, "running", seconds=60)
            await world.free(allocation.id)
            await world.reach(allocation.id, "released", seconds=60)
        else:
            await world.reach(allocation.id, "installing", seconds=60)
            await world.install(allocation)

    await asyncio.gather(*(live(each, "installed") for each in made))
    await asyncio.gather(*(live(each, "released") for each in made))
    for each in made:
        await world.nothing_is_left(each.id)
        # Lost answers made nothing happen twice.
        assert world.story[each.id] == ["BOOT_DISK", "MACHINE_RECLAIM", "PXE_CYCLE"]
    assert len(world.bound) == len(made)
    assert not world.ips
    assert not world.numbers


async def test_an_overdue_phase_says_so_and_stops_saying_so_in_the_next(world: Any) -> None:
    await world.add_machines(1)
    allocation = await world.create()
    await world.reach(allocation.id, "installing")
    await world.sql.execute("UPDATE reconcile_queue SET phase_since = phase_since - interval '1 hour'")

    async def overdue() -> bool:
        await world.hurry()
        shown = await world.get(allocation.id)
        return any(each.type == "PhaseOverdue" and each.status for each in shown.status.conditions)

    await world.eventually(overdue)
    lines = [line.reason for line in (await world.get(allocation.id)).status.timeline]
    assert lines.count("PHASE_OVERDUE") == 1
    await world.install(allocation)
    await world.reach(allocation.id, "starting")
    shown = await world.get(allocation.id)
    assert not any(each.type == "PhaseOverdue" and each.status for each in shown.status.conditions)


async def test_every_phase_that_waits_for_others_has_a_deadline_that_is_shown(world: Any) -> None:
    await world.add_machines(1)
    allocation = await world.create()
    await world.reach(allocation.id, "installing")
    status = (await world.get(allocation.id)).status
    assert status.phase_deadline.seconds - status.phase_time.seconds == 30 * 60
    await world.bring_to(allocation, "running")
    assert not (await world.get(allocation.id)).status.HasField("phase_deadline")
