"""What is in the plane of the proofs of access: everything that a tenant can have, twice, and something to delete."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from google.protobuf.duration_pb2 import Duration
from metal_kit import identity
from metal_kit.errors import FailedPrecondition, Problem, ResourceExhausted
from metalplane.allocation.v1 import allocation_pb2
from metalplane.allocation.v1.allocation_pb2_grpc import AllocationServiceStub
from metalplane.bmc.v1 import bmc_pb2, expected_pb2
from metalplane.bmc.v1.bmc_pb2_grpc import BmcServiceStub
from metalplane.bmc.v1.expected_pb2_grpc import ExpectedMachineServiceStub
from metalplane.common.v1.access_pb2 import PlaneRole, Role
from metalplane.fabric.v1 import agent_pb2, switch_pb2
from metalplane.fabric.v1.agent_pb2_grpc import SwitchAgentServiceStub
from metalplane.inventory.v1 import hardware_pb2, image_pb2, layout_pb2, machine_pb2, partition_pb2, size_pb2
from metalplane.inventory.v1.image_pb2_grpc import ImageServiceStub
from metalplane.inventory.v1.layout_pb2_grpc import FilesystemLayoutServiceStub
from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceStub
from metalplane.inventory.v1.partition_pb2_grpc import PartitionServiceStub
from metalplane.inventory.v1.size_pb2_grpc import SizeServiceStub
from metalplane.ipam.v1 import ip_pb2, namespace_pb2, network_pb2, prefix_pb2
from metalplane.ipam.v1.ip_pb2_grpc import IpServiceStub
from metalplane.ipam.v1.namespace_pb2_grpc import NamespaceServiceStub
from metalplane.ipam.v1.network_pb2_grpc import NetworkServiceStub
from metalplane.ipam.v1.prefix_pb2_grpc import PrefixServiceStub
from metalplane.tenancy.v1 import project_pb2, tenant_pb2, token_pb2
from metalplane.tenancy.v1.project_pb2_grpc import ProjectServiceStub
from metalplane.tenancy.v1.tenant_pb2_grpc import TenantServiceStub
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceStub

if TYPE_CHECKING:
    from access_plane import AccessPlane

GIB = 1 << 30
SIZE, IMAGE, LAYOUT, SUPER = "c1-medium", "debian-13.0.20260101", "plain", "tenant-super"
CONTAINER, LEAF, SMALL = "172.27.0.0/16", "172.28.0.0/24", "172.26.0.0/24"
LEAVES = ("leaf01", "leaf02")
DEVICE = "/dev/nvme0n1"
# For each of those who may delete, something of its own to delete.
SPARES = 3


@dataclass(frozen=True)
class Owned:
    """What one tenant has."""

    tenant: str
    project: str
    network: str
    machine: str
    allocation: str
    address: str
    token: str
    """Id of a token of the tenant's user."""
    user: str
    spare_projects: tuple[str, ...] = ()
    spare_tenants: tuple[str, ...] = ()
    spare_networks: tuple[str, ...] = ()
    spare_addresses: tuple[str, ...] = ()
    spare_tokens: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    command: str = ""
    task: str = ""
    """What a person is to do at a machine of the site's that has no BMC."""
    expected: str = ""
    spare_expected: tuple[str, ...] = ()

    @property
    def secret(self) -> frozenset[str]:
        """All ids, none of which a stranger may be told."""
        single = (self.tenant, self.project, self.network, self.machine, self.allocation, self.address, self.token)
        several = (self.spare_projects, self.spare_tenants, self.spare_networks, self.spare_addresses)
        return frozenset(filter(None, (*single, self.user, self.command, *self.members, *sum(several, ()))))


@dataclass(frozen=True)
class Objects:
    """A, whom nobody may look at; B, a tenant beside him; a machine of another partition; and a free machine."""

    a: Owned
    b: Owned
    far_machine: str
    free_machine: str
    sibling: str
    """Another project of A's tenant."""
    secret: str
    """A token that holds, for CheckToken."""
    streams: tuple[asyncio.Task[None], ...]


