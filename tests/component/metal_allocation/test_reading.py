"""Lists, watches and updates: each caller sees what is his, page by page and change by change."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from metal_kit.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, OutOfRange, PermissionDenied
from metalplane.allocation.v1 import allocation_pb2 as pb
from metalplane.allocation.v1 import installation_pb2 as installation

PROJECT = "01980000-0000-7000-8000-000000000001"
OTHER_PROJECT = "01980000-0000-7000-8000-000000000002"
EDITOR, STRANGER = f"editor {PROJECT}", f"editor {OTHER_PROJECT}"


async def listed(world: Any, token: str, **more: Any) -> list[str]:
    ids, request = [], pb.ListAllocationsRequest(**more)
    while True:
        page = await world.allocations(token).ListAllocations(request)
        ids += [each.id for each in page.allocations]
        if not page.next_page_token:
            return ids
        request.page_token = page.next_page_token


async def test_a_list_holds_what_the_caller_may_see_each_once_in_order(world: Any) -> None:
    await world.add_machines(5)
    made = sorted([(await world.create(f"web{n}")).id for n in range(5)])
    for token in (EDITOR, f"viewer {PROJECT}", "plane-viewer", "operator"):
        assert await listed(world, token, page_size=2) == made
    assert await listed(world, STRANGER) == []
    with pytest.raises(NotFound):
        await listed(world, STRANGER, project=PROJECT)
    assert await listed(world, EDITOR, project=PROJECT) == made


async def test_a_list_of_a_machine_shows_nothing_of_others(world: Any) -> None:
    await world.add_machines(1)
    allocation = await world.create()
    machine = allocation.status.machine
    assert await listed(world, EDITOR, machine=machine.upper()) == [allocation.id]
    assert await listed(world, STRANGER, machine=machine) == []


async def test_a_page_token_is_worth_nothing_to_others_or_with_other_filters(world: Any) -> None:
    await world.add_machines(3)
    for n in range(3):
        await world.create(f"web{n}")
    first = await world.allocations(EDITOR).ListAllocations(pb.ListAllocationsRequest(page_size=1))
    token = first.next_page_token
    for who, request in (
        (STRANGER, pb.ListAllocationsRequest(page_token=token)),
        ("operator", pb.ListAllocationsRequest(page_token=token)),
        (EDITOR, pb.ListAllocationsRequest(page_token=token, include_released=True)),
        (EDITOR, pb.ListAllocationsRequest(page_token=token[:-2] + "xx")),
    ):
        with pytest.raises(InvalidArgument):
            await world.allocations(who).ListAllocations(request)


async def test_a_list_goes_on_when_the_caller_is_given_another_project_between_two_pages(world: Any) -> None:
    await world.add_machines(2)
    made = sorted([(await world.create(f"web{n}")).id for n in range(2)])
    request = pb.ListAllocationsRequest(page_size=1)
    first = await world.allocations(EDITOR).ListAllocations(request)
    request.page_token = first.next_page_token
    rest = await world.allocations(f"{EDITOR} {OTHER_PROJECT}").ListAllocations(request)
    assert [each.id for each in (*first.allocations, *rest.allocations)] == made


async def test_released_allocations_are_listed_when_asked_for(world: Any) -> None:
    await world.add_machines(1)
    allocation = await world.create()
    await world.free(allocation.id)
    await world.reach(allocation.id, "released")
    assert await listed(world, EDITOR) == []
    assert await listed(world, EDITOR, include_released=True) == [allocation.id]
    assert await listed(world, EDITOR, phase=pb.ALLOCATION_PHASE_RELEASED) == [allocation.id]


async def test_strangers_learn_of_no_allocation_by_getting_changing_or_watching_it(world: Any) -> None:
    await world.add_machines(1)
    allocation = await world.create()
    stranger = world.allocations(STRANGER)
    with pytest.raises(NotFound):
        await stranger.GetAllocation(pb.GetAllocationRequest(id=allocation.id))
    changed = pb.Allocation(id=allocation.id, spec=pb.AllocationSpec(description="mine now"))
    with pytest.raises(NotFound):
        await stranger.UpdateAllocation(
            pb.UpdateAllocationRequest(allocation=changed, update_mask=FieldMask(paths=["spec.description"]))
        )
    for request in (
        pb.WatchAllocationsRequest(allocation=allocation.id),
        pb.WatchAllocationsRequest(project=PROJECT),
    ):
        with pytest.raises(NotFound):
            await anext(aiter(stranger.WatchAllocations(request)))


async def test_a_watch_tells_each_caller_his_changes_and_nobody_elses(world: Any) -> None:
    await world.add_machines(2)
    seen: dict[str, list[str]] = {"mine": [], "others": [], "operators": []}
    started = {name: asyncio.Event() for name in seen}

    async def watch(name: str, token: str) -> None:
        async with aclosing(aiter(world.allocations(token).WatchAllocations(pb.WatchAllocationsRequest()))) as changes:
            async for batch in changes:
                started[name].set()
                seen[name] += [each.allocation.id for each in batch.changes]

    watches = [
        asyncio.create_task(watch(name, token))
        for name, token in (("mine", EDITOR), ("others", STRANGER), ("operators", "plane-viewer"))
    ]
    try:
        for each in started.values():
            await each.wait()
        allocation = await world.create()
        await world.reach(allocation.id, "installing")
        await world.eventually(lambda: allocation.id in seen["mine"] and allocation.id in seen["operators"])
        assert seen["others"] == []
    finally:
        for each in watches:
            each.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


async def test_a_watch_of_one_allocation_begins_with_it_and_resumes_where_it_was(world: Any) -> None:
    await world.add_machines(2)
    allocation = await world.create()
    await world.reach(allocation.id, "installing")
    request = pb.WatchAllocationsRequest(allocation=allocation.id)
    changes = aiter(world.allocations().WatchAllocations(request))
    first = await anext(changes)
    assert [each.allocation.status.phase for each in first.changes] == [pb.ALLOCATION_PHASE_INSTALLING]
    await changes.aclose()
    await world.create("another")  # while nobody watches
    await world.install(allocation)
    await world.reach(allocation.id, "starting")
    request.position = first.position
    phases = []
    async with asyncio.timeout(20), aclosing(aiter(world.allocations().WatchAllocations(request))) as again:
        async for batch in again:
            assert {each.allocation.id for each in batch.changes} <= {allocation.id}
            phases += [each.allocation.status.phase for each in batch.changes]
            if pb.ALLOCATION_PHASE_STARTING in phases:
                break
    assert phases == sorted(phases)
    assert pb.ALLOCATION_PHASE_ATTACHING in phases


async def test_a_watch_from_a_position_that_is_gone_says_so(world: Any) -> None:
    request = pb.WatchAllocationsRequest(position="1:1")
    await world.sql.execute("UPDATE change_floor SET xid = '2'::xid8")
    with pytest.raises(OutOfRange):
        await anext(aiter(world.allocations().WatchAllocations(request)))


async def test_a_change_of_description_keeps_the_rest_and_minds_the_etag(world: Any) -> None:
    await world.add_machines(1)
    allocation = await world.create(labels={"app": "web"})
    await world.reach(allocation.id, "installing")
    current = await world.get(allocation.id)
    wanted = pb.Allocation(id=allocation.id, etag=current.etag, spec=pb.AllocationSpec(description="of the shop"))
    request = pb.UpdateAllocationRequest(allocation=wanted, update_mask=FieldMask(paths=["spec.description"]))
    with pytest.raises(PermissionDenied):
        await world.allocations(f"viewer {PROJECT}").UpdateAllocation(request)
    while True:
        try:
            changed = await world.allocations().UpdateAllocation(request)
            break
        except Aborted:  # the controller was faster; a client reads again
            request.allocation.etag = (await world.get(allocation.id)).etag
    assert (changed.spec.description, dict(changed.spec.labels)) == ("of the shop", {"app": "web"})
    assert changed.status.phase == pb.ALLOCATION_PHASE_INSTALLING
    with pytest.raises(Aborted):
        await world.allocations().UpdateAllocation(request)
    request.allocation.etag = ""
    request.update_mask.paths[:] = ["spec.size"]
    with pytest.raises(InvalidArgument):
        await world.allocations().UpdateAllocation(request)


# -- the installer's half


async def test_an_installer_speaks_for_its_present_allocation_in_its_partition(world: Any) -> None:
    await world.add_machines(1)
    first = await world.create("first")
    await world.reach(first.id, "installing")
    got = await world.boot().GetInstallation(
        installation.GetInstallationRequest(partition="mini", machine=first.status.machine)
    )
    assert got.state == installation.INSTALLATION_STATE_INSTALL
    assert list(got.spec.disk_serials) == ["S00000001"]
    with pytest.raises(NotFound):
        await world.boot("elsewhere").GetInstallation(
            installation.GetInstallationRequest(partition="elsewhere", machine=first.status.machine)
        )
    with pytest.raises(PermissionDenied):
        await world.boot("elsewhere").GetInstallation(
            installation.GetInstallationRequest(partition="mini", machine=first.status.machine)
        )
    await world.free(first.id)
    late = installation.RecordProgressRequest(
        partition="mini", machine=first.status.machine, allocation=first.id, step="image", percent=50
    )
    with pytest.raises(FailedPrecondition) as caught:
        await world.boot().RecordProgress(late)
    assert caught.value.reason in {"NOT_INSTALLING", "NOT_CURRENT"}


async def test_progress_does_not_disturb_who_changes_the_allocation(world: Any) -> None:
    await world.add_machines(1)
    allocation = await world.create()
    await world.reach(allocation.id, "installing")

    async def progress() -> None:
        for percent in range(100):
            await world.boot().RecordProgress(
                installation.RecordProgressRequest(
                    partition="mini", machine=allocation.status.machine, allocation=allocation.id, step="image",
                    percent=percent,
                )
            )  # fmt: skip

    async def describe() -> None:
        for number in range(20):
            wanted = pb.Allocation(id=allocation.id, spec=pb.AllocationSpec(description=f"take {number}"))
            await world.allocations().UpdateAllocation(
                pb.UpdateAllocationRequest(allocation=wanted, update_mask=FieldMask(paths=["spec.description"]))
            )

    await asyncio.gather(progress(), describe())
    await world.install(allocation)
    await world.install(allocation)  # told twice
    await world.reach(allocation.id, "starting")
    shown = await world.get(allocation.id)
    assert shown.spec.description == "take 19"
    assert [line.reason for line in shown.status.timeline].count("INSTALL_REPORTED") == 1
    assert (shown.status.installer_step, shown.status.installer_percent) == ("installed", 100)
