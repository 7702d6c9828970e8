"""What inventory tells the plane, and what it takes in: over a real bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import nats
import pytest
from metal_kit.errors import InvalidArgument, OutOfRange
from metal_kit.ids import uuid7
from metalplane.common.v1.condition_pb2 import ChangeType
from metalplane.common.v1.event_pb2 import Event
from metalplane.fabric.v1.events_pb2 import MachineSeen
from metalplane.inventory.v1 import machine_pb2 as pb
from metalplane.inventory.v1.events_pb2 import MachineChanged, MachineDeleted

PROJECT = "0198c1d2-0000-7000-8000-000000000001"
M1 = "00000001-0051-3510-8052-b4c04f4e3132"
M2 = "00000002-0051-3510-8052-b4c04f4e3132"


@pytest.fixture
async def bus(inventory_on_bus: Any) -> AsyncIterator[tuple[Any, list[Event]]]:
    """A connection to the bus, and inventory's events on it from now on."""
    client, seen = await nats.connect(inventory_on_bus.settings["nats_url"]), []

    async def take(message: Any) -> None:
        seen.append(Event.FromString(message.data))

    await client.subscribe("metalplane.inventory.>", cb=take)
    await client.flush()
    yield client, seen
    await client.close()


async def announce(
    client: Any, machine: str, *, partition: str = "mini", version: int = 1, seconds_ago: int = 0
) -> None:
    """What fabric publishes when an installed system announced itself."""
    payload = MachineSeen(switch_id="leaf01", partition=partition)
    payload.phone_home.port, payload.phone_home.machine = "Ethernet0", machine
    payload.phone_home.message = "provisioned"
    event = Event(
        id=uuid7(),
        subject="metalplane.fabric.machine.seen",
        entity="machine",
        entity_id=machine,
        entity_version=version,
        partition=partition,
    )
    event.time.GetCurrentTime()
    event.time.seconds -= seconds_ago
    event.payload.Pack(payload)
    await client.jetstream().publish(event.subject, event.SerializeToString(), headers={"Nats-Msg-Id": event.id})


async def test_every_change_is_published_with_the_whole_machine(
    inventory_on_bus: Any, bus: Any, eventually: Any
) -> None:
    _, seen = bus
    machine = await inventory_on_bus.waiting(M1)
    await eventually(lambda: seen and seen[-1].entity_version == int(machine.etag))
    versions = [event.entity_version for event in seen]
    assert versions == sorted(set(versions))
    assert {(event.subject, event.entity, event.entity_id, event.partition) for event in seen} == {
        ("metalplane.inventory.machine.changed", "machine", M1, "mini")
    }
    last = MachineChanged()
    assert seen[-1].payload.Unpack(last)
    told = last.machine
    assert (told.waiting, told.disks_clean, told.rack, told.size) == (True, True, "rack-1", "c1-medium")
    assert told.hardware == machine.hardware
    assert told.etag == machine.etag


async def test_the_end_of_a_machine_is_published_as_its_end(inventory_on_bus: Any, bus: Any, eventually: Any) -> None:
    _, seen = bus
    await inventory_on_bus.report(M1, "PXE_BOOTING")
    await inventory_on_bus.silent_for(M1, "6 minutes")
    await inventory_on_bus.machines().DeleteMachine(pb.DeleteMachineRequest(id=M1))
    await eventually(lambda: seen and seen[-1].deleted)
    gone = MachineDeleted()
    assert seen[-1].payload.Unpack(gone)
    assert (seen[-1].subject, gone.machine.id) == ("metalplane.inventory.machine.deleted", M1)


async def test_a_system_that_announces_itself_on_a_leaf_has_phoned_home(
    inventory_on_bus: Any, bus: Any, eventually: Any
) -> None:
    client, _ = bus
    await inventory_on_bus.waiting(M1)
    await inventory_on_bus.bind(M1, str(uuid4()), PROJECT)
    await inventory_on_bus.report(M1, "INSTALLING", "BOOTING_NEW_KERNEL")
    await announce(client, M1)

    async def home() -> bool:
        return bool((await inventory_on_bus.get(M1)).lifecycle.state == pb.LIFECYCLE_STATE_PHONED_HOME)

    await eventually(home)
    request = pb.ListMachineEventsRequest(machine=M1, page_size=1)
    [event] = (await inventory_on_bus.machines().ListMachineEvents(request)).events
    assert event.message == "seen on leaf01 Ethernet0: provisioned"


