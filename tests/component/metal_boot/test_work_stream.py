from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import uuid4

import nats
from metal_boot.orders import instruct
from metal_boot.plane import make_view
from metal_boot.work import GRANT_SECONDS, response
from metal_kit.errors import Unavailable
from metal_sim.machine import KernelStarted, Rebooted
from metalplane.allocation.v1 import events_pb2, installation_pb2
from metalplane.boot.v1 import boot_pb2
from metalplane.common.v1 import event_pb2

from .conftest import NewMachine, NewWorld, World, machine_maker


async def test_a_replica_that_drains_ends_its_streams_at_once_and_gives_the_lease_back(
    world: World, new_machine: NewMachine, eventually: Any
) -> None:
    machine = new_machine()
    machine.power_on()
    await eventually(lambda: machine.uuid in world.inventory.leases)
    began = time.monotonic()
    await world.boot.stop()
    assert time.monotonic() - began < 2.5, "a stream that waits for the grace time holds up every rollout"
    assert machine.uuid not in world.inventory.leases
    await machine.power_off()


async def test_an_installer_goes_on_with_another_replica(new_world: NewWorld, tmp_path: Any, eventually: Any) -> None:
    first = await new_world()
    machine = machine_maker(first, tmp_path)()
    running = machine.power_on()
    await eventually(lambda: machine.uuid in first.inventory.leases)
    holder = first.inventory.leases[machine.uuid]
    # The installer knows one address, as behind a load balancer: another replica takes the first one's place.
    await first.boot.stop()
    await eventually(lambda: machine.uuid not in first.inventory.leases)
    await new_world(peers=first.peers, listen=first.grpc, http_listen=first.url.removeprefix("http://"))
    await eventually(lambda: first.inventory.leases.get(machine.uuid, holder) != holder)
    assert machine.record.generation == 1, "a new connection is not a new registration"
    assert machine.events.count("WAITING") == 1
    first.allocate(machine.uuid)
    await eventually(lambda: first.allocation.results)
    first.want(machine.uuid, installation_pb2.INSTALLATION_STATE_START)
    assert isinstance(await running, KernelStarted)


async def test_the_lease_is_renewed_while_the_machine_waits_and_ends_with_the_installer(
    new_world: NewWorld, tmp_path: Any, eventually: Any
) -> None:
    world = await new_world(lease_seconds=2.0)
    machine = machine_maker(world, tmp_path)()
    machine.power_on()
    await eventually(lambda: world.inventory.renewals >= 3)
    await machine.power_off()
    await eventually(lambda: machine.uuid not in world.inventory.leases)


async def test_the_end_of_an_old_stream_does_not_end_the_lease_of_a_newer_one(
    world: World, new_machine: NewMachine, eventually: Any
) -> None:
    machine = new_machine()
    machine.power_on()
    await eventually(lambda: machine.uuid in world.inventory.leases)
    newer = str(uuid4())
    world.inventory.leases[machine.uuid] = newer
    await machine.power_off()
    await world.boot.stop()
    assert world.inventory.leases[machine.uuid] == newer


async def test_an_installer_of_an_older_registration_is_sent_away(
    world: World, new_machine: NewMachine, eventually: Any
) -> None:
    machine = new_machine()
    running = machine.power_on()
    await eventually(lambda: machine.events and machine.events[-1] == "WAITING")
    machine.record.generation += 1
    assert isinstance(await running, Rebooted)
    assert machine.events[-1] == "PLANNED_REBOOT"


async def test_a_hint_on_the_bus_wakes_the_stream_long_before_the_next_poll(
    new_world: NewWorld, nats_url: str, tmp_path: Any, eventually: Any
) -> None:
    world = await new_world(nats_url=nats_url, poll_seconds=2.0)
    machine = machine_maker(world, tmp_path)()
    running = machine.power_on()
    await eventually(lambda: machine.events and machine.events[-1] == "WAITING")
    client = await nats.connect(nats_url)
    try:
        installed: list[float] = []
        allocation = world.allocate(machine.uuid)
        began = time.monotonic()
        event = event_pb2.Event(entity="installation", entity_id=allocation)
        event.payload.Pack(events_pb2.InstallationChanged(machine=machine.uuid, allocation=allocation))
        await client.publish("metalplane.allocation.installation.changed", event.SerializeToString())
        await eventually(lambda: "INSTALLING" in machine.events)
        installed.append(time.monotonic() - began)
    finally:
        await client.close()
    assert installed[0] < 1.5
    await machine.power_off()
    assert running.done()


async def test_an_outage_of_the_plane_does_not_stop_an_installer_that_waits(
    world: World, new_machine: NewMachine, eventually: Any
) -> None:
    machine = new_machine()
    running = machine.power_on()
    await eventually(lambda: machine.events and machine.events[-1] == "WAITING")
    world.inventory.problem = world.allocation.problem = Unavailable("DOWN", "down")
    await asyncio.sleep(0.5)  # a few polls fail
    assert not running.done()
    world.inventory.problem = world.allocation.problem = None
    world.allocate(machine.uuid)
    await eventually(lambda: world.allocation.results)
    assert world.allocation.results[0].succeeded
    await machine.power_off()


async def test_a_result_that_cannot_be_reported_at_first_is_reported_later(
    world: World, new_machine: NewMachine, eventually: Any
) -> None:
    machine = new_machine()
    machine.power_on()
    await eventually(lambda: machine.events and machine.events[-1] == "WAITING")
    record, refused = world.allocation.RecordResult, 0

    async def refuse(request: Any, context: Any) -> Any:
        nonlocal refused
        refused += 1
        if refused <= 3:
            raise Unavailable("DOWN", "down")
        return await record(request, context)

    world.allocation.RecordResult = refuse  # type: ignore[method-assign]
    world.allocate(machine.uuid)
    await eventually(lambda: world.allocation.results)
    assert world.allocation.results[0].succeeded
    assert [step for step, _, message in world.allocation.progress if not message].count("partition") == 1
    await machine.power_off()


async def test_a_machine_that_is_taken_back_while_its_installer_runs_begins_anew(
    world: World, new_machine: NewMachine, eventually: Any
) -> None:
    machine = new_machine()
    running = machine.power_on()
    await eventually(lambda: machine.events and machine.events[-1] == "WAITING")
    world.allocate(machine.uuid)
    await eventually(lambda: world.allocation.results)
    del world.allocation.installations[machine.uuid]
    machine.record.ClearField("binding")
    machine.record.disks_clean = False
    assert isinstance(await running, Rebooted)
    assert "taken back" in world.inventory.messages[machine.uuid][-1]
    machine.power_on()
    await eventually(lambda: machine.record.disks_clean and machine.events[-1] == "WAITING")
    assert machine.hardware.installed_system() is None, "the tenant's system is gone"
    await machine.power_off()


async def test_a_grant_ends_and_names_the_disks_of_this_generation(world: World, new_machine: NewMachine) -> None:
    machine = new_machine()
    record = world.inventory.machine(machine.uuid)
    record.generation = 3
    for disk in machine.hardware.machine.disks:
        record.hardware.disks.add(name=disk.device, serial=disk.serial)
    view = make_view(machine.uuid, record, installation_pb2.Installation())
    item: boot_pb2.WorkResponse = response(instruct(view.situation), view, expires=time.time() + GRANT_SECONDS)
    grant = item.wipe.grant
    assert (grant.machine, grant.generation, grant.allocation) == (machine.uuid, 3, "")
    assert list(grant.disk_serials) == ["NVME1", "HDD1"]
    assert 0 < grant.expire_time.ToSeconds() - time.time() <= GRANT_SECONDS
