"""Simulated BMCs on real UDP ports, and the real driver processes."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest
from metal_bmc.drivers.interface import Target
from metal_bmc.drivers.ipmi import IpmiDriver
from metal_bmc.drivers.pool import WorkerPool
from metal_bmc.drivers.pyghmi import PyghmiFru
from metal_bmc.drivers.redfish import RedfishDriver
from metal_bmc.redfish.client import RedfishClient
from metal_bmc.rmcp.client import RmcpClient
from metal_bmc.service import SPEC
from metal_kit import identity
from metal_kit.client import Peers
from metal_kit.errors import NotFound, Unauthenticated, Unavailable
from metal_kit.identity import current_caller
from metal_kit.runtime import RunningService, start
from metal_sim.bmc import SimulatedBmc
from metal_sim.redfish import PERSONALITIES, SimulatedRedfish
from metalplane.bmc.v1 import bmc_pb2 as pb
from metalplane.bmc.v1.bmc_pb2_grpc import BmcServiceStub
from metalplane.common.v1.access_pb2 import PlaneRole
from metalplane.inventory.v1.machine_pb2 import (
    BmcReport,
    EventOutcome,
    GetMachineRequest,
    Machine,
    RecordEventsRequest,
    RecordEventsResponse,
    ReportBmcsRequest,
    ReportBmcsResponse,
    ReportedEvent,
)
from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceServicer, add_MachineServiceServicer_to_server
from metalplane.tenancy.v1.token_pb2 import CheckTokenRequest, CheckTokenResponse, Token
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceServicer, add_TokenServiceServicer_to_server

PASSWORD = "pw-Tr0ub4dor-do-leak"
NewIdentity = Callable[..., Any]
NewDatabase = Callable[..., Awaitable[str]]
StartPeer = Callable[..., Awaitable[str]]
NewBmc = Callable[..., Awaitable[SimulatedBmc]]
NewRedfish = Callable[..., Awaitable[SimulatedRedfish]]


@pytest.fixture
async def new_bmc() -> AsyncIterator[NewBmc]:
    """Starts a simulated BMC at each call."""
    bmcs: list[SimulatedBmc] = []

    async def start(host: str = "127.0.0.1", port: int = 0, **options: Any) -> SimulatedBmc:
        bmc = SimulatedBmc(options.pop("machine", str(uuid.uuid4())), **{"password": PASSWORD, **options})
        await bmc.start(host, port)
        bmcs.append(bmc)
        return bmc

    yield start
    for bmc in bmcs:
        bmc.stop()


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    """Two driver processes."""
    workers = WorkerPool(size=2)
    yield workers
    await workers.close()


@pytest.fixture
async def client() -> AsyncIterator[RmcpClient]:
    """Logs out of everything at the end."""
    made = RmcpClient()
    yield made
    await made.close()


@pytest.fixture
def fru(pool: WorkerPool) -> PyghmiFru:
    return PyghmiFru(pool)


@pytest.fixture
def driver(client: RmcpClient, fru: PyghmiFru) -> IpmiDriver:
    return IpmiDriver(client, fru)


@pytest.fixture
def target() -> Callable[..., Target]:
    """How to log in to a simulated BMC."""

    def of(bmc: SimulatedBmc, *, user: str = "metal", password: str = PASSWORD) -> Target:
        return Target(bmc.address[0], bmc.address[1], user, password)

    return of


@pytest.fixture
async def new_redfish() -> AsyncIterator[NewRedfish]:
    """Starts a simulated BMC at each call."""
    bmcs: list[SimulatedRedfish] = []

    async def start(make: str = "plain", **options: Any) -> SimulatedRedfish:
        machine = options.pop("machine", str(uuid.uuid4()))
        options = {"password": PASSWORD, "personality": PERSONALITIES[make], **options}
        bmc = SimulatedRedfish(machine, **options)
        await bmc.start()
        bmcs.append(bmc)
        return bmc

    yield start
    for bmc in bmcs:
        await bmc.stop()


@pytest.fixture
async def redfish_client() -> AsyncIterator[RedfishClient]:
    """Logs out of everything at the end."""
    made = RedfishClient()
    yield made
    await made.close()


@pytest.fixture
def redfish(redfish_client: RedfishClient) -> RedfishDriver:
    return RedfishDriver(redfish_client)


class Inventory(MachineServiceServicer):
    """Takes in reports and events and keeps them, an event as often as it is sent.

    `away` makes it fail as a peer that is restarting, which `turned_away` counts for events; `before_events` runs
    before an event is answered, and may hang.
    """

    def __init__(self) -> None:
        self.reports: dict[str, list[BmcReport]] = {}
        self.events: list[tuple[str, ReportedEvent]] = []
        self.machines: set[str] = set()
        self.away = False
        self.turned_away = 0
        self.before_events: Callable[[], Awaitable[None]] | None = None

    async def RecordEvents(self, request: RecordEventsRequest, context: Any) -> RecordEventsResponse:
        assert current_caller().partition == request.partition
        assert not request.allocation
        if self.away:
            self.turned_away += 1
            raise Unavailable("RESTARTING", "come back later")
        self.events += [(request.machine, event) for event in request.events]
        if self.before_events is not None:
            await self.before_events()
        return RecordEventsResponse(outcomes=[EventOutcome.EVENT_OUTCOME_ACCEPTED] * len(request.events))

    async def GetMachine(self, request: GetMachineRequest, context: Any) -> Machine:
        if request.id not in self.machines:
            raise NotFound("MACHINE_NOT_FOUND", "there is no such machine", field="id")
        current_caller().require_partition("fra1", what="machine")
        return Machine(id=request.id)

    async def ReportBmcs(self, request: ReportBmcsRequest, context: Any) -> ReportBmcsResponse:
        assert current_caller().partition == request.partition
        if self.away:
            raise Unavailable("RESTARTING", "come back later")
        for report in request.reports:
            self.reports.setdefault(report.machine, []).append(report)
        return ReportBmcsResponse()


class Tenancy(TokenServiceServicer):
    """Knows two tokens: of an operator and of a viewer of the plane."""

    async def CheckToken(self, request: CheckTokenRequest, context: Any) -> CheckTokenResponse:
        roles = {"operator": PlaneRole.PLANE_ROLE_OPERATOR, "viewer": PlaneRole.PLANE_ROLE_VIEWER}
        if request.secret not in roles:
            raise Unauthenticated("TOKEN_INVALID", "the token does not hold")
        return CheckTokenResponse(token=Token(id="t1", user=request.secret, plane_role=roles[request.secret]))


@dataclass
class Plane:
    """metal-bmc on a real database, its peers over real gRPC, and stubs of any identity."""

    new_identity: NewIdentity
    database_url: str
    nats_url: str
    stack: AsyncExitStack
    inventory: Inventory = field(default_factory=Inventory)
    peers: dict[str, str] = field(default_factory=dict)
    keys: str = "k1:" + base64.b64encode(bytes(range(32))).decode()
    running: RunningService | None = None

    async def start(self, **options: Any) -> RunningService:
        mine = self.new_identity(identity.partition_agent_id("fra1", "bmc"), dns=["bmc.metalplane"])
        settings: dict[str, Any] = {
            "tls_ca": str(mine.ca),
            "tls_cert": str(mine.cert),
            "tls_key": str(mine.key),
            "database_url": self.database_url,
            "nats_url": self.nats_url,
            "peers": self.peers,
            "partition": "fra1",
            "credential_keys": self.keys,
            "driver_processes": 2,
            "exchange_seconds": 3,
            "confirm_seconds": 1,
            "rest_seconds": 0.05,
            "poll_seconds": 3600,
            "gap_seconds": 0,
            "drain_seconds": 0.2,
        }
        self.running = await start(SPEC, SPEC.settings(**{**settings, **options}))
        self.stack.push_async_callback(self.running.stop, 0)
        return self.running

    def stub(self, token: str = "operator", of: Any = BmcServiceStub) -> Any:
        """A stub with a bearer token, or as the service allocation for an empty one."""
        assert self.running is not None
        spiffe_id = identity.client_id("tool") if token else identity.service_id("allocation")
        peers = Peers(
            {"bmc": self.running.address}, self.new_identity(spiffe_id), token=(lambda: token) if token else None
        )
        self.stack.push_async_callback(peers.close)
        return peers.stub(of, "bmc")

    async def register(self, bmc: SimulatedBmc, *, password: str = PASSWORD, **more: Any) -> pb.Bmc:
        """Register a simulated BMC with the service."""
        host, port = bmc.address
        message = pb.Bmc(
            machine=bmc.machine, partition="fra1", address=f"{host}:{port}", user="metal", password=password, **more
        )
        registered: pb.Bmc = await self.stub().RegisterBmc(pb.RegisterBmcRequest(bmc=message))
        return registered

    async def command(self, bmc: SimulatedBmc, name: str, **more: Any) -> pb.Command:
        """Give a command and wait for its end."""
        stub = self.stub("")
        action = pb.CommandAction.Value(f"COMMAND_ACTION_{name}")
        given = await stub.CreateCommand(pb.CreateCommandRequest(machine=bmc.machine, action=action, **more))
        return await self.ended(given.id)

    async def ended(self, command_id: str, seconds: float = 60) -> pb.Command:
        """The command once it has ended."""
        stub = self.stub("")
        async with asyncio.timeout(seconds):
            while True:
                command: pb.Command = await stub.GetCommand(pb.GetCommandRequest(id=command_id))
                if command.state not in (pb.COMMAND_STATE_PENDING, pb.COMMAND_STATE_RUNNING):
                    return command
                await asyncio.sleep(0.02)

    async def rows(self, query: str, *values: Any) -> list[Any]:
        """What the service's schema holds."""
        connection = await asyncpg.connect(self.database_url)
        try:
            await connection.execute("SET search_path TO bmc")
            return list(await connection.fetch(query, *values))
        finally:
            await connection.close()


@pytest.fixture
async def plane(
    new_identity: NewIdentity, new_database: NewDatabase, start_peer: StartPeer, nats_url: str
) -> AsyncIterator[Plane]:
    """The service's surroundings; tests start the service itself."""
    async with AsyncExitStack() as stack:
        made = Plane(new_identity, await new_database("bmc", "metal_bmc"), nats_url, stack)
        machines = "metalplane.inventory.v1.MachineService"
        made.peers["inventory"] = await start_peer(
            "inventory", (add_MachineServiceServicer_to_server, made.inventory, machines)
        )
        tokens = "metalplane.tenancy.v1.TokenService"
        tenancy = Tenancy()  # type: ignore[abstract]
        made.peers["tenancy"] = await start_peer("tenancy", (add_TokenServiceServicer_to_server, tenancy, tokens))
        yield made