async def test_announcements_create_no_machine_and_touch_none_of_another_partition(
    inventory_on_bus: Any, bus: Any, eventually: Any
) -> None:
    client, _ = bus
    await inventory_on_bus.report(M1, "PXE_BOOTING", "PREPARING")
    before = await inventory_on_bus.get(M1)
    await announce(client, M2)
    await announce(client, M1, partition="other")
    third = inventory_on_bus.machine_id(3)
    await inventory_on_bus.report(third, "PXE_BOOTING", "PLANNED_REBOOT")
    await announce(client, third)  # events of one stream are handled in order: this one is the last

    async def handled() -> bool:
        return bool((await inventory_on_bus.get(third)).lifecycle.state == pb.LIFECYCLE_STATE_PHONED_HOME)

    await eventually(handled)
    assert await inventory_on_bus.get(M1) == before
    assert await inventory_on_bus.sql("SELECT 1 FROM machine WHERE id = $1", M2) == []


async def test_a_phone_home_that_waited_on_the_bus_counts_as_of_when_it_was_heard(
    inventory_on_bus: Any, bus: Any, eventually: Any
) -> None:
    """Inventory was away for six minutes after a reclaim; the leaves heard the old system until a minute after it."""
    client, _ = bus
    for machine in (M1, M2):
        await inventory_on_bus.report(machine, "PXE_BOOTING", "MACHINE_RECLAIM")
        await inventory_on_bus.silent_for(machine, "6 minutes")
    await announce(client, M1, seconds_ago=300)
    await announce(client, M2)  # this one has been heard just now

    async def handled() -> bool:
        return bool((await inventory_on_bus.get(M2)).lifecycle.failed_reclaim)

    await eventually(handled)
    assert not (await inventory_on_bus.get(M1)).lifecycle.failed_reclaim


# -- watch


async def changes(call: Any, count: int) -> list[pb.MachineChange]:
    found: list[pb.MachineChange] = []
    async with asyncio.timeout(20):
        async for response in call:
            found += response.changes
            if len(found) >= count:
                break
    return found


async def test_a_watch_resumes_from_a_position_without_a_gap(inventory: Any) -> None:
    call = inventory.machines().WatchMachines(pb.WatchMachinesRequest())
    async for response in call:
        position = response.position
        break
    await inventory.report(M1, "PXE_BOOTING")
    await inventory.report(M2, "PXE_BOOTING")
    await inventory.report(M1, "PREPARING")
    watch = inventory.machines().WatchMachines(pb.WatchMachinesRequest(position=position))
    found = await changes(watch, 3)
    assert [(each.machine.id, each.machine.lifecycle.state) for each in found] == [
        (M1, pb.LIFECYCLE_STATE_PXE_BOOTING),
        (M2, pb.LIFECYCLE_STATE_PXE_BOOTING),
        (M1, pb.LIFECYCLE_STATE_PREPARING),
    ]
    only = inventory.machines().WatchMachines(pb.WatchMachinesRequest(position=position, machine=M2))
    assert [each.machine.id for each in await changes(only, 1)] == [M2]


async def test_a_member_of_a_project_sees_machines_come_and_go_and_nothing_else(inventory: Any) -> None:
    async for batch in inventory.machines().StreamMachines(pb.StreamMachinesRequest()):
        position = batch.watch_position
    await inventory.waiting(M2)
    await inventory.waiting(M1)
    allocation = str(uuid4())
    await inventory.bind(M1, allocation, PROJECT)
    await inventory.unbind(M1, allocation)
    await inventory.report(M1, "PLANNED_REBOOT")
    await inventory.waiting(M2)
    await inventory.bind(M2, str(uuid4()), PROJECT)
    watch = inventory.machines(token=f"member {PROJECT}").WatchMachines(pb.WatchMachinesRequest(position=position))
    upserted, deleted = ChangeType.CHANGE_TYPE_UPSERTED, ChangeType.CHANGE_TYPE_DELETED
    found = await changes(watch, 3)
    assert [(each.machine.id, each.type) for each in found] == [(M1, upserted), (M1, deleted), (M2, upserted)]
    assert found[1].machine == pb.Machine(id=M1)


async def test_a_position_that_was_never_given_out_is_refused(inventory: Any) -> None:
    for position, problem in (("nonsense", InvalidArgument), ("99999999999:1", OutOfRange)):
        with pytest.raises(problem):
            await changes(inventory.machines().WatchMachines(pb.WatchMachinesRequest(position=position)), 1)