async def make_objects(plane: AccessPlane) -> Objects:
    """Make everything, through the API, as those would who do it."""
    from access_plane import ELSEWHERE, PARTITION

    await _catalogue(plane, (PARTITION, ELSEWHERE))
    streams = tuple([await _connect_leaf(plane, PARTITION, leaf) for leaf in LEAVES])
    ids = [f"{number:08x}-0051-3510-8052-b4c04f4e3132" for number in range(1, 5)]
    for number, machine in enumerate(ids[:2]):
        await make_waiting(plane, PARTITION, machine, port=f"Ethernet{4 * number}")
    await make_waiting(plane, ELSEWHERE, ids[2], port="")
    a = await _tenant(plane, "a", ids[0])
    b = await _tenant(plane, "b", ids[1])
    # Waits only now, so that it is not the one that a tenant gets.
    await make_waiting(plane, PARTITION, ids[3], port="Ethernet12")
    for each in (a, b):
        await _installing(plane, each.allocation)
    return Objects(a, b, ids[2], ids[3], await _sibling(plane, a.tenant), plane.operator, streams)


async def _sibling(plane: AccessPlane, tenant: str) -> str:
    stub: Any = plane.peers().stub(ProjectServiceStub, "tenancy")
    wanted = project_pb2.Project(tenant=tenant, name="sibling")
    return str((await stub.CreateProject(project_pb2.CreateProjectRequest(project=wanted))).id)


async def _installing(plane: AccessPlane, allocation: str) -> None:
    """Wait until an allocation waits for an installer, and so changes no more by itself."""
    stub: Any = plane.peers().stub(AllocationServiceStub, "allocation")

    async def reached() -> str:
        found = await stub.GetAllocation(allocation_pb2.GetAllocationRequest(id=allocation))
        return allocation if found.status.phase == allocation_pb2.ALLOCATION_PHASE_INSTALLING else ""

    await _until(reached)


async def _catalogue(plane: AccessPlane, partitions: tuple[str, ...]) -> None:
    peers = plane.peers()
    stub: Any = peers.stub(PartitionServiceStub, "inventory")
    for each in (*partitions, *(f"spare-{number}" for number in range(SPARES))):
        wanted = partition_pb2.Partition(id=each, dns_servers=["192.0.2.53"])
        await stub.CreatePartition(partition_pb2.CreatePartitionRequest(partition=wanted))
    stub = peers.stub(SizeServiceStub, "inventory")
    for number, each in enumerate((SIZE, *(f"spare-{number}" for number in range(SPARES)))):
        await stub.CreateSize(size_pb2.CreateSizeRequest(size=size(each, cores=16 + number)))
    stub = peers.stub(ImageServiceStub, "inventory")
    for each in (IMAGE, *(f"spare-1.{number}" for number in range(SPARES))):
        await stub.CreateImage(image_pb2.CreateImageRequest(image=image(each)))
    stub = peers.stub(FilesystemLayoutServiceStub, "inventory")
    for each in (LAYOUT, *(f"spare-{number}" for number in range(SPARES))):
        wanted_layout = layout(each, SIZE if each == LAYOUT else each)
        await stub.CreateFilesystemLayout(layout_pb2.CreateFilesystemLayoutRequest(filesystem_layout=wanted_layout))
    lengths = network_pb2.PrefixLengths(ipv4=24)
    await peers.stub(NetworkServiceStub, "ipam").CreateNetwork(
        network_pb2.CreateNetworkRequest(
            network=network_pb2.Network(
                id=SUPER, type=network_pb2.NETWORK_TYPE_SUPER, partition=partitions[0], prefixes=["10.128.0.0/14"],
                default_child_prefix_length=lengths,
            )
        )
    )  # fmt: skip
    namespaces: Any = peers.stub(NamespaceServiceStub, "ipam")
    for each in ("empty", *(f"spare-{number}" for number in range(SPARES))):
        wanted_space = namespace_pb2.Namespace(id=each)
        await namespaces.CreateNamespace(namespace_pb2.CreateNamespaceRequest(namespace=wanted_space))
    prefixes: Any = peers.stub(PrefixServiceStub, "ipam")
    container = prefix_pb2.Prefix(cidr=CONTAINER, kind=prefix_pb2.PREFIX_KIND_CONTAINER)
    leaves = [
        prefix_pb2.Prefix(cidr=each) for each in (LEAF, SMALL, *(f"172.29.{number}.0/24" for number in range(SPARES)))
    ]
    for prefix in (container, *leaves):
        await prefixes.CreatePrefix(prefix_pb2.CreatePrefixRequest(prefix=prefix))


