"""Allocation as it runs among the peers of `allocation_peers`; `World.faults` and `World.gates` say what goes wrong."""

import functools
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from allocation_peers import (
    DEVICE,
    NETWORK,
    PARTITION,
    PROJECT,
    SIZE,
    SSH_KEY,
    WAKE,
    Bmc,
    Catalogue,
    Fabric,
    Gate,
    Ipam,
    Machines,
    Servicers,
    Tenancy,
)
from metal_allocation.service import SPEC
from metal_kit import identity
from metal_kit.errors import Problem, Unavailable
from metal_kit.runtime import RunningService
from metalplane.allocation.v1 import allocation_pb2 as pb
from metalplane.allocation.v1 import installation_pb2 as installation
from metalplane.allocation.v1.allocation_pb2_grpc import AllocationServiceStub
from metalplane.allocation.v1.installation_pb2_grpc import InstallationServiceStub
from metalplane.bmc.v1 import bmc_pb2
from metalplane.bmc.v1.bmc_pb2_grpc import add_BmcServiceServicer_to_server
from metalplane.fabric.v1.switch_pb2_grpc import add_SwitchServiceServicer_to_server
from metalplane.inventory.v1 import machine_pb2
from metalplane.inventory.v1.image_pb2_grpc import add_ImageServiceServicer_to_server
from metalplane.inventory.v1.layout_pb2_grpc import (
    add_FilesystemLayoutServiceServicer_to_server,
)
from metalplane.inventory.v1.machine_pb2_grpc import add_MachineServiceServicer_to_server
from metalplane.inventory.v1.partition_pb2_grpc import add_PartitionServiceServicer_to_server
from metalplane.inventory.v1.size_pb2_grpc import add_SizeServiceServicer_to_server
from metalplane.ipam.v1.ip_pb2_grpc import add_IpServiceServicer_to_server
from metalplane.ipam.v1.network_pb2_grpc import add_NetworkServiceServicer_to_server
from metalplane.ipam.v1.pool_pb2_grpc import add_PoolServiceServicer_to_server
from metalplane.tenancy.v1.project_pb2_grpc import add_ProjectServiceServicer_to_server
from metalplane.tenancy.v1.token_pb2_grpc import add_TokenServiceServicer_to_server


