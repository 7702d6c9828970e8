"""Registration, wipes and the waiting lease."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from metal_kit.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, Problem, Unavailable
from metal_kit.ids import uuid7
from metalplane.inventory.v1 import hardware_pb2 as hw
from metalplane.inventory.v1 import machine_pb2 as pb
from metalplane.inventory.v1 import size_pb2

M1 = "00000001-0051-3510-8052-b4c04f4e3132"
M2 = "00000002-0051-3510-8052-b4c04f4e3132"


async def test_a_registration_is_matched_cabled_and_raises_the_generation(inventory: Any) -> None:
    await inventory.report(M1, "PXE_BOOTING", "PREPARING", "REGISTERING")
    machine = await inventory.register(M1)
    assert (machine.size, machine.rack, machine.generation, machine.disks_clean) == ("c1-medium", "rack-1", 1, False)
    assert machine.bios.vendor == "AMI"
    assert [neighbour.system_name for neighbour in inventory.fabric.connected[M1]] == ["leaf01", "leaf02"]
    assert (await inventory.register(M1)).generation == 2


async def test_a_retry_of_the_same_session_keeps_generation_and_proof(inventory: Any) -> None:
    session = str(uuid4())
    first = await inventory.register(M1, session=session)
    await inventory.wipe(first)
    again = await inventory.register(M1, session=session)
    assert (again.generation, again.disks_clean) == (1, True)
    assert len(again.wipe_results) == 2


async def test_a_boot_that_is_over_registers_no_more(inventory: Any) -> None:
    earlier = str(UUID(int=UUID(uuid7()).int - (1 << 80)))  # a millisecond before
    later = uuid7()
    await inventory.register(M1, session=earlier)
    waiting = await inventory.register(M1, session=later)
    with pytest.raises(Aborted) as refused:
        await inventory.register(M1, session=earlier)
    assert refused.value.reason == "SUPERSEDED"
    assert (await inventory.register(M1, session=later)).generation == waiting.generation == 2


async def test_an_installer_that_sends_no_events_still_leaves_one(inventory: Any) -> None:
    machine = await inventory.register(M1)
    assert machine.lifecycle.state == pb.LIFECYCLE_STATE_REGISTERING
    assert machine.lifecycle.liveliness == pb.LIVELINESS_ALIVE


async def test_hardware_that_no_size_matches_registers_with_an_unknown_size(inventory: Any) -> None:
    machine = await inventory.register(M1, parts=inventory.hardware("x", cores=7))
    assert machine.size == "unknown"


async def test_hardware_that_two_sizes_match_has_none_and_an_issue_that_names_both(inventory: Any) -> None:
    # The API refuses such a pair; the rows are written past it, as an upgrade of the rules could leave them.
    twin = size_pb2.Size(id="twin")
    twin.constraints.extend((await inventory.sizes().GetSize(size_pb2.GetSizeRequest(id="c1-medium"))).constraints)
    await inventory.sql("INSERT INTO size (id, body) VALUES ('twin', $1)", twin.SerializeToString())
    assert (await inventory.register(M1)).size == "unknown"
    request = pb.ListMachineIssuesRequest(only=["size-not-distinct"])
    [issue] = (await inventory.machines().ListMachineIssues(request)).issues
    assert issue.message == "several sizes match the machine: matches c1-medium, twin"


async def test_refused_cabling_registers_the_machine_visibly_but_nobody_gets_it(inventory: Any) -> None:
    inventory.fabric.problem = FailedPrecondition("ONE_LEAF_ONLY", "only leaf01 sees the machine")
    machine = await inventory.waiting(M1)
    assert (machine.rack, machine.cabling_error) == ("", "ONE_LEAF_ONLY: only leaf01 sees the machine")
    with pytest.raises(FailedPrecondition, match="MACHINE_NOT_CABLED"):
        await inventory.bind(M1, str(uuid4()), str(uuid4()))
    [issue] = (await inventory.machines().ListMachineIssues(pb.ListMachineIssuesRequest(only=["no-cabling"]))).issues
    assert (issue.machine, issue.severity) == (M1, pb.ISSUE_SEVERITY_MAJOR)

    inventory.fabric.problem = None
    machine = await inventory.register(M1)
    assert (machine.rack, machine.cabling_error) == ("rack-1", "")


async def test_a_fabric_that_cannot_answer_fails_the_call_and_nothing_is_written(inventory: Any) -> None:
    inventory.fabric.problem = Unavailable("DATABASE_UNREACHABLE", "the database cannot be reached")
    with pytest.raises(Unavailable):
        await inventory.register(M1)
    assert await inventory.sql("SELECT 1 FROM machine") == []


def _without_serial(parts: hw.Hardware) -> None:
    parts.disks[0].serial = ""


def _twice_the_serial(parts: hw.Hardware) -> None:
    parts.disks[1].serial = parts.disks[0].serial


def _twice_the_mac(parts: hw.Hardware) -> None:
    parts.nics[1].mac = parts.nics[0].mac


def _bad_mac(parts: hw.Hardware) -> None:
    parts.nics[1].mac = "02:00:00:00:00"


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (_without_serial, "hardware.disks[0].serial"),
        (_twice_the_serial, "hardware.disks[1].serial"),
        (_twice_the_mac, "hardware.nics[1].mac"),
        (_bad_mac, "hardware.nics[1].mac"),
    ],
)
async def test_wrong_hardware_is_refused_by_its_field_and_nothing_is_written(
    inventory: Any, spoil: Any, field: str
) -> None:
    parts = inventory.hardware("x")
    spoil(parts)
    with pytest.raises(InvalidArgument) as refused:
        await inventory.register(M1, parts=parts)
    assert refused.value.field == field
    assert await inventory.sql("SELECT 1 FROM machine") == []
    assert inventory.fabric.connected == {}


async def test_a_failed_wipe_quarantines_the_disks_loudly(inventory: Any) -> None:
    machine = await inventory.wipe(await inventory.register(M1), error="timeout")
    assert not machine.disks_clean
    request = pb.ListMachineIssuesRequest(only=["quarantined-disks"])
    [issue] = (await inventory.machines().ListMachineIssues(request)).issues
    assert issue.severity == pb.ISSUE_SEVERITY_CRITICAL
    assert all(disk.serial in issue.message for disk in machine.hardware.disks)
    assert not (await inventory.lease(machine, holder=str(uuid4()))).waiting
    assert (await inventory.wipe(machine)).disks_clean


async def test_a_machine_is_clean_only_when_every_disk_is(inventory: Any) -> None:
    machine = await inventory.register(M1)
    request = pb.RecordWipeRequest(partition="mini", machine=M1, generation=1)
    request.results.add(serial=machine.hardware.disks[0].serial, verified=True)
    assert not (await inventory.boot().RecordWipe(request)).disks_clean
    request.results[0].serial = machine.hardware.disks[1].serial
    clean = await inventory.boot().RecordWipe(request)
    assert clean.disks_clean
    assert len(clean.wipe_results) == 2


async def test_a_wipe_that_was_not_verified_proves_nothing(inventory: Any) -> None:
    machine = await inventory.register(M1)
    request = pb.RecordWipeRequest(partition="mini", machine=M1, generation=1)
    for disk in machine.hardware.disks:
        request.results.add(serial=disk.serial, verified=False)
    assert not (await inventory.boot().RecordWipe(request)).disks_clean


async def test_proof_and_lease_of_an_earlier_registration_are_void(inventory: Any) -> None:
    old = await inventory.waiting(M1)
    new = await inventory.register(M1)
    assert (new.disks_clean, new.waiting, len(new.wipe_results)) == (False, False, 0)
    for call in (inventory.wipe(old), inventory.lease(old, holder=str(uuid4()))):
        with pytest.raises(Aborted) as refused:
            await call
        assert (refused.value.reason, refused.value.metadata["generation"]) == ("GENERATION_STALE", "2")
    assert not (await inventory.get(M1)).waiting


async def test_an_installation_soils_the_disks_and_ends_the_wait(inventory: Any) -> None:
    await inventory.waiting(M1)
    await inventory.report(M1, "INSTALLING")
    machine = await inventory.get(M1)
    assert (machine.disks_clean, machine.waiting) == (False, False)


async def test_a_machine_that_is_taken_back_is_not_clean_although_nobody_said_that_it_was_installed(
    inventory: Any,
) -> None:
    machine, allocation = await inventory.waiting(M1), str(uuid4())
    await inventory.bind(M1, allocation, str(uuid4()))
    # The installer's event got lost; its BMC says that it rebooted the machine, and it did not.
    assert await inventory.report(M1, "MACHINE_RECLAIM", allocation=allocation) == ["ACCEPTED"]
    await inventory.unbind(M1, allocation)
    assert not (await inventory.get(M1)).disks_clean
    assert not (await inventory.lease(machine, holder=str(uuid4()))).waiting


# -- the waiting lease


async def test_a_lease_that_nobody_renews_ends_and_is_told(inventory: Any, eventually: Any) -> None:
    machine, holder = await inventory.waiting(M1), str(uuid4())
    await inventory.lease(machine, holder=holder, seconds=0.2)
    row = "SELECT waiting FROM machine"
    await eventually(lambda: _is(inventory, row, False), what="the sweep ends the lease")
    assert not (await inventory.get(M1)).waiting
    with pytest.raises(FailedPrecondition, match="MACHINE_NOT_WAITING"):
        await inventory.bind(M1, str(uuid4()), str(uuid4()))


async def _is(inventory: Any, query: str, value: object) -> bool:
    [row] = await inventory.sql(query)
    return bool(row[0] == value)


async def test_a_renewal_prolongs_the_lease_without_a_new_version(inventory: Any) -> None:
    holder = str(uuid4())
    machine = await inventory.waiting(M1, holder=holder)
    [before] = await inventory.sql("SELECT expires_at FROM waiting_lease")
    assert (await inventory.lease(machine, holder=holder, seconds=100)).waiting
    [after] = await inventory.sql("SELECT expires_at FROM waiting_lease")
    assert after["expires_at"] > before["expires_at"]
    assert (await inventory.get(M1)).etag == machine.etag


async def test_renewals_keep_a_waiting_machine_alive(inventory: Any) -> None:
    holder = str(uuid4())
    machine = await inventory.waiting(M1, holder=holder)
    await inventory.silent_for(M1, "4 minutes")
    await inventory.lease(machine, holder=holder)
    [row] = await inventory.sql("SELECT clock_timestamp() - last_event_at < '1 minute' FROM lifecycle")
    assert row[0]


async def test_the_end_of_an_old_stream_does_not_end_the_wait_of_a_newer_one(inventory: Any) -> None:
    old, new = str(uuid4()), str(uuid4())
    machine = await inventory.waiting(M1, holder=old)
    assert (await inventory.lease(machine, holder=new)).waiting
    assert (await inventory.lease(machine, holder=old, waiting=False)).waiting
    assert (await inventory.get(M1)).waiting
    assert not (await inventory.lease(machine, holder=new, waiting=False)).waiting
    assert not (await inventory.get(M1)).waiting


async def test_a_bound_machine_learns_of_its_allocation_instead_of_waiting(inventory: Any) -> None:
    holder, allocation = str(uuid4()), str(uuid4())
    machine = await inventory.waiting(M1, holder=holder)
    await inventory.bind(M1, allocation, str(uuid4()))
    answer = await inventory.lease(machine, holder=holder)
    assert (answer.waiting, answer.binding.allocation) == (False, allocation)


async def test_an_unknown_machine_cannot_wait(inventory: Any) -> None:
    with pytest.raises(NotFound):
        await inventory.lease(pb.Machine(id=M2, generation=1), holder=str(uuid4()))


async def test_a_lease_without_a_time_or_beyond_two_minutes_is_refused(inventory: Any) -> None:
    machine = await inventory.waiting(M1)
    with pytest.raises(InvalidArgument) as refused:
        await inventory.lease(machine, holder=str(uuid4()), seconds=121)
    assert refused.value.field == "ttl"
    request = pb.SetWaitingRequest(partition="mini", machine=M1, holder=str(uuid4()), waiting=True, generation=1)
    with pytest.raises(Problem) as missing:
        await inventory.boot().SetWaiting(request)
    assert missing.value.field == "ttl"