def size(id_: str, *, cores: int) -> size_pb2.Size:
    """A size that nothing but `hardware` matches, and that with 16 cores only."""
    made = size_pb2.Size(id=id_)
    made.constraints.add(type=size_pb2.CONSTRAINT_TYPE_CORES, min=cores, max=cores)
    made.constraints.add(type=size_pb2.CONSTRAINT_TYPE_MEMORY, min=GIB, max=1024 * GIB)
    made.constraints.add(type=size_pb2.CONSTRAINT_TYPE_STORAGE, min=0, max=10**15)
    return made


def image(id_: str) -> image_pb2.Image:
    """An image that is never fetched."""
    return image_pb2.Image(
        id=id_, url="http://images.example/image.tar.gz", sha256="ab" * 32,
        features=[image_pb2.IMAGE_FEATURE_MACHINE], classification=image_pb2.IMAGE_CLASSIFICATION_SUPPORTED,
    )  # fmt: skip


def layout(id_: str, size_id: str) -> layout_pb2.FilesystemLayout:
    """One partition on the first disk."""
    made = layout_pb2.FilesystemLayout(id=id_, size_ids=[size_id], image_constraints={"debian": "*"})
    made.disks.add(device=DEVICE).partitions.add(number=1, label="root", size_mib=10_000, gpt_type="8300")
    made.filesystems.add(path="/", device=f"{DEVICE}p1", format=layout_pb2.FILESYSTEM_FORMAT_EXT4, label="root")
    return made


def hello(partition: str, leaf: str) -> agent_pb2.ConnectRequest:
    """What a leaf says first."""
    message = agent_pb2.Hello(
        switch_id=leaf, partition=partition, rack="r1", os=switch_pb2.SWITCH_OS_SONIC, loopback="10.0.0.11",
        asn=4200000011, pxe_vlan=4000,
    )  # fmt: skip
    for number in range(8):
        message.ports.add(name=f"Ethernet{4 * number}", state=switch_pb2.PORT_STATE_UP)
    return agent_pb2.ConnectRequest(hello=message)


async def _connect_leaf(plane: AccessPlane, partition: str, leaf: str) -> asyncio.Task[None]:
    """A leaf that is connected for as long as the plane is there."""
    stub: Any = plane.peers(identity.leaf_id(partition, leaf)).stub(SwitchAgentServiceStub, "fabric")
    call = stub.Connect()
    await call.write(hello(partition, leaf))
    first = asyncio.Event()

    async def follow() -> None:
        try:
            async for _ in call:
                first.set()
        except Problem:
            first.set()

    task = asyncio.create_task(follow(), name=f"leaf {leaf}")
    plane.stack.push_async_callback(_cancelled, task)
    await first.wait()
    return task


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def hardware(machine: str, port: str) -> hardware_pb2.Hardware:
    """Two NICs, cabled to both leaves when there is a port, and a disk."""
    made = hardware_pb2.Hardware(memory_bytes=64 * GIB)
    made.cpus.add(vendor="AuthenticAMD", model="AMD EPYC 7313P", cores=16, threads=32)
    for number, leaf in enumerate(LEAVES):
        nic = made.nics.add(name=f"eth{number}", mac=f"02:00:00:00:{machine[6:8]}:{number:02x}")
        if port:
            nic.neighbours.add(system_name=leaf, port_id=port)
    made.disks.add(name=DEVICE, serial=f"S{machine[:8]}", model="X", size_bytes=960 * 10**9)
    return made