@dataclass
class World:
    """What the peers know, what they do wrong, and helpers that speak to allocation."""

    running: RunningService = field(init=False)
    make_stub: Callable[..., Any] = field(init=False)
    start: Callable[..., Awaitable[RunningService]] = field(init=False)
    sql: asyncpg.Pool = field(init=False)
    eventually: Callable[..., Awaitable[None]] = field(init=False)
    settings: dict[str, Any] = field(default_factory=dict)

    quota: int = 0
    machines: dict[str, machine_pb2.Machine] = field(default_factory=dict)
    bound: list[tuple[str, str]] = field(default_factory=list)
    event_ids: set[str] = field(default_factory=set)
    ips: dict[str, tuple[str, str]] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    released: set[str] = field(default_factory=set)
    attachments: dict[str, str] = field(default_factory=dict)
    detached: set[tuple[str, str]] = field(default_factory=set)
    uncabled: set[str] = field(default_factory=set)
    leaves_answer: bool = True
    requests: dict[str, bmc_pb2.Command] = field(default_factory=dict)
    bmc_fails: list[str] = field(default_factory=list)
    without_bmc: set[str] = field(default_factory=set)
    # Machines whose BMC cannot set a boot device, and those where a person carries commands out some time.
    without_boot_device: set[str] = field(default_factory=set)
    by_hand: set[str] = field(default_factory=set)
    # What happened to an allocation's machine, in order: events at inventory and commands at bmc.
    story: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    calls: list[tuple[str, Any]] = field(default_factory=list)
    faults: dict[str, list[str | Problem]] = field(default_factory=lambda: defaultdict(list))
    chaos: Callable[[str, Any], str | None] | None = None
    gates: dict[str, Gate] = field(default_factory=dict)
    every_gate: list[Gate] = field(default_factory=list)

    def fault(self, method: str, request: Any) -> str | Problem | None:
        if self.chaos is not None:
            return self.chaos(method, request)
        return self.faults[method].pop(0) if self.faults[method] else None

    def gate(self, method: str, *, before: bool = False) -> Gate:
        """Hold the next call of a method."""
        made = self.gates[method] = Gate(before)
        self.every_gate.append(made)
        return made

    async def steal_lease(self, id_: str) -> None:
        """As if the worker that has the allocation had been taken for dead; it does not know."""
        await self.sql.execute(
            "UPDATE reconcile_queue SET holder = NULL, ready_at = clock_timestamp(), woken_at = NULL WHERE key = $1",
            id_,
        )

    def touch(self, machine: machine_pb2.Machine) -> machine_pb2.Machine:
        machine.etag = str(int(machine.etag or "0") + 1)
        return machine

    async def add_machines(self, count: int, *, racks: int = 1) -> list[str]:
        """Waiting machines that allocation has heard of."""
        made = [f"{len(self.machines) + n + 1:08x}-0051-3510-8052-b4c04f4e3132" for n in range(count)]
        for number, id_ in enumerate(made):
            machine = machine_pb2.Machine(
                id=id_, partition=PARTITION, size=SIZE, rack=f"rack-{number % racks}", waiting=True, disks_clean=True,
                state=machine_pb2.MachineState.MACHINE_STATE_AVAILABLE, etag="1",
            )  # fmt: skip
            machine.lifecycle.liveliness = machine_pb2.Liveliness.LIVELINESS_ALIVE
            machine.links.add(nic_mac="02:00:00:00:00:01", switch_id="leaf1", port="Ethernet0")
            machine.hardware.disks.add(name=DEVICE, serial=f"S{id_[:8]}", size_bytes=960 * 10**9)
            self.machines[id_] = machine
        known = "SELECT count(*) FROM candidate WHERE machine = ANY ($1::uuid[])"

        async def heard_of() -> bool:
            return bool(await self.value(known, made) == count)

        await self.eventually(heard_of)
        return made

    async def stop_comparing(self) -> None:
        """What becomes of machines from now on allocation does not hear by comparing."""
        refusals = self.faults["StreamMachines"] = ["refuse"] * 10_000
        # One refusal has come after the end of whatever comparison was under way.
        await self.eventually(lambda: len(refusals) < 10_000)

    async def value(self, query: str, *args: Any) -> Any:
        return await self.sql.fetchval(query, *args)

    def allocations(self, token: str = f"editor {PROJECT}", *, running: RunningService | None = None) -> Any:
        return self.make_stub(running or self.running, AllocationServiceStub, token=token)

    def boot(self, partition: str = PARTITION) -> Any:
        as_ = identity.partition_agent_id(partition, "boot")
        return self.make_stub(self.running, InstallationServiceStub, as_=as_)

    def request(self, name: str = "web", *, request_id: str = "", project: str = PROJECT, **spec: Any) -> Any:
        known: dict[str, Any] = {
            "name": name, "partition": PARTITION, "size": SIZE, "image": "debian-13", "ssh_keys": [SSH_KEY],
            "role": pb.AllocationRole.ALLOCATION_ROLE_MACHINE, "networks": [pb.AllocationNetwork(network=NETWORK)],
        }  # fmt: skip
        return pb.CreateAllocationRequest(
            request_id=request_id, project=project, spec=pb.AllocationSpec(**(known | spec))
        )

    async def create(self, name: str = "web", *, token: str = f"editor {PROJECT}", **more: Any) -> pb.Allocation:
        made: pb.Allocation = await self.allocations(token).CreateAllocation(self.request(name, **more))
        return made

    async def get(self, id_: str) -> pb.Allocation:
        found: pb.Allocation = await self.allocations("operator").GetAllocation(pb.GetAllocationRequest(id=id_))
        return found

    async def free(self, id_: str, *, token: str = f"editor {PROJECT}") -> pb.Allocation:
        freed: pb.Allocation = await self.allocations(token).FreeAllocation(pb.FreeAllocationRequest(id=id_))
        return freed

    async def hurry(self) -> None:
        """Let no pause be waited for."""
        await self.sql.execute("UPDATE allocation SET command_after = phase_time WHERE command_after IS NOT NULL")
        await self.sql.execute(
            "UPDATE reconcile_queue SET ready_at = clock_timestamp() "
            "WHERE holder IS NULL AND ready_at > clock_timestamp() AND key IN "
            "(SELECT id::text FROM allocation WHERE phase <> 'released')"
        )
        await self.sql.execute(WAKE)

    async def look_at_all(self) -> None:
        """Have released ones looked at, too."""
        await self.sql.execute("UPDATE reconcile_queue SET ready_at = clock_timestamp() WHERE holder IS NULL")
        await self.sql.execute(WAKE)

    async def phase(self, id_: str) -> str:
        return str(await self.value("SELECT phase FROM allocation WHERE id = $1::uuid", UUID(id_)))

    async def reach(self, id_: str, *phases: str, seconds: float = 30) -> None:
        """Wait, without pauses, until the allocation is in one of the phases."""

        async def there() -> bool:
            if await self.phase(id_) in phases:
                return True
            await self.hurry()
            return False

        await self.eventually(there, seconds=seconds, what=f"allocation {id_} in {', '.join(phases)}")

    async def install(self, allocation: pb.Allocation, *, running: RunningService | None = None) -> None:
        """The installer's report of success, until it is taken in."""
        await self.boot().RecordResult(
            installation.RecordResultRequest(
                partition=PARTITION, machine=allocation.status.machine, allocation=allocation.id, succeeded=True,
                boot_info=installation.BootInfo(kernel="/boot/vmlinuz"),
            )
        )  # fmt: skip

    async def fail_install(self, allocation: pb.Allocation, reason: str = "IMAGE_HASH_MISMATCH") -> None:
        await self.boot().RecordResult(
            installation.RecordResultRequest(
                partition=PARTITION, machine=allocation.status.machine, allocation=allocation.id, succeeded=False,
                step="image", reason=reason, message="the archive is damaged",
            )
        )  # fmt: skip

    def phone_home(self, machine: str) -> None:
        self.machines[machine].lifecycle.state = machine_pb2.LifecycleState.LIFECYCLE_STATE_PHONED_HOME
        self.touch(self.machines[machine])

    async def bring_to(self, allocation: pb.Allocation, phase: str) -> None:
        """Take an allocation as far as a phase; it stays there."""
        blocked = {
            "attaching": ("AttachMachine", Unavailable("PEER_DOWN", "held for the test")),
            "boot_order": ("CreateCommand", Unavailable("PEER_DOWN", "held for the test")),
        }
        if phase in blocked:
            method, problem = blocked[phase]
            self.faults[method] = [problem] * 1000
        if phase != "addressing":
            await self.reach(allocation.id, "installing")
        if phase not in {"addressing", "installing"}:
            await self.install(allocation)
        if phase == "running":
            await self.reach(allocation.id, "starting")
            self.phone_home(allocation.status.machine)
        await self.reach(allocation.id, phase)

    async def nothing_is_left(self, id_: str) -> None:
        """Assert that no trace of a released allocation is left anywhere."""
        assert await self.value("SELECT count(*) FROM claim WHERE allocation = $1::uuid", UUID(id_)) == 0
        assert id_ not in self.ips
        assert id_ not in self.numbers
        assert id_ not in self.attachments.values()
        assert [each.id for each in self.machines.values() if each.binding.allocation == id_] == []


