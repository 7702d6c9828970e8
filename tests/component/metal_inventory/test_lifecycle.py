"""Provisioning events: each once, none lost, in one order, whoever sends them."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from metal_inventory.contract import STATE_NUMBERS
from metal_inventory.lifecycle import Event, EventType, Progress, receive
from metal_kit.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Problem
from metal_kit.identity import partition_agent_id
from metalplane.inventory.v1 import machine_pb2 as pb

PARTITION = "mini"
M1 = "00000001-0051-3510-8052-b4c04f4e3132"
PROJECT = "0198c1d2-0000-7000-8000-000000000001"
CRASHED, PLANNED_REBOOT = pb.PROVISIONING_EVENT_TYPE_CRASHED, pb.PROVISIONING_EVENT_TYPE_PLANNED_REBOOT


async def history(inventory: Any, machine: str) -> list[Any]:
    request = pb.ListMachineEventsRequest(machine=machine, page_size=500)
    return list((await inventory.machines().ListMachineEvents(request)).events)


async def test_a_machine_comes_all_the_way_to_waiting(inventory: Any) -> None:
    machine = await inventory.waiting(M1)
    assert machine.lifecycle.state == pb.LIFECYCLE_STATE_WAITING
    assert machine.lifecycle.liveliness == pb.LIVELINESS_ALIVE
    assert (machine.partition, machine.rack, machine.size) == (PARTITION, "rack-1", "c1-medium")
    assert (machine.waiting, machine.disks_clean, machine.generation) == (True, True, 1)
    assert [link.switch_id for link in machine.links] == ["leaf01", "leaf02"]
    assert not machine.HasField("binding")
    assert not machine.lifecycle.HasField("last_error")
    assert [event.sequence for event in await history(inventory, M1)] == [4, 3, 2, 1]


async def test_the_first_event_creates_the_machine(inventory: Any) -> None:
    assert await inventory.report(M1, "PXE_BOOTING") == ["ACCEPTED"]
    machine = await inventory.get(M1)
    assert (machine.id, machine.partition, machine.size) == (M1, PARTITION, "unknown")
    assert machine.lifecycle.state == pb.LIFECYCLE_STATE_PXE_BOOTING


async def test_a_hundred_events_at_once_are_all_stored_without_a_gap(inventory: Any) -> None:
    """L26, over two replicas."""
    await inventory.replica()
    await inventory.report(M1, "PXE_BOOTING")

    async def send(number: int) -> Any:
        event = pb.ReportedEvent(id=str(uuid4()), type=PLANNED_REBOOT, message=str(number))
        request = pb.RecordEventsRequest(partition=PARTITION, machine=M1, events=[event])
        return await inventory.boot(replica=number % 2).RecordEvents(request)

    responses = await asyncio.gather(*(send(number) for number in range(99)))
    assert {tuple(each.outcomes) for each in responses} == {(pb.EVENT_OUTCOME_ACCEPTED,)}
    events = await history(inventory, M1)
    assert [event.sequence for event in events] == list(range(100, 0, -1))
    assert {event.message for event in events[:99]} == {str(number) for number in range(99)}
    times = [event.time.ToNanoseconds() for event in events]
    assert times == sorted(times, reverse=True)


async def test_the_history_keeps_the_newest_hundred(inventory: Any) -> None:
    for _ in range(3):
        assert set(await inventory.report(M1, *["PLANNED_REBOOT"] * 50)) == {"ACCEPTED"}
    assert [event.sequence for event in await history(inventory, M1)] == list(range(150, 50, -1))


async def test_the_history_pages_from_the_newest_on(inventory: Any) -> None:
    await inventory.report(M1, *["PLANNED_REBOOT"] * 5)
    request, seen = pb.ListMachineEventsRequest(machine=M1, page_size=2), []
    while True:
        page = await inventory.machines().ListMachineEvents(request)
        seen += [event.sequence for event in page.events]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == [5, 4, 3, 2, 1]


async def test_clocks_of_senders_that_are_apart_lose_no_event(inventory: Any) -> None:
    """L27: the reported time is kept and shown, and decides nothing."""
    event = pb.ReportedEvent(type=PLANNED_REBOOT)
    event.reported_time.FromSeconds(1)
    request = pb.RecordEventsRequest(partition=PARTITION, machine=M1, events=[event])
    await inventory.report(M1, "PXE_BOOTING")
    assert list((await inventory.boot().RecordEvents(request)).outcomes) == [pb.EVENT_OUTCOME_ACCEPTED]
    newest = (await history(inventory, M1))[0]
    assert newest.reported_time.seconds == 1
    assert newest.time.seconds > 1_600_000_000


async def test_an_event_from_a_last_time_in_the_future_is_stored_all_the_same(inventory: Any) -> None:
    """L27: as if a replica with a clock ahead of ours had written the last event."""
    await inventory.report(M1, "PXE_BOOTING")
    await inventory.silent_for(M1, "-30 seconds")
    assert await inventory.report(M1, "PREPARING", "REGISTERING") == ["ACCEPTED", "ACCEPTED"]
    times = [event.time.ToNanoseconds() for event in await history(inventory, M1)]
    assert times == sorted(times, reverse=True)


async def test_an_event_that_changes_nothing_but_the_history_uses_up_its_number(inventory: Any) -> None:
    """Also where even its time is that of the last one: a database that took over has a clock that is behind."""
    await inventory.report(M1, "PLANNED_REBOOT")
    await inventory.silent_for(M1, "-10 minutes")
    for _ in range(3):
        assert await inventory.report(M1, "PLANNED_REBOOT") == ["ACCEPTED"]
    assert [event.sequence for event in await history(inventory, M1)] == [4, 3, 2, 1]


async def test_a_repeated_event_id_is_recorded_once_and_answered_alike(inventory: Any) -> None:
    event = pb.ReportedEvent(id=str(uuid4()), type=CRASHED, message="out of memory")
    request = pb.RecordEventsRequest(partition=PARTITION, machine=M1, events=[event, event])
    for _ in range(2):
        outcomes = list((await inventory.boot().RecordEvents(request)).outcomes)
        assert outcomes == [pb.EVENT_OUTCOME_ACCEPTED, pb.EVENT_OUTCOME_ACCEPTED]
    assert len(await history(inventory, M1)) == 1


async def test_ids_in_capital_letters_are_the_same_ids(inventory: Any) -> None:
    """The contract takes them: what compares ids must not take them for others."""
    loud, event_id, holder = M1.upper(), "4C4C4544-0051-3510-8052-B4C04F4E3132", "AAAAAAAA-0051-3510-8052-B4C04F4E3132"
    request = pb.RecordEventsRequest(partition=PARTITION, machine=loud)
    request.events.add(id=event_id, type=CRASHED)
    for _ in range(2):
        assert (await inventory.boot().RecordEvents(request)).outcomes == [pb.EVENT_OUTCOME_ACCEPTED]
    reported = pb.ReportBmcsRequest(partition=PARTITION)
    reported.reports.add(machine=loud).bmc.address = "192.0.2.1:623"
    await inventory.machines(partition_agent_id(PARTITION, "bmc")).ReportBmcs(reported)
    assert (await inventory.get(loud)).bmc.address == "192.0.2.1:623"
    for _ in range(2):
        assert (await inventory.register(loud, session=event_id)).generation == 1
    await inventory.report(M1, "WAITING")
    machine = await inventory.wipe(await inventory.get(M1))
    assert (await inventory.lease(machine, holder=holder)).waiting
    assert not (await inventory.lease(machine, holder=holder, waiting=False)).waiting
    await inventory.lease(machine, holder=holder)
    for _ in range(2):
        await inventory.bind(M1, event_id, PROJECT)
    assert not (await inventory.unbind(M1, event_id)).HasField("binding")


async def test_an_unexpected_event_is_told_and_kept_as_the_last_error(inventory: Any) -> None:
    await inventory.report(M1, "PXE_BOOTING", "PREPARING")
    assert await inventory.report(M1, "PXE_BOOTING") == ["UNEXPECTED"]
    lifecycle = (await inventory.get(M1)).lifecycle
    assert lifecycle.crash_loop
    assert lifecycle.state == pb.LIFECYCLE_STATE_PXE_BOOTING
    assert lifecycle.last_error.message == "[unexpectedly received in Preparing]"


@pytest.mark.parametrize("failed_before", [True, False])
async def test_a_late_phone_home_in_pxe_booting_sets_or_keeps_a_failed_reclaim(
    inventory: Any, failed_before: bool
) -> None:
    """L42."""
    await inventory.report(M1, "PXE_BOOTING")
    await inventory.sql("UPDATE lifecycle SET failed_reclaim = $1", failed_before)
    assert await inventory.report(M1, "PHONED_HOME") == ["DROPPED"]
    await inventory.silent_for(M1, "5 minutes 1 second")
    assert await inventory.report(M1, "PHONED_HOME") == ["SWALLOWED"]
    assert (await inventory.get(M1)).lifecycle.failed_reclaim


async def test_a_sign_of_life_costs_no_version_and_no_event(inventory: Any) -> None:
    await inventory.report(M1, "PXE_BOOTING", "PREPARING")
    before = await inventory.get(M1)
    changes = await inventory.sql("SELECT count(*) AS n FROM change")
    assert await inventory.report(M1, "ALIVE") == ["SWALLOWED"]
    after = await inventory.get(M1)
    assert after.etag == before.etag
    assert after.lifecycle.last_event_time.ToNanoseconds() > before.lifecycle.last_event_time.ToNanoseconds()
    assert await inventory.sql("SELECT count(*) AS n FROM change") == changes


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"machine": "not-a-uuid"}, "machine"),
        ({"events": []}, "events"),
        ({"events": [pb.ReportedEvent(type=99)]}, "events[0].type"),  # type: ignore[arg-type]
        ({"events": [pb.ReportedEvent()]}, "events[0].type"),
        ({"events": [pb.ReportedEvent(type=CRASHED, message="x" * 1025)]}, "events[0].message"),
        (
            {"events": [pb.ReportedEvent(type=CRASHED, reported_time=Timestamp(seconds=1 << 60))]},
            "events[0].reported_time",
        ),
    ],
)
async def test_a_wrong_event_is_refused_by_its_field_and_nothing_is_written(
    inventory: Any, change: dict[str, Any], field: str
) -> None:
    """L24 among them: an unknown type."""
    good = {"partition": PARTITION, "machine": M1, "events": [pb.ReportedEvent(type=CRASHED)]}
    with pytest.raises(InvalidArgument) as refused:
        await inventory.boot().RecordEvents(pb.RecordEventsRequest(**(good | change)))
    assert refused.value.field == field
    assert await inventory.sql("SELECT 1 FROM machine") == []


async def test_a_partition_that_does_not_exist_gets_no_machines(inventory: Any) -> None:
    stranger = inventory.machines(partition_agent_id("nowhere", "boot"))
    request = pb.RecordEventsRequest(partition="nowhere", machine=M1, events=[pb.ReportedEvent(type=CRASHED)])
    with pytest.raises(FailedPrecondition) as refused:
        await stranger.RecordEvents(request)
    assert (refused.value.reason, refused.value.field) == ("PARTITION_NOT_FOUND", "partition")
    assert await inventory.sql("SELECT 1 FROM machine") == []


async def test_an_agent_speaks_for_its_own_partition_and_machines_only(inventory: Any) -> None:
    await inventory.report(M1, "PXE_BOOTING")
    await inventory.sql("INSERT INTO partition (id, body) VALUES ('other', '')")
    stranger = inventory.machines(partition_agent_id("other", "boot"))
    request = pb.RecordEventsRequest(partition="other", machine=M1, events=[pb.ReportedEvent(type=CRASHED)])
    with pytest.raises(FailedPrecondition, match="MACHINE_IN_OTHER_PARTITION"):
        await stranger.RecordEvents(request)
    request.partition = PARTITION
    with pytest.raises(PermissionDenied):
        await stranger.RecordEvents(request)
    assert len(await history(inventory, M1)) == 1


async def test_an_event_of_an_allocation_creates_no_machine(inventory: Any) -> None:
    with pytest.raises(NotFound):
        await inventory.report(M1, "MACHINE_RECLAIM", allocation=str(uuid4()))
    with pytest.raises(NotFound):
        await inventory.get(M1)


async def test_late_events_of_an_old_allocation_do_not_reach_the_next_one(inventory: Any) -> None:
    await inventory.waiting(M1)
    old, new, project = (str(uuid4()) for _ in range(3))
    await inventory.bind(M1, new, project)
    assert await inventory.report(M1, "MACHINE_RECLAIM", allocation=old) == ["DROPPED"]
    assert await inventory.report(M1, "MACHINE_RECLAIM", allocation=new) == ["ACCEPTED"]


@pytest.mark.parametrize("seed", range(8))
async def test_stored_histories_are_what_the_rules_make_of_the_events(inventory: Any, seed: int) -> None:
    """Random events in several requests, against the pure rules folded over the same events."""
    choice = random.Random(seed)
    progress, expected, stored, outcomes = Progress(), [], [], []
    start = datetime.now(UTC)
    for _ in range(6):
        types = choice.choices(list(EventType), k=10)
        for type_ in types:
            reception = receive(progress, Event(type_, start), allocated=False)
            progress = reception.progress
            expected.append(reception.verdict.name)
            stored += [reception.stored] if reception.stored else []
        outcomes += await inventory.report(M1, *(type_.name for type_ in types))
    assert outcomes == expected
    events = (await history(inventory, M1))[::-1]
    assert [event.sequence for event in events] == list(range(1, len(stored) + 1))[-100:]
    assert [event.message for event in events] == [event.message for event in stored]
    machine = await inventory.get(M1)
    assert machine.lifecycle.state == STATE_NUMBERS[progress.state]
    assert machine.lifecycle.crash_loop == progress.crash_loop
    assert machine.lifecycle.failed_reclaim == progress.failed_machine_reclaim
    assert machine.lifecycle.last_error.message == (progress.last_error.message if progress.last_error else "")


async def test_an_event_and_what_is_told_of_it_are_stored_together_or_not_at_all(
    inventory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: Any, **more: Any) -> None:
        raise RuntimeError("the outbox is full")

    await inventory.report(M1, "PXE_BOOTING")
    before = await inventory.get(M1)
    event = pb.ReportedEvent(id=str(uuid4()), type=CRASHED)
    request = pb.RecordEventsRequest(partition=PARTITION, machine=M1, events=[event])
    with monkeypatch.context() as patch:
        patch.setattr("metal_kit.outbox.emit", broken)
        with pytest.raises(Problem) as failed:
            await inventory.boot().RecordEvents(request)
        assert "outbox" not in failed.value.message
    assert await inventory.get(M1) == before
    assert len(await history(inventory, M1)) == 1
    # The sender's retry is a first time.
    assert list((await inventory.boot().RecordEvents(request)).outcomes) == [pb.EVENT_OUTCOME_ACCEPTED]
