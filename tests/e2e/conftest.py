"""A whole lab for the end-to-end tests: real servers, all services, a rack; and a tenant with a network in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from metal_kit.client import Peers
from metal_kit.errors import NotFound
from metal_kit.ids import uuid7
from metal_kit.tls import Identity
from metal_lab.lab import Lab
from metal_lab.rack.machine import LabMachine
from metal_lab.rack.model import load
from metal_lab.state import State
from metalplane.allocation.v1 import allocation_pb2 as allocation
from metalplane.allocation.v1.allocation_pb2_grpc import AllocationServiceStub
from metalplane.common.v1.access_pb2 import Role
from metalplane.inventory.v1 import machine_pb2 as inventory
from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceStub
from metalplane.ipam.v1 import network_pb2 as ipam
from metalplane.ipam.v1.network_pb2_grpc import NetworkServiceStub
from metalplane.tenancy.v1 import project_pb2, tenant_pb2, token_pb2
from metalplane.tenancy.v1.project_pb2_grpc import ProjectServiceStub
from metalplane.tenancy.v1.tenant_pb2_grpc import TenantServiceStub
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceStub

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Eventually = Callable[..., Awaitable[None]]


@dataclass
class Cloud:
    """A plane, seen by its operator and by one tenant."""

    operator: Peers
    tenant: Peers
    project: str
    network: ipam.Network
    eventually: Eventually

    async def machine(self, uuid: str) -> inventory.Machine:
        """A machine as the plane sees it."""
        stub = self.operator.stub(MachineServiceStub, "inventory")
        return await stub.GetMachine(inventory.GetMachineRequest(id=uuid))

    async def allocation(self, allocation_id: str) -> allocation.Allocation:
        """An allocation as its tenant sees it."""
        stub = self.tenant.stub(AllocationServiceStub, "allocation")
        return await stub.GetAllocation(allocation.GetAllocationRequest(id=allocation_id))

    async def allocate(self, *, machine: str = "", **spec: Any) -> allocation.Allocation:
        """Ask for a machine: any, or (as an operator) a certain one."""
        wanted = allocation.AllocationSpec(
            name=f"m-{uuid7()[-6:]}",
            image="debian-13",
            networks=[allocation.AllocationNetwork(network=self.network.id)],
            **({"machine": machine} if machine else {"partition": "mini", "size": "n1-mini"}),
            **spec,
        )
        peers = self.operator if machine else self.tenant
        stub = peers.stub(AllocationServiceStub, "allocation")
        return await stub.CreateAllocation(
            allocation.CreateAllocationRequest(request_id=uuid7(), project=self.project, spec=wanted)
        )

    async def free(self, allocation_id: str) -> None:
        """Give a machine back."""
        stub = self.tenant.stub(AllocationServiceStub, "allocation")
        await stub.FreeAllocation(allocation.FreeAllocationRequest(id=allocation_id))

    async def until_phase(self, allocation_id: str, phase: str, seconds: float = 60) -> allocation.Allocation:
        """Wait until an allocation is in a phase."""
        wanted = allocation.AllocationPhase.Value(f"ALLOCATION_PHASE_{phase}")

        async def reached() -> bool:
            return (await self.allocation(allocation_id)).status.phase == wanted

        await self.eventually(reached, seconds=seconds, what=f"allocation {allocation_id} in {phase}")
        return await self.allocation(allocation_id)

    async def until_waiting(self, uuid: str, seconds: float = 60) -> inventory.Machine:
        """Wait until a machine waits, clean and unbound."""

        async def waits() -> bool:
            try:
                machine = await self.machine(uuid)
            except NotFound:
                return False
            return machine.waiting and machine.disks_clean and not machine.binding.allocation

        await self.eventually(waits, seconds=seconds, what=f"machine {uuid} waiting")
        return await self.machine(uuid)

    async def close(self) -> None:
        """Close the channels to the plane."""
        await self.tenant.close()
        await self.operator.close()


@dataclass
class World(Cloud):
    """A running lab in this process, and its plane."""

    lab: Lab

    def machine_named(self, name: str) -> LabMachine:
        """A simulated machine."""
        return self.lab.machines[name]

    async def until_all_waiting(self, seconds: float = 90) -> None:
        """Wait until every machine that works waits."""
        for machine in self.lab.machines.values():
            await self.until_waiting(machine.placed.uuid, seconds)


NewCloud = Callable[[Mapping[str, Any]], Awaitable[Cloud]]


@pytest.fixture(scope="session")
async def lab(server_directory: Path) -> AsyncIterator[Lab]:
    """The mini rack, up."""
    async with Lab(State(server_directory / "lab"), load(EXAMPLES / "mini-rack.yaml")) as running:
        yield running


async def settle(context: Mapping[str, Any], eventually: Eventually) -> Cloud:
    """Make a tenant with a project and a network in a lab, by the context that it has written."""
    identity = Identity(context["ca"], context["cert"], context["key"])
    endpoints = dict(context["endpoints"])
    operator = Peers(endpoints, identity, token=lambda: str(context["token"]))
    tenants = operator.stub(TenantServiceStub, "tenancy")
    owner = await tenants.CreateTenant(tenant_pb2.CreateTenantRequest(tenant=tenant_pb2.Tenant(name="e2e")))
    project = await operator.stub(ProjectServiceStub, "tenancy").CreateProject(
        project_pb2.CreateProjectRequest(project=project_pb2.Project(tenant=owner.id, name="e2e"))
    )
    made = await operator.stub(TokenServiceStub, "tenancy").CreateToken(
        token_pb2.CreateTokenRequest(
            token=token_pb2.Token(user="e2e", project_roles={project.id: Role.ROLE_EDITOR}),
            lifetime=Duration(seconds=3600),
        )
    )
    tenant = Peers(endpoints, identity, token=lambda: made.secret)
    network = await tenant.stub(NetworkServiceStub, "ipam").CreateNetwork(
        ipam.CreateNetworkRequest(
            network=ipam.Network(type=ipam.NetworkType.NETWORK_TYPE_CHILD, project=project.id, partition="mini")
        )
    )
    return Cloud(operator, tenant, project.id, network, eventually)


@pytest.fixture(scope="session")
def new_cloud(eventually: Eventually) -> NewCloud:
    """`await new_cloud(context)` settles a tenant in a lab that runs elsewhere; close it afterwards."""
    return lambda context: settle(context, eventually)


@pytest.fixture(scope="session")
async def world(lab: Lab, eventually: Eventually) -> AsyncIterator[World]:
    """The lab with a tenant, a project and a network in it."""
    context = lab.state.context()
    assert context is not None
    cloud = await settle(context, eventually)
    yield World(**vars(cloud), lab=lab)
    await cloud.close()