@pytest.fixture
async def world(
    start_service: Any, start_peer: Any, stub: Any, new_database: Any, eventually: Any
) -> AsyncIterator[World]:
    """One replica of allocation among its peers; it compares its machines with inventory all the time."""
    made = World()
    tenancy, catalogue, machines = Tenancy(made), Catalogue(made), Machines(made)
    ipam, fabric, bmc = Ipam(made), Fabric(made), Bmc(made)
    inventory = "metalplane.inventory.v1"
    servers: dict[str, Servicers] = {
        "tenancy": [
            (add_TokenServiceServicer_to_server, tenancy, "metalplane.tenancy.v1.TokenService"),
            (add_ProjectServiceServicer_to_server, tenancy, "metalplane.tenancy.v1.ProjectService"),
        ],
        "inventory": [
            (add_PartitionServiceServicer_to_server, catalogue, f"{inventory}.PartitionService"),
            (add_SizeServiceServicer_to_server, catalogue, f"{inventory}.SizeService"),
            (add_ImageServiceServicer_to_server, catalogue, f"{inventory}.ImageService"),
            (add_FilesystemLayoutServiceServicer_to_server, catalogue, f"{inventory}.FilesystemLayoutService"),
            (add_MachineServiceServicer_to_server, machines, f"{inventory}.MachineService"),
        ],
        "ipam": [
            (add_NetworkServiceServicer_to_server, ipam, "metalplane.ipam.v1.NetworkService"),
            (add_IpServiceServicer_to_server, ipam, "metalplane.ipam.v1.IpService"),
            (add_PoolServiceServicer_to_server, ipam, "metalplane.ipam.v1.PoolService"),
        ],
        "fabric": [(add_SwitchServiceServicer_to_server, fabric, "metalplane.fabric.v1.SwitchService")],
        "bmc": [(add_BmcServiceServicer_to_server, bmc, "metalplane.bmc.v1.BmcService")],
    }
    peers = {name: await start_peer(name, *servicers) for name, servicers in servers.items()}
    url = await new_database("allocation", "metal_allocation")
    made.settings = {"peers": peers, "database_url": url, "resync_seconds": 0.2}
    made.start = functools.partial(start_service, SPEC, **made.settings)
    made.make_stub, made.eventually = stub, eventually
    made.sql = await asyncpg.create_pool(url, min_size=1, max_size=3, server_settings={"search_path": "allocation"})
    made.running = await made.start()
    yield made
    for gate in made.every_gate:
        gate.open.set()
    await made.sql.close()


@pytest.fixture
def new_request_id() -> str:
    """A request id."""
    return str(uuid4())
