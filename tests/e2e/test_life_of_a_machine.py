"""A machine from power-on to a tenant and back, through everything that is real in the lab."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from metal_kit.errors import NotFound, PermissionDenied
from metal_kit.tls import Identity
from metal_lab.tour import Tour
from metalplane.allocation.v1 import allocation_pb2 as allocation
from metalplane.allocation.v1.allocation_pb2_grpc import AllocationServiceStub
from metalplane.fabric.v1.generation_pb2 import (
    GetDesiredStateRequest,
    ListGenerationsRequest,
    RollbackSwitchRequest,
    UnpinSwitchRequest,
)
from metalplane.fabric.v1.generation_pb2_grpc import GenerationServiceStub
from metalplane.fabric.v1.switch_pb2 import GetAttachmentRequest
from metalplane.fabric.v1.switch_pb2_grpc import SwitchServiceStub
from metalplane.inventory.v1 import machine_pb2 as inventory
from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceStub
from metalplane.ipam.v1 import ip_pb2, prefix_pb2
from metalplane.ipam.v1.ip_pb2_grpc import IpServiceStub
from metalplane.ipam.v1.prefix_pb2_grpc import PrefixServiceStub

if TYPE_CHECKING:
    from tests.e2e.conftest import World

pytestmark = pytest.mark.timeout(240)


async def test_the_tour_takes_a_machine_to_a_tenant_and_back(world: World) -> None:
    await world.until_all_waiting()
    context = world.lab.state.context() or {}
    identity = Identity(context["ca"], context["cert"], context["key"])
    said: list[str] = []
    tour = Tour(dict(context["endpoints"]), identity, context["token"], say=said.append, ask_port=world.lab.port)

    report = await tour.run()

    assert report.running > 0
    assert report.vrf > 0
    assert report.ips, "the machine got addresses"
    assert {facts["vni"] for facts in report.ports_running.values()} == {report.vrf}
    assert len(report.ports_running) == 2, "two leaves"
    assert {facts["vlan"] for facts in report.ports_back.values()} == {4000}
    assert report.wipe_methods == ["nvme-format-crypto"]
    assert any("confirmed by leaf1" in line for line in said)


async def test_a_running_machine_boots_its_disk_when_it_is_reset_and_nothing_of_it_changes(world: World) -> None:
    made = await world.allocate()
    running = await world.until_phase(made.id, "RUNNING")
    machine = next(each for each in world.lab.machines.values() if each.placed.uuid == running.status.machine)
    before = _digest(machine.directory)
    # The boot override is lost and the machine asks the network: the plane has to send it to its disk.
    machine.bmc.chassis.flags = b"\x00\x00\x00\x00\x00"
    boots = machine.hardware.history.count(("sgdisk",))
    machine.bmc.chassis.control(3)

    await world.eventually(lambda: machine.activity.startswith("running"), seconds=30)

    assert _digest(machine.directory) == before
    assert machine.hardware.history.count(("sgdisk",)) == boots
    await world.free(made.id)
    await world.until_phase(made.id, "RELEASED")
    await world.until_waiting(running.status.machine)


async def test_a_running_machine_says_that_a_leaf_is_held_at_a_state_without_it(world: World) -> None:
    await world.until_all_waiting()
    made = await world.allocate()
    machine = (await world.until_phase(made.id, "RUNNING")).status.machine
    switches = world.operator.stub(SwitchServiceStub, "fabric")
    generations = world.operator.stub(GenerationServiceStub, "fabric")
    attachment = await switches.GetAttachment(GetAttachmentRequest(machine=machine))
    leaf, port = attachment.leaves[0].switch_id, attachment.leaves[0].port

    async def without_it() -> int:
        kept = await generations.ListGenerations(ListGenerationsRequest(switch_id=leaf))
        for generation in kept.generations:
            state = await generations.GetDesiredState(
                GetDesiredStateRequest(switch_id=leaf, generation=generation.number)
            )
            if not next(each.vrf for each in state.ports if each.name == port):
                return int(generation.number)
        raise AssertionError("no generation without the machine is kept")

    async def attached(wanted: bool) -> bool:
        conditions = (await world.allocation(made.id)).status.conditions
        return next(each.status for each in conditions if each.type == "Attached") is wanted

    await generations.RollbackSwitch(RollbackSwitchRequest(switch_id=leaf, generation=await without_it()))
    await world.eventually(lambda: attached(False))
    shown = await world.allocation(made.id)
    (message,) = [each.message for each in shown.status.conditions if each.type == "Attached"]
    assert message.startswith(f"waiting for {leaf} (")
    assert shown.status.phase == allocation.AllocationPhase.ALLOCATION_PHASE_RUNNING
    await generations.UnpinSwitch(UnpinSwitchRequest(switch_id=leaf))
    await world.eventually(lambda: attached(True))
    await world.free(made.id)
    await world.until_phase(made.id, "RELEASED")
    await world.until_waiting(machine)


async def test_what_a_tenant_wrote_is_gone_when_the_machine_waits_again(world: World) -> None:
    made = await world.allocate()
    running = await world.until_phase(made.id, "RUNNING")
    machine = next(each for each in world.lab.machines.values() if each.placed.uuid == running.status.machine)
    system = machine.hardware.installed_system()
    assert system is not None
    assert system.hostname == made.spec.name
    secret = b"the tenant's secret " * 64
    (system.root / "secret").write_bytes(secret)
    disk = next(iter(machine.hardware.disks.values()))
    await disk.write(disk.spec.size_bytes - len(secret), secret)

    await world.free(made.id)
    await world.until_phase(made.id, "RELEASED")
    clean = await world.until_waiting(running.status.machine)

    assert [result.verified for result in clean.wipe_results] == [True]
    assert machine.hardware.installed_system() is None
    assert not list(machine.directory.rglob("secret"))
    assert await disk.read(disk.spec.size_bytes - len(secret), len(secret)) == bytes(len(secret))


async def test_a_freed_machine_leaves_no_address_behind(world: World) -> None:
    made = await world.allocate()
    running = await world.until_phase(made.id, "RUNNING")
    ips = world.operator.stub(IpServiceStub, "ipam")
    owner = ip_pb2.Owner(kind=ip_pb2.OwnerKind.OWNER_KIND_ALLOCATION, id=made.id)
    held = await ips.ListIps(ip_pb2.ListIpsRequest(owner=owner))
    assert sorted(ip.address for ip in held.ips) == sorted(ip for each in running.status.networks for ip in each.ips)

    await world.free(made.id)
    await world.until_phase(made.id, "RELEASED")

    assert not (await ips.ListIps(ip_pb2.ListIpsRequest(owner=owner))).ips
    prefixes = world.operator.stub(PrefixServiceStub, "ipam")
    assert not (await prefixes.VerifyPrefixes(prefix_pb2.VerifyPrefixesRequest())).findings
    await world.until_waiting(running.status.machine)


async def test_another_tenant_does_not_see_the_machine(world: World) -> None:
    stub = world.tenant.stub(MachineServiceStub, "inventory")
    listed = await stub.ListMachines(inventory.ListMachinesRequest())
    assert not [machine for machine in listed.machines if machine.binding.project != world.project]
    stranger = next(iter(world.lab.machines.values())).placed.uuid
    with pytest.raises(NotFound):
        await stub.GetMachine(inventory.GetMachineRequest(id=stranger))
    with pytest.raises(PermissionDenied):
        await stub.SetMachineState(
            inventory.SetMachineStateRequest(
                id=stranger, state=inventory.MachineState.MACHINE_STATE_LOCKED, description="mine"
            )
        )


async def test_a_watch_that_broke_resumes_where_it_was(world: World) -> None:
    stub = world.tenant.stub(AllocationServiceStub, "allocation")
    made = await world.allocate()
    first = stub.WatchAllocations(allocation.WatchAllocationsRequest(allocation=made.id), timeout=60)
    position = ""
    async for batch in first:
        position = batch.position
        break
    await world.until_phase(made.id, "RUNNING")
    seen: list[str] = []
    resumed = stub.WatchAllocations(
        allocation.WatchAllocationsRequest(allocation=made.id, position=position), timeout=60
    )
    async for batch in resumed:
        seen += [allocation.AllocationPhase.Name(change.allocation.status.phase) for change in batch.changes]
        if "ALLOCATION_PHASE_RUNNING" in seen:
            break
    order = [name for index, name in enumerate(seen) if index == 0 or seen[index - 1] != name]
    assert order[-1] == "ALLOCATION_PHASE_RUNNING"
    assert "ALLOCATION_PHASE_ATTACHING" in order
    await world.free(made.id)
    await world.until_phase(made.id, "RELEASED")
    await world.until_waiting(made.status.machine)


def _digest(directory: Path) -> str:
    """Over every file of the machine's disks."""
    found = hashlib.sha256()
    for path in sorted((directory / "disks").rglob("*")):
        if path.is_file():
            found.update(str(path.relative_to(directory)).encode())
            found.update(path.read_bytes() if path.stat().st_size < 2**26 else str(path.stat().st_blocks).encode())
    return found.hexdigest()
