"""Fabric as a process of its own would run, callers of every kind, and leaves that follow a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from metal_fabric.service import SPEC
from metal_fabric.stream import HEARTBEAT_SECONDS
from metal_kit import identity
from metal_kit.client import Peers, StreamCall
from metal_kit.errors import Problem, Unauthenticated
from metal_kit.runtime import RunningService
from metalplane.common.v1.access_pb2 import PlaneRole
from metalplane.common.v1.event_pb2 import Event
from metalplane.fabric.v1 import agent_pb2, cabling_pb2, switch_pb2
from metalplane.fabric.v1.agent_pb2 import ConnectRequest, DesiredState, Heartbeat
from metalplane.fabric.v1.agent_pb2_grpc import SwitchAgentServiceStub
from metalplane.fabric.v1.cabling_pb2_grpc import CablingServiceStub
from metalplane.fabric.v1.generation_pb2_grpc import GenerationServiceStub
from metalplane.fabric.v1.settings_pb2_grpc import FabricSettingsServiceStub
from metalplane.fabric.v1.switch_pb2_grpc import SwitchServiceStub
from metalplane.plane.v1.issue_pb2_grpc import IssueServiceStub
from metalplane.tenancy.v1.token_pb2 import CheckTokenRequest, CheckTokenResponse
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceServicer, add_TokenServiceServicer_to_server

PARTITION = "mini"
PORTS = [f"Ethernet{4 * number}" for number in range(48)]
UPLINKS = ["Ethernet192", "Ethernet196"]


class Tenancy(TokenServiceServicer):
    """Tenancy, as far as fabric knows it: two tokens."""

    async def CheckToken(self, request: CheckTokenRequest, context: Any) -> CheckTokenResponse:
        roles = {"operator": PlaneRole.PLANE_ROLE_OPERATOR, "viewer": PlaneRole.PLANE_ROLE_VIEWER}
        if request.secret not in roles:
            raise Unauthenticated("TOKEN_INVALID", "the token does not hold")
        answer = CheckTokenResponse()
        answer.token.user, answer.token.plane_role = request.secret, roles[request.secret]
        return answer


@dataclass
class Leaf:
    """A leaf that says hello and collects what it is sent; what it applies and reports is the test's choice."""

    peers: Peers
    hello: Any
    """None opens a stream that says nothing."""
    states: list[DesiredState] = field(default_factory=list)
    acks: list[str] = field(default_factory=list)
    heartbeats: int = 0
    failure: Problem | None = None
    _call: Any = None
    _reader: asyncio.Task[None] | None = None
    _beating: asyncio.Task[None] | None = None
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def open(self, *, silent: bool = False) -> Leaf:
        """Connect. A `silent` leaf gives no sign of life of its own accord, against the contract."""
        stub: Any = self.peers.stub(SwitchAgentServiceStub, "fabric")
        self._call = call = stub.Connect()
        self._reader = asyncio.create_task(self._read(call))
        if self.hello is None:
            return self
        with suppress(Problem):  # a refusal may overtake the hello; the reader has it too
            await self.send(hello=self.hello)
        if self._beating is None and not silent:
            self._beating = asyncio.create_task(self._beat())
        return self

    async def _beat(self) -> None:
        # What a test does beside this may take longer than fabric waits for a leaf that is silent.
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            if not self.ended:
                with suppress(Problem):  # the reader has it
                    await self.send(heartbeat=Heartbeat())

    async def _read(self, call: StreamCall) -> None:
        self.failure = None
        try:
            async for response in call:
                if response.HasField("desired_state"):
                    self.states.append(response.desired_state)
                elif response.HasField("ack"):
                    self.acks.append(response.ack.id)
                else:
                    self.heartbeats += 1
        except Problem as problem:
            self.failure = problem

    async def send(self, **message: Any) -> None:
        async with self._writing:
            await self._call.write(ConnectRequest(**message))

    @property
    def generation(self) -> int:
        return self.states[-1].generation if self.states else 0

    @property
    def ended(self) -> bool:
        return self._reader is not None and self._reader.done()

    def port(self, name: str) -> agent_pb2.DesiredPort:
        return next(port for port in self.states[-1].ports if port.name == name)

    async def apply(self, state: DesiredState | None = None, *, error: str = "") -> str:
        """Report on a state, the newest one by default; the id of the report."""
        chosen = state or self.states[-1]
        report = agent_pb2.ApplyReport(
            id=str(uuid4()), generation=chosen.generation, hash=chosen.hash, applied=not error, error=error
        )
        if not error:
            self.hello.applied_generation, self.hello.applied_hash = chosen.generation, chosen.hash
        await self.send(apply_report=report)
        return report.id

    async def observe(
        self, *, up: Iterable[str] = (), down: Iterable[str] = (), seen: Iterable[tuple[str, str]] = ()
    ) -> str:
        observations = agent_pb2.Observations(id=str(uuid4()))
        for name in up:
            observations.ports.add(name=name, state=switch_pb2.PORT_STATE_UP)
        for name in down:
            observations.ports.add(name=name, state=switch_pb2.PORT_STATE_DOWN)
        for port, machine in seen:
            observations.phone_homes.add(port=port, machine=machine, message="provisioned")
        await self.send(observations=observations)
        return observations.id

    async def close(self) -> None:
        if self._call is not None:
            self._call.cancel()
        for task in (self._reader, self._beating):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])


