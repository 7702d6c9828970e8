"""Allocations that run: what becomes of their network on the leaves is seen, told, and taken back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import nats
import pytest
from google.protobuf.message import Message
from metal_kit.errors import NotFound, Unavailable
from metal_kit.ids import uuid7
from metalplane.allocation.v1.allocation_pb2 import AllocationStatus
from metalplane.common.v1.condition_pb2 import Condition
from metalplane.common.v1.event_pb2 import Event
from metalplane.fabric.v1.events_pb2 import AttachmentConfirmed, AttachmentRetracted


class Bus:
    """Fabric's events about one attachment, as its outbox would publish them."""

    def __init__(self, client: Any, machine: str, allocation: str) -> None:
        self._client, self._machine, self._allocation = client, machine, allocation
        self._sequence = 0

    def event(self, *, confirmed: bool) -> Event:
        """The next event, which is not published yet."""
        self._sequence += 1
        fact = "confirmed" if confirmed else "retracted"
        event = Event(
            id=uuid7(), subject=f"metalplane.fabric.attachment.{fact}", entity="attachment", entity_id=self._machine,
            entity_version=self._sequence, sequence=self._sequence,
        )  # fmt: skip
        event.time.GetCurrentTime()
        payload: Message = AttachmentRetracted(allocation=self._allocation, switch_id="leaf2")
        if confirmed:
            payload = AttachmentConfirmed(allocation=self._allocation)
        event.payload.Pack(payload)
        return event

    async def publish(self, event: Event, *, again: bool = False) -> None:
        """Publish it; `again` as if the stream did not know that it has it."""
        headers = {"Nats-Msg-Id": uuid7() if again else event.id}
        await self._client.jetstream().publish(event.subject, event.SerializeToString(), headers=headers)


async def attached(world: Any, id_: str) -> Condition:
    found = await world.get(id_)
    condition: Condition = next(each for each in found.status.conditions if each.type == "Attached")
    return condition


async def ready(world: Any, id_: str) -> bool:
    return next(each.status for each in (await world.get(id_)).status.conditions if each.type == "Ready")


@pytest.fixture
async def running(world: Any, nats_url: str) -> AsyncIterator[tuple[str, Bus]]:
    """An allocation that runs, whose replica listens to NATS and compares nothing by itself; and fabric's voice."""
    await world.add_machines(1)
    allocation = await world.create()
    await world.bring_to(allocation, "running")
    await world.eventually(lambda: world.value("SELECT count(*) = 0 FROM reconcile_queue"), what="nothing to do")
    await world.running.stop()
    world.settings |= {"resync_seconds": 3600, "nats_url": nats_url}
    world.start.keywords.update(world.settings)
    world.running = await world.start()
    client = await nats.connect(nats_url)
    yield allocation.id, Bus(client, allocation.status.machine, allocation.id)
    await client.close()


async def test_a_leaf_that_lost_a_machines_network_is_a_condition_until_it_has_it_again(
    world: Any, running: Any
) -> None:
    id_, bus = running
    before = await world.get(id_)
    world.leaves_answer = False
    retracted = bus.event(confirmed=False)
    await bus.publish(retracted)

    async def lost() -> bool:
        return not (await attached(world, id_)).status

    await world.eventually(lost)
    condition = await attached(world, id_)
    assert condition.reason == "LEAVES_OUTSTANDING"
    assert "leaf2 (not connected, generation 1 of 2)" in condition.message
    assert await ready(world, id_), "its system runs"
    assert await world.phase(id_) == "running"
    now = await world.get(id_)
    assert [each.reason for each in now.status.timeline[len(before.status.timeline) :]] == ["LEAVES_OUTSTANDING"]

    # It comes twice, and once more when everything is well again: what the leaves have counts.
    await bus.publish(retracted, again=True)
    world.leaves_answer = True
    confirmed = bus.event(confirmed=True)
    await bus.publish(confirmed)

    async def back() -> bool:
        return (await attached(world, id_)).status

    await world.eventually(back)
    await bus.publish(retracted, again=True)
    await bus.publish(confirmed, again=True)
    marker = bus.event(confirmed=True)
    await bus.publish(marker)
    taken = "SELECT count(*) = 1 FROM consumed WHERE consumer = 'allocation-attachments' AND event_id = $1"
    await world.eventually(lambda: world.value(taken, marker.id))
    await world.eventually(lambda: world.value("SELECT count(*) = 0 FROM reconcile_queue"), what="nothing to do")
    after = await world.get(id_)
    assert [each.reason for each in after.status.timeline[len(now.status.timeline) :]] == ["ATTACHED_AGAIN"]
    assert (await attached(world, id_)).status


async def test_a_running_allocation_looks_on_until_its_leaves_are_well_though_no_event_comes(
    world: Any, running: Any
) -> None:
    id_, bus = running
    world.leaves_answer = False
    await bus.publish(bus.event(confirmed=False))

    async def as_wanted(wanted: bool) -> bool:
        await world.hurry()
        return (await attached(world, id_)).status is wanted

    await world.eventually(lambda: as_wanted(False))
    world.leaves_answer = True
    await world.eventually(lambda: as_wanted(True))


async def test_a_fabric_that_cannot_be_asked_says_nothing_about_the_network(world: Any, running: Any) -> None:
    id_, bus = running
    world.faults["GetAttachment"] = [Unavailable("PEER_DOWN", "for the test")] * 2
    world.faults["GetAttachment"].append(NotFound("MACHINE_NOT_CABLED", "it hangs on no leaf"))
    before = await world.get(id_)
    await bus.publish(bus.event(confirmed=False))

    async def tried(left: int) -> bool:
        await world.hurry()
        return len(world.faults["GetAttachment"]) <= left

    await world.eventually(lambda: tried(1))
    assert (await world.get(id_)).status.conditions == before.status.conditions

    async def uncabled() -> bool:
        await world.hurry()
        return (await attached(world, id_)).reason == "MACHINE_NOT_CABLED"

    await world.eventually(uncabled)
    assert await ready(world, id_)


async def test_one_that_was_attached_before_vnis_had_owners_says_whose_they_are_by_itself(
    world: Any, running: Any
) -> None:
    id_, _ = running
    machine = (await world.get(id_)).status.machine
    owners = [(each.vrf, each.vrf_network) for each in (await world.get(id_)).status.networks]
    assert all(owner for _, owner in owners)
    await world.running.stop()
    record = await world.value("SELECT networks FROM allocation")
    old = AllocationStatus.FromString(record)
    for each in old.networks:
        each.vrf_network = ""
    await world.sql.execute("UPDATE allocation SET networks = $1", old.SerializeToString())
    asked = len(world.calls)
    world.running = await world.start()

    async def said() -> bool:
        return [(each.vrf, each.vrf_network) for each in (await world.get(id_)).status.networks] == owners

    await world.eventually(said)
    (request,) = [request for method, request in world.calls[asked:] if method == "AttachMachine"]
    assert (request.machine, request.allocation, dict(request.networks)) == (machine, id_, dict(owners))
    await world.eventually(lambda: world.value("SELECT count(*) = 0 FROM reconcile_queue"), what="nothing to do")