async def make_waiting(plane: AccessPlane, partition: str, machine: str, *, port: str) -> None:
    """A machine all the way to waiting, as boot reports it; the lease outlasts the tests of a module."""
    stub: Any = plane.peers(identity.partition_agent_id(partition, "boot")).stub(MachineServiceStub, "inventory")
    which: dict[str, Any] = {"partition": partition, "machine": machine}

    async def report(*types: str) -> None:
        kinds = [machine_pb2.ProvisioningEventType.Value(f"PROVISIONING_EVENT_TYPE_{each}") for each in types]
        events = [machine_pb2.ReportedEvent(type=kind) for kind in kinds]
        await stub.RecordEvents(machine_pb2.RecordEventsRequest(**which, events=events))

    await report("PXE_BOOTING", "PREPARING", "REGISTERING")
    parts = hardware(machine, port)
    made = await stub.RegisterMachine(
        machine_pb2.RegisterMachineRequest(**which, hardware=parts, session=str(uuid4()), installer_version="0.1")
    )
    wiped = hardware_pb2.WipeResult(serial=parts.disks[0].serial, name=DEVICE, method="nvme-format", verified=True)
    await stub.RecordWipe(machine_pb2.RecordWipeRequest(**which, generation=made.generation, results=[wiped]))
    await report("WAITING")
    await stub.SetWaiting(
        machine_pb2.SetWaitingRequest(
            **which, holder=str(uuid4()), waiting=True, ttl=Duration(seconds=120), generation=made.generation
        )
    )


async def make_token(
    plane: AccessPlane, user: str, *, seconds: int = 3600, **roles: Mapping[str, Role.ValueType] | PlaneRole.ValueType
) -> tuple[str, str]:
    """A token by the operator; its id and its secret."""
    stub: Any = plane.peers().stub(TokenServiceStub, "tenancy")
    wanted: Any = token_pb2.Token(user=user, **roles)  # type: ignore[arg-type]
    made = await stub.CreateToken(token_pb2.CreateTokenRequest(token=wanted, lifetime=Duration(seconds=seconds)))
    return made.token.id, made.secret


async def _tenant(plane: AccessPlane, name: str, machine: str) -> Owned:
    peers = plane.peers()
    tenants: Any = peers.stub(TenantServiceStub, "tenancy")
    projects: Any = peers.stub(ProjectServiceStub, "tenancy")

    async def tenant(text: str) -> str:
        wanted = tenant_pb2.CreateTenantRequest(tenant=tenant_pb2.Tenant(name=text))
        return str((await tenants.CreateTenant(wanted)).id)

    async def project(owner: str, text: str) -> str:
        wanted = project_pb2.CreateProjectRequest(project=project_pb2.Project(tenant=owner, name=text))
        return str((await projects.CreateProject(wanted)).id)

    async def network(of: str) -> str:
        stub: Any = peers.stub(NetworkServiceStub, "ipam")
        wanted = network_pb2.Network(type=network_pb2.NETWORK_TYPE_CHILD, project=of, parent=SUPER)
        return str((await stub.CreateNetwork(network_pb2.CreateNetworkRequest(network=wanted))).id)

    owner = await tenant(name)
    mine = await project(owner, name)
    own_network = await network(mine)
    user = f"user-of-{name}"
    token, _ = await make_token(plane, user, project_roles={mine: Role.ROLE_VIEWER})
    members = tuple(f"{user}-{number}" for number in range(SPARES))
    for member in (user, *members):
        wanted = tenant_pb2.Member(user=member, role=Role.ROLE_VIEWER)
        await projects.SetProjectMember(project_pb2.SetProjectMemberRequest(project=mine, member=wanted))
        await tenants.SetTenantMember(tenant_pb2.SetTenantMemberRequest(tenant=owner, member=wanted))
    acquired = await peers.stub(IpServiceStub, "ipam").AcquireIps(
        ip_pb2.AcquireIpsRequest(
            project=mine, wishes=[ip_pb2.IpWish(network=own_network, count=1 + SPARES)], type=ip_pb2.IP_TYPE_STATIC,
        )
    )  # fmt: skip
    allocation = await _allocate(plane, mine, own_network, machine)
    expected = [await _expected(plane, f"{machine}-{number}") for number in range(1 + SPARES)]
    addresses = [each.address for each in acquired.ips]
    return Owned(
        tenant=owner, project=mine, network=own_network, machine=machine, allocation=allocation, token=token,
        address=addresses[0], user=user, members=members, spare_addresses=tuple(addresses[1:]),
        spare_projects=tuple([await project(owner, f"{name}-{number}") for number in range(SPARES)]),
        spare_tenants=tuple([await tenant(f"{name}-{number}") for number in range(SPARES)]),
        spare_networks=tuple([await network(mine) for _ in range(SPARES)]),
        spare_tokens=tuple([(await make_token(plane, user))[0] for _ in range(SPARES)]),
        command=await _bmc(plane, machine),
        task=await _task(plane),
        expected=expected[0], spare_expected=tuple(expected[1:]),
    )  # fmt: skip


