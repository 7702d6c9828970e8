"""The tour: a machine from power-on to a tenant and back, told while it happens.

It talks to the plane as anybody does, over gRPC: as the lab's operator where it makes a tenant and a project, as that
tenant for everything else. What it says of a leaf's ports is read from the leaf itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.duration_pb2 import Duration
from metal_kit.client import Peers
from metal_kit.errors import Problem
from metal_kit.ids import uuid7
from metal_kit.tls import Identity
from metalplane.allocation.v1 import allocation_pb2 as allocation
from metalplane.allocation.v1.allocation_pb2_grpc import AllocationServiceStub
from metalplane.common.v1.access_pb2 import Role
from metalplane.inventory.v1 import machine_pb2 as inventory
from metalplane.inventory.v1.image_pb2 import ImageFeature, ListImagesRequest
from metalplane.inventory.v1.image_pb2_grpc import ImageServiceStub
from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceStub
from metalplane.ipam.v1 import network_pb2 as ipam
from metalplane.ipam.v1.network_pb2_grpc import NetworkServiceStub
from metalplane.tenancy.v1 import project_pb2, tenant_pb2, token_pb2
from metalplane.tenancy.v1.project_pb2_grpc import ProjectServiceStub
from metalplane.tenancy.v1.tenant_pb2_grpc import TenantServiceStub
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceStub

Say = Callable[[str], None]
TENANT = "acme"


class TourFailed(Exception):
    """A step of the tour did not come to its end in time; the text says what was waited for and what was last seen."""


@dataclass(slots=True)
class Limits:
    """Seconds that each part may take before the tour gives up."""

    waiting: float = 90.0
    running: float = 90.0
    released: float = 90.0
    back: float = 90.0


@dataclass(slots=True)
class Report:
    """What the tour measured, in seconds since it began, and what it saw."""

    waiting: float = 0.0
    running: float = 0.0
    released: float = 0.0
    back: float = 0.0
    machine: str = ""
    ips: list[str] = field(default_factory=list)
    vrf: int = 0
    ports_running: dict[str, Any] = field(default_factory=dict)
    ports_back: dict[str, Any] = field(default_factory=dict)
    wipe_methods: list[str] = field(default_factory=list)


class Tour:
    """One walk. `ask_port(leaf, port)` answers what the switch itself does with a port."""

    def __init__(
        self,
        endpoints: dict[str, str],
        identity: Identity,
        operator_token: str,
        *,
        say: Say,
        ask_port: Callable[[str, str], Any],
        limits: Limits | None = None,
    ) -> None:
        self._endpoints = endpoints
        self._identity = identity
        self._say = say
        self._ask_port = ask_port
        self._limits = limits or Limits()
        self._operator = Peers(endpoints, identity, token=lambda: operator_token)
        self._tenant_token = ""
        self._tenant = Peers(endpoints, identity, token=lambda: self._tenant_token)
        self._began = time.monotonic()
        self.report = Report()

    async def run(self) -> Report:
        """Walk. Raises TourFailed, or the Problem that the plane answered."""
        try:
            await self._all_waiting()
            project = await self._project()
            network = await self._network(project)
            made = await self._allocate(project, network)
            await self._show(made, network)
            await self._free(made)
            await self._back(made)
            return self.report
        finally:
            await self._tenant.close()
            await self._operator.close()

    def _since(self) -> float:
        return time.monotonic() - self._began

    def _tell(self, text: str) -> None:
        self._say(f"{self._since():6.1f} s  {text}")

    async def _all_waiting(self) -> None:
        self._say("\nMachines power on, boot the installer, register and are wiped:")
        machines = self._operator.stub(MachineServiceStub, "inventory")
        last: dict[str, str] = {}

        async def everyone() -> str:
            page = await machines.ListMachines(inventory.ListMachinesRequest(page_size=500))
            for machine in page.machines:
                state = _state(machine)
                if last.get(machine.id) != state:
                    last[machine.id] = state
                    self._tell(f"machine {machine.id[:8]}  {state}{await self._way(machine)}")
            missing = [machine for machine in page.machines if not (machine.waiting or machine.binding.allocation)]
            return (
                "" if page.machines and not missing else f"{len(missing)} of {len(page.machines)} machines not waiting"
            )

        await self._until(everyone, self._limits.waiting, "all machines waiting")
        self.report.waiting = self._since()

    async def _way(self, machine: inventory.Machine) -> str:
        """How a waiting machine came there: its provisioning events with the seconds since the first of them."""
        if not machine.waiting:
            return ""
        stub = self._operator.stub(MachineServiceStub, "inventory")
        page = await stub.ListMachineEvents(inventory.ListMachineEventsRequest(machine=machine.id, page_size=100))
        events = sorted(page.events, key=lambda event: event.sequence)
        pxe = inventory.ProvisioningEventType.PROVISIONING_EVENT_TYPE_PXE_BOOTING
        last_boot = max((index for index, event in enumerate(events) if event.type == pxe), default=0)
        way = events[last_boot:]
        steps = [
            f"{_event(event)} {(event.time.ToDatetime() - way[0].time.ToDatetime()).total_seconds():.1f} s"
            for event in way
        ]
        return f"\n{'':10}{' → '.join(steps)}" if steps else ""

    async def _project(self) -> project_pb2.Project:
        self._say("\nAn operator makes a tenant with a project, and a token for it:")
        tenants = self._operator.stub(TenantServiceStub, "tenancy")
        projects = self._operator.stub(ProjectServiceStub, "tenancy")
        tokens = self._operator.stub(TokenServiceStub, "tenancy")
        listed = await tenants.ListTenants(tenant_pb2.ListTenantsRequest(page_size=500))
        tenant = next((each for each in listed.tenants if each.name == TENANT), None)
        if tenant is None:
            tenant = await tenants.CreateTenant(
                tenant_pb2.CreateTenantRequest(request_id=uuid7(), tenant=tenant_pb2.Tenant(name=TENANT))
            )
        name = f"tour-{uuid7()[-6:]}"
        project = await projects.CreateProject(
            project_pb2.CreateProjectRequest(
                request_id=uuid7(), project=project_pb2.Project(tenant=tenant.id, name=name)
            )
        )
        made = await tokens.CreateToken(
            token_pb2.CreateTokenRequest(
                token=token_pb2.Token(
                    user=f"{name}-user",
                    description="the lab's tour",
                    project_roles={project.id: Role.ROLE_EDITOR},
                ),
                lifetime=Duration(seconds=3600),
            )
        )
        self._tenant_token = made.secret
        self._tell(f"project {TENANT}/{name}, with an editor's token for one hour")
        return project

    async def _network(self, project: project_pb2.Project) -> ipam.Network:
        self._say("\nThe tenant makes a network:")
        machines = self._operator.stub(MachineServiceStub, "inventory")
        some = await machines.ListMachines(inventory.ListMachinesRequest(page_size=1))
        networks = self._tenant.stub(NetworkServiceStub, "ipam")
        network = await networks.CreateNetwork(
            ipam.CreateNetworkRequest(
                request_id=uuid7(),
                network=ipam.Network(
                    type=ipam.NetworkType.NETWORK_TYPE_CHILD,
                    project=project.id,
                    partition=some.machines[0].partition,
                    name="private",
                ),
            )
        )
        self._tell(f"network {network.id}: {', '.join(network.prefixes)}, VRF and VNI {network.vrf}")
        self.report.vrf = network.vrf
        return network

    async def _allocate(self, project: project_pb2.Project, network: ipam.Network) -> allocation.Allocation:
        self._say("\nThe tenant asks for a machine:")
        machines = self._operator.stub(MachineServiceStub, "inventory")
        listed = await machines.ListMachines(
            inventory.ListMachinesRequest(filter=inventory.MachineFilter(waiting=True, allocated=False), page_size=1)
        )
        free = listed.machines[0]
        images = await self._operator.stub(ImageServiceStub, "inventory").ListImages(ListImagesRequest())
        image = next(each for each in images.images if ImageFeature.IMAGE_FEATURE_MACHINE in each.features)
        allocations = self._tenant.stub(AllocationServiceStub, "allocation")
        made = await allocations.CreateAllocation(
            allocation.CreateAllocationRequest(
                request_id=uuid7(),
                project=project.id,
                spec=allocation.AllocationSpec(
                    name="tour-1",
                    partition=free.partition,
                    size=free.size,
                    image=image.id.rsplit(".", 2)[0],
                    networks=[allocation.AllocationNetwork(network=network.id)],
                ),
            )
        )
        self._tell(f"allocation {made.id}: {made.status.machine} in rack {made.status.rack}")
        phase = allocation.AllocationPhase.ALLOCATION_PHASE_RUNNING
        running = await self._follow(made.id, phase, self._limits.running, told=0)
        self.report.running = self._since()
        self.report.machine = running.status.machine
        return running

    async def _show(self, made: allocation.Allocation, network: ipam.Network) -> None:
        self._say("\nThe machine runs on its own network:")
        machine = await self._machine(made.status.machine)
        for each in made.status.networks:
            self.report.ips += each.ips
            self._tell(f"{', '.join(each.ips)}  AS{each.asn}  VRF {each.vrf}")
        for link in machine.links:
            facts = await self._ask_port(link.switch_id, link.port)
            self.report.ports_running[f"{link.switch_id} {link.port}"] = facts
            self._tell(f"{link.switch_id} {link.port}: {_port(facts)}")
            if facts.get("vni") != network.vrf:
                raise TourFailed(f"{link.switch_id} {link.port} is not in VNI {network.vrf}: {facts}")

    async def _free(self, made: allocation.Allocation) -> None:
        self._say("\nThe tenant gives it back, the fence first:")
        allocations = self._tenant.stub(AllocationServiceStub, "allocation")
        await allocations.FreeAllocation(allocation.FreeAllocationRequest(id=made.id))
        phase = allocation.AllocationPhase.ALLOCATION_PHASE_RELEASED
        await self._follow(made.id, phase, self._limits.released, told=len(made.status.timeline))
        self.report.released = self._since()

    async def _back(self, made: allocation.Allocation) -> None:
        self._say("\nIt is wiped and waits again:")
        generation = (await self._machine(made.status.machine)).generation
        last = ""

        async def waits() -> str:
            nonlocal last
            machine = await self._machine(made.status.machine)
            state = _state(machine)
            if state != last:
                last = state
                self._tell(f"machine {machine.id[:8]}  {state}")
            fresh = machine.waiting and machine.disks_clean and not machine.binding.allocation
            return "" if fresh and machine.generation >= generation else f"machine is {state}"

        await self._until(waits, self._limits.back, "the machine waiting again")
        machine = await self._machine(made.status.machine)
        for result in machine.wipe_results:
            self.report.wipe_methods.append(result.method)
            proof = "proved by reading back" if result.verified else "NOT proved"
            self._tell(f"disk {result.name} ({result.serial}): {result.method}, {proof}")
        for link in machine.links:
            facts = await self._ask_port(link.switch_id, link.port)
            self.report.ports_back[f"{link.switch_id} {link.port}"] = facts
            self._tell(f"{link.switch_id} {link.port}: {_port(facts)}")
            if facts.get("vni") is not None:
                raise TourFailed(f"{link.switch_id} {link.port} is still in a tenant's VRF: {facts}")
        self.report.back = self._since()

    async def _follow(
        self, allocation_id: str, until: allocation.AllocationPhase.ValueType, limit: float, *, told: int
    ) -> allocation.Allocation:
        """Tell an allocation's timeline, from line `told` on, as it grows until a phase is reached.

        A broken watch is resumed where it broke.
        """
        allocations = self._tenant.stub(AllocationServiceStub, "allocation")
        position = ""
        last = "no change seen"
        deadline = asyncio.get_running_loop().time() + limit
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    request = allocation.WatchAllocationsRequest(allocation=allocation_id, position=position)
                    try:
                        async for batch in allocations.WatchAllocations(request, timeout=limit):
                            position = batch.position
                            for change in batch.changes:
                                lines = change.allocation.status.timeline
                                for line in list(lines)[told:]:
                                    self._tell(f"{line.phase:<11} {line.message}")
                                told = max(told, len(lines))
                                last = _conditions(change.allocation)
                                if change.allocation.status.phase == until:
                                    return change.allocation
                    except Problem as problem:
                        last = f"{last}; {problem}"
                    await asyncio.sleep(0.2)
        except TimeoutError:
            wanted = allocation.AllocationPhase.Name(until).removeprefix("ALLOCATION_PHASE_").lower()
            raise TourFailed(f"the allocation was not {wanted} after {limit:.0f} s; last: {last}") from None

    async def _machine(self, machine: str) -> inventory.Machine:
        stub = self._operator.stub(MachineServiceStub, "inventory")
        return await stub.GetMachine(inventory.GetMachineRequest(id=machine))

    async def _until(self, missing: Callable[[], Any], limit: float, what: str) -> None:
        """Ask until nothing is missing any more."""
        deadline = asyncio.get_running_loop().time() + limit
        while still := await missing():
            if asyncio.get_running_loop().time() > deadline:
                raise TourFailed(f"{what}: not after {limit:.0f} s; {still}")
            await asyncio.sleep(0.2)


def _event(event: inventory.ProvisioningEvent) -> str:
    name = inventory.ProvisioningEventType.Name(event.type).removeprefix("PROVISIONING_EVENT_TYPE_")
    return name.lower().replace("_", " ")


def _state(machine: inventory.Machine) -> str:
    name = inventory.LifecycleState.Name(machine.lifecycle.state).removeprefix("LIFECYCLE_STATE_")
    words = name.lower().replace("_", " ") if machine.lifecycle.state else "found"
    if machine.waiting:
        clean = ", clean" if machine.disks_clean else ""
        return f"waiting{clean}, size {machine.size}, rack {machine.rack}"
    return words


def _port(facts: dict[str, Any]) -> str:
    if facts.get("vni") is not None:
        return f"routed in {facts['vrf']} (VNI {facts['vni']})"
    if facts.get("vlan") is not None:
        return f"bridged in VLAN {facts['vlan']}, where machines boot"
    return "not configured"


def _conditions(made: allocation.Allocation) -> str:
    return "; ".join(f"{each.type}={each.status} {each.reason} {each.message}" for each in made.status.conditions)