@dataclass
class Fabric:
    """A running fabric with one or more replicas, and clients of any identity."""

    start_service: Any
    stub: Any
    new_identity: Any
    settings: dict[str, Any]
    stack: AsyncExitStack
    replicas: list[RunningService] = field(default_factory=list)

    async def replica(self) -> RunningService:
        """One more replica."""
        running: RunningService = await self.start_service(SPEC, **self.settings)
        self.replicas.append(running)
        return running

    def switches(self, *, as_: str = "allocation", token: str = "", replica: int = 0) -> Any:
        bearer = "" if token else identity.service_id(as_)
        return self.stub(self.replicas[replica], SwitchServiceStub, as_=bearer, token=token)

    def settings_of_partitions(self, *, token: str = "operator") -> Any:
        return self.stub(self.replicas[0], FabricSettingsServiceStub, as_="", token=token)

    def generations(self, *, token: str = "operator") -> Any:
        return self.stub(self.replicas[0], GenerationServiceStub, as_="", token=token)

    def cabling(self, *, as_: str = "inventory", token: str = "") -> Any:
        bearer = "" if token else identity.service_id(as_)
        return self.stub(self.replicas[0], CablingServiceStub, as_=bearer, token=token)

    def issues(self, *, token: str) -> Any:
        return self.stub(self.replicas[0], IssueServiceStub, as_="", token=token)

    def leaf(self, host: str, *, rack: str = "r1", certificate: str = "", replica: int = 0, **hello: Any) -> Leaf:
        """A leaf that has not connected yet; `certificate` is a SPIFFE id other than its own."""
        message = agent_pb2.Hello(
            switch_id=host,
            partition=PARTITION,
            rack=rack,
            os=switch_pb2.SWITCH_OS_SONIC,
            os_version="202311",
            core_version="0.1.0",
            loopback="10.0.0.11",
            asn=4200000011,
            pxe_vlan=4000,
            chassis_id=f"box of {host}",
        )
        for name in [*PORTS, *UPLINKS]:
            message.ports.add(name=name, alias=f"alias-{name}", uplink=name in UPLINKS, state=switch_pb2.PORT_STATE_UP)
        for name, value in hello.items():
            setattr(message, name, value)
        bearer = certificate or identity.leaf_id(PARTITION, host)
        # A channel of its own, as each leaf has.
        peers = Peers({"fabric": self.replicas[replica].address}, self.new_identity(bearer))
        self.stack.push_async_callback(peers.close)
        leaf = Leaf(peers, message)
        self.stack.push_async_callback(leaf.close)
        return leaf

    @staticmethod
    def cables(
        machine: str, port: str = "Ethernet0", hosts: Iterable[str] = ("leaf01", "leaf02")
    ) -> cabling_pb2.ConnectMachineRequest:
        """What inventory asks when a machine's installer saw these leaves on this port."""
        request = cabling_pb2.ConnectMachineRequest(machine=machine, partition=PARTITION)
        for number, host in enumerate(hosts):
            mac = f"aa:{machine[:2]}:{machine[2:4]}:{machine[4:6]}:{machine[6:8]}:{number:02x}"
            request.neighbours.add(nic_mac=mac, system_name=host, port_id=port)
        return request

    @staticmethod
    def attaching(machine: str, allocation: str, vrf: int = 20, **more: Any) -> switch_pb2.AttachMachineRequest:
        """What allocation asks for a tenant's machine."""
        more.setdefault("allowed_prefixes", ["10.0.0.0/22"])
        return switch_pb2.AttachMachineRequest(
            machine=machine, allocation=allocation, role=switch_pb2.PORT_ROLE_MACHINE, vrf=vrf, **more
        )

    async def machine(self, port: str = "Ethernet0") -> str:
        """A new machine that hangs on this port of leaf01 and leaf02."""
        machine = str(uuid4())
        await self.cabling().ConnectMachine(self.cables(machine, port))
        return machine

    async def machine_on(self, hosts: Iterable[str], port: str = "Ethernet0") -> str:
        """A new machine that hangs on this port of these switches."""
        machine = str(uuid4())
        await self.cabling().ConnectMachine(self.cables(machine, port, hosts))
        return machine

    async def rows(self, query: str, *args: Any) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.settings["database_url"], server_settings={"search_path": "fabric"})
        try:
            return await connection.fetch(query, *args)
        finally:
            await connection.close()


