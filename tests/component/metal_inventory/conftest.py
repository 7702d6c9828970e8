"""Inventory as it runs, a fabric and a tenancy that follow a script, and callers of every kind."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from metal_inventory.service import SPEC, Settings
from metal_kit import identity
from metal_kit.ca import Authority
from metal_kit.client import Peers
from metal_kit.errors import FailedPrecondition, Problem, Unauthenticated
from metal_kit.runtime import RunningService, start
from metal_kit.server import Server, Servicer
from metal_kit.tls import Identity
from metalplane.common.v1.access_pb2 import PlaneRole, Role
from metalplane.fabric.v1 import cabling_pb2
from metalplane.fabric.v1.cabling_pb2_grpc import CablingServiceServicer, add_CablingServiceServicer_to_server
from metalplane.inventory.v1 import hardware_pb2 as hw
from metalplane.inventory.v1 import machine_pb2 as pb
from metalplane.inventory.v1 import partition_pb2, size_pb2
from metalplane.inventory.v1.image_pb2_grpc import ImageServiceStub
from metalplane.inventory.v1.layout_pb2_grpc import FilesystemLayoutServiceStub
from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceStub
from metalplane.inventory.v1.partition_pb2_grpc import PartitionServiceStub
from metalplane.inventory.v1.size_pb2_grpc import SizeServiceStub
from metalplane.tenancy.v1.token_pb2 import CheckTokenRequest, CheckTokenResponse
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceServicer, add_TokenServiceServicer_to_server

PARTITION = "mini"
GIB = 1 << 30
BOOT = identity.partition_agent_id(PARTITION, "boot")
BMC = identity.partition_agent_id(PARTITION, "bmc")
ALLOCATION = identity.service_id("allocation")


class Tenancy(TokenServiceServicer):
    """Two operators' tokens, and `member <project>` for a viewer of one project."""

    async def CheckToken(self, request: CheckTokenRequest, context: Any) -> CheckTokenResponse:
        roles = {"operator": PlaneRole.PLANE_ROLE_OPERATOR, "viewer": PlaneRole.PLANE_ROLE_VIEWER}
        answer = CheckTokenResponse()
        answer.token.user = "somebody"
        if request.secret in roles:
            answer.token.plane_role = roles[request.secret]
        elif request.secret.startswith("member "):
            answer.token.project_roles[request.secret.removeprefix("member ")] = Role.ROLE_VIEWER
        else:
            raise Unauthenticated("TOKEN_INVALID", "the token does not hold")
        return answer


@dataclass
class Fabric(CablingServiceServicer):
    """Accepts the cables of every machine, unless a problem is set; remembers what it was asked."""

    problem: Problem | None = None
    rack: str = "rack-1"
    connected: dict[str, list[cabling_pb2.ObservedNeighbour]] = field(default_factory=dict)
    disconnected: list[str] = field(default_factory=list)
    meanwhile: Callable[[], Awaitable[object]] | None = None
    """What happens once while a machine's cables are forgotten."""

    async def ConnectMachine(
        self, request: cabling_pb2.ConnectMachineRequest, context: Any
    ) -> cabling_pb2.ConnectMachineResponse:
        if self.problem is not None:
            raise self.problem
        self.connected[request.machine] = list(request.neighbours)
        cables = [
            cabling_pb2.Cable(
                machine=request.machine, nic_mac=each.nic_mac, switch_id=each.system_name, port=each.port_id
            )
            for each in request.neighbours
        ]
        return cabling_pb2.ConnectMachineResponse(rack=self.rack, cables=cables)

    async def DisconnectMachine(self, request: cabling_pb2.DisconnectMachineRequest, context: Any) -> Any:
        if self.problem is not None:
            raise self.problem
        self.disconnected.append(request.machine)
        if self.meanwhile is not None:
            happens, self.meanwhile = self.meanwhile, None
            await happens()
        return Empty()

    async def ListCables(self, request: Any, context: Any) -> Any:
        raise FailedPrecondition("NOT_HERE", "the script has no list")


def machine_id(number: int) -> str:
    """A machine's UUID; they sort by number."""
    return f"{number:08x}-0051-3510-8052-b4c04f4e3132"


def hardware(seed: str = "", *, disks: int = 2, memory: int = 64 * GIB, cores: int = 16) -> hw.Hardware:
    """A machine with two cabled NICs and some disks, whose addresses and serials follow from the seed."""
    digest = hashlib.sha256(seed.encode()).hexdigest()
    message = hw.Hardware(memory_bytes=memory)
    message.cpus.add(vendor="AuthenticAMD", model="AMD EPYC 7313P", cores=cores, threads=2 * cores)
    for number in range(2):
        mac = ":".join(["02", *(digest[i : i + 2] for i in range(0, 8, 2)), f"{number:02x}"])
        nic = message.nics.add(name=f"eth{number}", mac=mac)
        nic.neighbours.add(system_name=f"leaf0{number + 1}", port_id="Ethernet0")
    for number in range(disks):
        message.disks.add(
            name=f"/dev/nvme{number}n1", serial=f"S{digest[:8]}{number}", model="X", size_bytes=960 * 10**9
        )
    return message