async def _allocate(plane: AccessPlane, project: str, network: str, machine: str) -> str:
    """An allocation on a certain machine, once allocation has heard of that."""
    stub: Any = plane.peers().stub(AllocationServiceStub, "allocation")
    spec = allocation_pb2.AllocationSpec(
        name="web", machine=machine, image=IMAGE, networks=[allocation_pb2.AllocationNetwork(network=network)]
    )
    request = allocation_pb2.CreateAllocationRequest(project=project, spec=spec)

    async def made() -> str:
        try:
            return str((await stub.CreateAllocation(request)).id)
        except (ResourceExhausted, FailedPrecondition):
            return ""

    return await _until(made)


async def _expected(plane: AccessPlane, serial: str) -> str:
    """A machine that is expected and never comes."""
    from access_plane import PARTITION

    stub: Any = plane.peers().stub(ExpectedMachineServiceStub, "bmc")
    wanted = expected_pb2.ExpectedMachine(partition=PARTITION, serial=serial)
    request = expected_pb2.CreateExpectedMachineRequest(expected_machine=wanted)
    return str((await stub.CreateExpectedMachine(request)).id)


async def _bmc(plane: AccessPlane, machine: str) -> str:
    """A BMC that nobody answers for, and a command to it."""
    from access_plane import PARTITION

    stub: Any = plane.peers().stub(BmcServiceStub, "bmc")
    wanted = bmc_pb2.Bmc(
        machine=machine, partition=PARTITION, address=f"127.0.0.1:{int(machine[:8], 16)}", user="metal", password="x"
    )
    await stub.RegisterBmc(bmc_pb2.RegisterBmcRequest(bmc=wanted))
    action = bmc_pb2.COMMAND_ACTION_IDENTIFY_ON
    return str((await stub.CreateCommand(bmc_pb2.CreateCommandRequest(machine=machine, action=action))).id)


async def _task(plane: AccessPlane) -> str:
    """A task for a person, once the service has opened it."""
    from access_plane import PARTITION

    stub: Any = plane.peers().stub(BmcServiceStub, "bmc")
    machine = str(uuid4())
    by_hand = bmc_pb2.Bmc(machine=machine, partition=PARTITION, driver=bmc_pb2.DRIVER_KIND_MANUAL)
    await stub.RegisterBmc(bmc_pb2.RegisterBmcRequest(bmc=by_hand))
    await stub.CreateCommand(bmc_pb2.CreateCommandRequest(machine=machine, action=bmc_pb2.COMMAND_ACTION_POWER_ON))

    async def opened() -> str:
        tasks = (await stub.ListManualTasks(bmc_pb2.ListManualTasksRequest(machine=machine))).tasks
        return str(tasks[0].id) if tasks else ""

    return await _until(opened)


async def _until(made: Callable[[], Awaitable[str]]) -> str:
    """What the function gives, once it gives anything."""
    while True:
        if found := await made():
            return found
        await asyncio.sleep(0.05)  # what it waits for is an event between two services