@pytest.fixture
async def fabric(
    start_service: Any, start_peer: Any, stub: Any, new_identity: Any, database_url: str, nats_url: str
) -> AsyncIterator[Fabric]:
    """A fabric with one replica."""
    servicer: Any = Tenancy  # the stubs of the contract take what is not implemented for abstract
    tenancy = await start_peer(
        "tenancy", (add_TokenServiceServicer_to_server, servicer(), "metalplane.tenancy.v1.TokenService")
    )
    settings = {"database_url": database_url, "nats_url": nats_url, "peers": {"tenancy": tenancy}}
    async with AsyncExitStack() as stack:
        made = Fabric(start_service, stub, new_identity, settings, stack)
        await made.replica()
        yield made


@pytest.fixture
async def pair(fabric: Fabric, eventually: Callable[..., Any]) -> tuple[Leaf, Leaf]:
    """Two leaves of one rack that have applied their first generation."""
    leaves = (await fabric.leaf("leaf01").open(), await fabric.leaf("leaf02").open())
    for leaf in leaves:
        await eventually(lambda leaf=leaf: leaf.states, what="a first desired state")
        report = await leaf.apply()
        await eventually(lambda leaf=leaf, report=report: report in leaf.acks, what="its acknowledgement")
    return leaves


class Events:
    """Events on the bus, from now on."""

    def __init__(self) -> None:
        self.seen: list[Event] = []

    def of(self, subject: str, entity_id: str = "") -> list[Event]:
        return [event for event in self.seen if event.subject == subject and entity_id in {"", event.entity_id}]


@pytest.fixture
async def events(fabric: Fabric) -> AsyncIterator[Events]:
    import nats

    client = await nats.connect(fabric.settings["nats_url"])
    collected = Events()

    async def take(message: Any) -> None:
        collected.seen.append(Event.FromString(message.data))

    await client.subscribe("metalplane.fabric.>", cb=take)
    await client.flush()
    yield collected
    await client.close()