@dataclass
class Inventory:
    """A running inventory and its clients."""

    authority: Authority
    directory: Path
    database_url: str
    stack: AsyncExitStack
    fabric: Fabric
    settings: dict[str, Any]
    replicas: list[RunningService] = field(default_factory=list)
    _peers: dict[tuple[str, str, int], Peers] = field(default_factory=dict)

    def identity(self, spiffe_id: str, *, dns: Iterable[str] = ()) -> Identity:
        name = f"c{uuid4().hex[:12]}"
        cert, key = self.authority.issue(name, spiffe_id, dns=list(dns)).save(self.directory, name)
        return Identity(self.directory / "ca.crt", cert, key)

    async def replica(self, **more: Any) -> RunningService:
        name = f"s{uuid4().hex[:12]}"
        issued = self.authority.issue(name, identity.service_id("inventory"), dns=["inventory.metalplane"])
        cert, key = issued.save(self.directory, name)
        settings = Settings(
            listen="127.0.0.1:0",
            database_url=self.database_url,
            tls_ca=str(self.directory / "ca.crt"),
            tls_cert=str(cert),
            tls_key=str(key),
            drain_seconds=3,
            liveliness_seconds=0.1,
            lease_seconds=0.1,
            **(self.settings | more),
        )
        running = await start(SPEC, settings)
        self.stack.push_async_callback(running.stop)
        self.replicas.append(running)
        return running

    def _stub(self, stub: Any, spiffe_id: str, token: str, replica: int) -> Any:
        key = (spiffe_id, token, replica)
        if key not in self._peers:
            known = {"inventory": self.replicas[replica].address}
            peers = Peers(known, self.identity(spiffe_id), token=(lambda: token) if token else None)
            self.stack.push_async_callback(peers.close)
            self._peers[key] = peers
        return self._peers[key].stub(stub, "inventory")

    def _user(self, stub: Any, token: str) -> Any:
        return self._stub(stub, identity.client_id("tool"), token, 0)

    def machines(self, as_: str = "", *, token: str = "operator", replica: int = 0) -> Any:
        """The machine API for a certificate's bearer, or for a person with a token."""
        if as_:
            return self._stub(MachineServiceStub, as_, "", replica)
        return self._stub(MachineServiceStub, identity.client_id("tool"), token, replica)

    def boot(self, replica: int = 0) -> Any:
        return self.machines(BOOT, replica=replica)

    def partitions(self, token: str = "operator") -> Any:
        return self._user(PartitionServiceStub, token)

    def sizes(self, token: str = "operator") -> Any:
        return self._user(SizeServiceStub, token)

    def images(self, token: str = "operator") -> Any:
        return self._user(ImageServiceStub, token)

    def layouts(self, token: str = "operator") -> Any:
        return self._user(FilesystemLayoutServiceStub, token)

    async def seed(self) -> None:
        """One partition and one size."""
        await self.partitions().CreatePartition(
            partition_pb2.CreatePartitionRequest(partition=partition_pb2.Partition(id=PARTITION))
        )
        size = size_pb2.Size(id="c1-medium")
        size.constraints.add(type=size_pb2.CONSTRAINT_TYPE_CORES, min=16, max=16)
        size.constraints.add(type=size_pb2.CONSTRAINT_TYPE_MEMORY, min=32 * GIB, max=128 * GIB)
        size.constraints.add(type=size_pb2.CONSTRAINT_TYPE_STORAGE, min=0, max=10**14)
        await self.sizes().CreateSize(size_pb2.CreateSizeRequest(size=size))

    def forget_peers_of_other_replicas(self) -> None:
        for key in [key for key in self._peers if key[2] > 0]:
            del self._peers[key]

    hardware = staticmethod(hardware)
    machine_id = staticmethod(machine_id)

    # -- the steps of a machine's way to waiting

    async def report(self, machine: str, *types: str, **more: Any) -> list[str]:
        """Events by the ends of their names; what became of each."""
        events = [
            pb.ReportedEvent(type=pb.ProvisioningEventType.Value(f"PROVISIONING_EVENT_TYPE_{each}")) for each in types
        ]
        request = pb.RecordEventsRequest(partition=PARTITION, machine=machine, events=events, **more)
        response = await self.boot().RecordEvents(request)
        return [pb.EventOutcome.Name(each).removeprefix("EVENT_OUTCOME_") for each in response.outcomes]

    async def register(self, machine: str, *, parts: hw.Hardware | None = None, session: str = "") -> Any:
        return await self.boot().RegisterMachine(
            pb.RegisterMachineRequest(
                partition=PARTITION,
                machine=machine,
                hardware=parts if parts is not None else hardware(machine),
                bios=hw.Bios(vendor="AMI", version="2.1"),
                installer_version="0.1.0",
                session=session or str(uuid4()),
            )
        )

    async def wipe(self, machine: pb.Machine, *, error: str = "") -> Any:
        results = [
            hw.WipeResult(serial=disk.serial, name=disk.name, method="nvme-format", verified=not error, error=error)
            for disk in machine.hardware.disks
        ]
        return await self.boot().RecordWipe(
            pb.RecordWipeRequest(
                partition=PARTITION, machine=machine.id, generation=machine.generation, results=results
            )
        )

    async def lease(self, machine: pb.Machine, *, holder: str, waiting: bool = True, seconds: float = 60) -> Any:
        ttl = Duration()
        ttl.FromMilliseconds(int(seconds * 1000))
        return await self.boot().SetWaiting(
            pb.SetWaitingRequest(
                partition=PARTITION,
                machine=machine.id,
                holder=holder,
                waiting=waiting,
                ttl=ttl,
                generation=machine.generation,
            )
        )

    async def waiting(self, id_: str, *, holder: str = "") -> Any:
        """A machine all the way from its first event to waiting."""
        await self.report(id_, "PXE_BOOTING", "PREPARING", "REGISTERING")
        machine = await self.wipe(await self.register(id_))
        await self.report(id_, "WAITING")
        response = await self.lease(machine, holder=holder or str(uuid4()))
        assert response.waiting
        return await self.get(id_)

    async def get(self, id_: str, **who: Any) -> Any:
        return await self.machines(**who).GetMachine(pb.GetMachineRequest(id=id_))

    async def bind(self, id_: str, allocation: str, project: str, *, allow_tainted: bool = False) -> Any:
        return await self.machines(ALLOCATION).BindMachine(
            pb.BindMachineRequest(machine=id_, allocation=allocation, project=project, allow_tainted=allow_tainted)
        )

    async def unbind(self, id_: str, allocation: str) -> Any:
        return await self.machines(ALLOCATION).UnbindMachine(
            pb.UnbindMachineRequest(machine=id_, allocation=allocation)
        )

    async def set_state(self, id_: str, state: str, description: str = "") -> Any:
        return await self.machines().SetMachineState(
            pb.SetMachineStateRequest(
                id=id_, state=pb.MachineState.Value(f"MACHINE_STATE_{state}"), description=description
            )
        )

    async def sql(self, query: str, *args: Any) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.database_url, server_settings={"search_path": "inventory"})
        try:
            return await connection.fetch(query, *args)
        finally:
            await connection.close()

    async def silent_for(self, id_: str, interval: str) -> None:
        """As if the machine had last been heard of that long ago."""
        statement = "UPDATE lifecycle SET last_event_at = clock_timestamp() - $2::text::interval WHERE machine = $1"
        await self.sql(statement, id_, interval)


@pytest.fixture(scope="session")
async def shared_inventory(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Inventory]:
    """One inventory for the session, without a bus: starting one for each test would be most of the tests' time."""
    name = f"inventory_{uuid4().hex}"
    server = await asyncpg.connect(postgres.url)
    await server.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
    await server.close()
    url = postgres.database_url(name)
    async with _world(tmp_path_factory.mktemp("inventory"), url, {}) as made:
        yield made


@pytest.fixture
async def inventory(shared_inventory: Inventory) -> AsyncIterator[Inventory]:
    """An inventory with one replica, one partition, and one size that fits `hardware()`; nothing else is in it."""
    made = shared_inventory
    # Row by row: a TRUNCATE takes the tables in another order than the background work does, and deadlocks with it.
    for table in ("machine", "filesystem_layout", "image", "size", "partition", "change", "idempotency"):
        await made.sql(f"DELETE FROM {table}")
    made.fabric.problem, made.fabric.rack = None, "rack-1"
    made.fabric.connected.clear()
    made.fabric.disconnected.clear()
    await made.seed()
    yield made
    while len(made.replicas) > 1:
        await made.replicas.pop().stop()
    made.forget_peers_of_other_replicas()


@pytest.fixture
async def inventory_on_bus(tmp_path: Path, database_url: str, nats_url: str) -> AsyncIterator[Inventory]:
    """An inventory of its own that publishes and consumes."""
    async with _world(tmp_path, database_url, {"nats_url": nats_url}) as made:
        await made.seed()
        yield made


@asynccontextmanager
async def _world(directory: Path, database_url: str, settings: dict[str, Any]) -> AsyncIterator[Inventory]:
    authority = Authority.create("inventory tests")
    authority.save(directory)
    async with AsyncExitStack() as stack:

        async def peer(name: str, add: Any, servicer: Any, full_name: str) -> str:
            issued = authority.issue(name, identity.service_id(name), dns=[f"{name}.metalplane"])
            server = Server([Servicer(add, servicer, full_name)])
            address = await server.start("127.0.0.1:0", Identity(directory / "ca.crt", *issued.save(directory, name)))
            stack.push_async_callback(server.stop, 0)
            return address

        fabric = Fabric()
        settings["peers"] = {
            "tenancy": await peer(
                "tenancy",
                add_TokenServiceServicer_to_server,
                Tenancy(),  # type: ignore[abstract]
                "metalplane.tenancy.v1.TokenService",
            ),
            "fabric": await peer(
                "fabric", add_CablingServiceServicer_to_server, fabric, "metalplane.fabric.v1.CablingService"
            ),
        }
        made = Inventory(authority, directory, database_url, stack, fabric, settings)
        await made.replica()
        yield made
