"""A service with every kind of method and access rule, built from descriptors, and a server that speaks mTLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import grpc
import pytest
from buf.validate import validate_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from metal_kit import identity
from metal_kit.audit.writer import AuditWriter
from metal_kit.ca import Authority
from metal_kit.client import Peers
from metal_kit.errors import NotFound, Unauthenticated
from metal_kit.identity import Caller, current_caller
from metal_kit.server import Limits, Server, Servicer
from metal_kit.tls import Identity
from metal_kit.tokens import TokenVerifier
from metalplane.common.v1 import access_pb2
from metalplane.common.v1.access_pb2 import Access, Agent, Effect, PlaneRole, Role, ScopeKind

PACKAGE = "metalplane.test.v1"
ECHO = f"{PACKAGE}.EchoService"
BARE = f"{PACKAGE}.BareService"
PROJECT = "0198c1d2-0000-7000-8000-000000000001"
MACHINE = "4c4c4544-0051-3510-8052-b4c04f4e3132"

_EDITOR = Access(
    role=Role.ROLE_EDITOR,
    scope=ScopeKind.SCOPE_KIND_PROJECT,
    scope_field="project",
    services=["tester"],
    effect=Effect.EFFECT_WRITE,
)
_ROUTINE = Access(services=["tester"], effect=Effect.EFFECT_WRITE, routine=True)
_MACHINE = Access(agents=[Agent.AGENT_MACHINE], scope=ScopeKind.SCOPE_KIND_MACHINE, scope_field="machine")
_OBJECT = Access(
    role=Role.ROLE_EDITOR,
    plane_role=PlaneRole.PLANE_ROLE_OPERATOR,
    agents=[Agent.AGENT_BOOT],
    scope=ScopeKind.SCOPE_KIND_OBJECT,
    effect=Effect.EFFECT_WRITE,
)
_BY_SERVICE = Access(services=["tester"])
# Name, client streams, server streams, rule.
_METHODS: list[tuple[str, bool, bool, Access | None]] = [
    ("Unary", False, False, _BY_SERVICE),
    ("Down", False, True, _BY_SERVICE),
    ("Up", True, False, _BY_SERVICE),
    ("Both", True, True, _BY_SERVICE),
    ("Open", False, False, Access(public=True)),
    ("Whoever", False, False, Access(authenticated=True)),
    ("Follow", False, True, Access(authenticated=True)),
    ("Write", False, False, _EDITOR),
    ("Operate", False, False, Access(plane_role=PlaneRole.PLANE_ROLE_OPERATOR)),
    ("Machine", False, False, _MACHINE),
    ("Object", False, False, _OBJECT),
    ("ObjectStream", False, True, _OBJECT),
    ("MachineStream", True, True, _MACHINE),
    ("Routine", False, False, _ROUTINE),
    ("RoutineStream", False, True, _ROUTINE),
]


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="metalplane/test/v1/echo.proto", package=PACKAGE, syntax="proto3")
    file.dependency.extend(["buf/validate/validate.proto", "metalplane/common/v1/access.proto"])
    message = file.message_type.add(name="Echo")
    for number, (name, kind) in enumerate(
        [("text", Field.TYPE_STRING), ("count", Field.TYPE_INT32), ("project", Field.TYPE_STRING),
         ("machine", Field.TYPE_STRING), ("blob", Field.TYPE_BYTES)], start=1,
    ):  # fmt: skip
        message.field.add(name=name, number=number, type=kind, label=Field.LABEL_OPTIONAL)
    message.field[0].options.Extensions[validate_pb2.field].string.max_len = 10
    for service, methods in (("EchoService", _METHODS), ("BareService", [("Forgotten", False, False, None)])):
        described = file.service.add(name=service)
        for name, up, down, rule in methods:
            method = described.method.add(
                name=name, input_type=f".{PACKAGE}.Echo", output_type=f".{PACKAGE}.Echo",
                client_streaming=up, server_streaming=down,
            )  # fmt: skip
            if rule is not None:
                option = method.options.Extensions[access_pb2.access]
                option.CopyFrom(rule)
                option.effect = rule.effect or Effect.EFFECT_READ
    descriptor_pool.Default().Add(file)
    described_file = descriptor_pool.Default().FindFileByName(file.name)
    return {"Echo": message_factory.GetMessageClass(described_file.message_types_by_name["Echo"])}


Echo = _build()["Echo"]


class EchoStub:
    """What protoc would generate."""

    def __init__(self, channel: Any) -> None:
        for name, up, down, _ in _METHODS:
            kind = f"{'stream' if up else 'unary'}_{'stream' if down else 'unary'}"
            make = getattr(channel, kind)
            path = f"/{ECHO}/{name}"
            setattr(
                self,
                name,
                make(path, request_serializer=Echo.SerializeToString, response_deserializer=Echo.FromString),
            )


@dataclass
class EchoServicer:
    """Answers with what it got; its texts make it misbehave."""

    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    next: asyncio.Event = field(default_factory=asyncio.Event)
    callers: list[Caller] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    async def _act(self, request: Any) -> Any:
        self.callers.append(current_caller())
        if request.text == "boom":
            raise ValueError("secret: the password is hunter2")
        if request.text == "problem":
            raise NotFound("THING_UNKNOWN", "no such thing", field="text", metadata={"thing": "7"})
        if request.text == "abort":
            raise asyncio.CancelledError
        if request.text == "slow":
            await asyncio.sleep(30)
        if request.text == "badreply":
            return "not a message"
        return Echo(text=request.text, count=request.count, machine=current_caller().label)

    async def Unary(self, request: Any, context: Any) -> Any:
        return await self._act(request)

    Open = Whoever = Write = Operate = Machine = Routine = Unary

    async def Object(self, request: Any, context: Any) -> Any:
        """Loads its object, and asks of the caller what the text says; a forgetful handler asks nothing."""
        caller = current_caller()
        if request.text == "project":
            caller.require_project(request.project, Role.ROLE_EDITOR, what="thing 7")
        elif request.text == "too little":
            caller.require_project(request.project, Role.ROLE_VIEWER, what="thing 7")
        elif request.text == "partition":
            caller.require_partition(request.machine, what="thing 7")
        return Echo(machine=caller.label)

    async def ObjectStream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield await self.Object(request, context)

    async def Down(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            if request.text == "watch":
                yield Echo(text="first")
                await self.stopping.wait()
                return
            for number in range(request.count):
                yield Echo(count=number)
            yield await self._act(request)
        finally:
            self.ended.append("Down")

    RoutineStream = Down

    async def Follow(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for number in range(request.count):
            yield Echo(count=number)
            await self.next.wait()
            self.next.clear()

    async def Up(self, requests: AsyncIterator[Any], context: Any) -> Any:
        total = 0
        async for request in requests:
            total += (await self._act(request)).count
        return Echo(count=total)

    async def Both(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield await self._act(request)

    MachineStream = Both


def add_echo(impl: Any, server: Any) -> None:
    """What protoc would generate."""
    handlers = {}
    for name, up, down, _ in _METHODS:
        kind = f"{'stream' if up else 'unary'}_{'stream' if down else 'unary'}_rpc_method_handler"
        handlers[name] = getattr(grpc, kind)(
            getattr(impl, name), request_deserializer=Echo.FromString, response_serializer=Echo.SerializeToString
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(ECHO, handlers),))


class Tokens:
    """A TokenChecker with a fixed list."""

    def __init__(self) -> None:
        self.known: dict[str, Caller] = {}
        self.asked = 0

    async def check(self, secret: str) -> Caller:
        self.asked += 1
        if secret not in self.known:
            raise Unauthenticated("TOKEN_INVALID", "the token does not hold")
        return self.known[secret]


@dataclass
class Plane:
    """A running echo server, and clients of any identity."""

    authority: Authority
    directory: Path
    server: Server
    servicer: EchoServicer
    tokens: Tokens
    stack: AsyncExitStack
    stub_class: ClassVar[type] = EchoStub

    def identity(self, spiffe_id: str, authority: Authority | None = None, **issue: Any) -> Identity:
        """Files of a certificate for this SPIFFE id."""
        name = f"c{len(list(self.directory.iterdir()))}"
        cert, key = (authority or self.authority).issue(name, spiffe_id, **issue).save(self.directory, name)
        return Identity(self.directory / "ca.crt", cert, key)

    def peers(self, identity: Identity, token: str = "") -> Peers:
        """Peers that know this server as `echo`."""
        peers = Peers({"echo": self.server.address}, identity, token=(lambda: token) if token else None)
        self.stack.push_async_callback(peers.close)
        return peers

    def stub(self, spiffe_id: str = "", *, token: str = "", **issue: Any) -> Any:
        """A stub whose bearer is this identity; the service `tester` if none is named."""
        chosen = spiffe_id or (identity.client_id("tool") if token else identity.service_id("tester"))
        return self.peers(self.identity(chosen, **issue), token).stub(EchoStub, "echo")


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority.create("test")


StartPlane = Callable[..., Awaitable[Plane]]


@pytest.fixture
async def start_plane(authority: Authority, tmp_path: Path) -> AsyncIterator[StartPlane]:
    async with AsyncExitStack() as stack:

        async def start(limits: Limits | None = None, audit: AuditWriter | None = None) -> Plane:
            authority.save(tmp_path, "ca")
            cert, key = authority.issue("echo", identity.service_id("echo"), dns=["echo.metalplane"]).save(
                tmp_path, "echo"
            )
            servicer, tokens = EchoServicer(), Tokens()
            server = Server(
                [Servicer(add_echo, servicer, ECHO)],
                tokens=TokenVerifier(tokens, max_age=0.2),
                limits=limits,
                audit=audit,
            )
            await server.start("127.0.0.1:0", Identity(tmp_path / "ca.crt", cert, key))
            stack.push_async_callback(server.stop, 0)
            await server.healthy()
            return Plane(authority, tmp_path, server, servicer, tokens, stack)

        yield start


@pytest.fixture
async def plane(start_plane: StartPlane) -> Plane:
    return await start_plane()


@pytest.fixture
def message() -> Any:
    """The class of the echo service's message."""
    return Echo


@pytest.fixture
def names() -> dict[str, str]:
    """Names of the services, and ids that the tests use."""
    return {"echo": ECHO, "bare": BARE, "project": PROJECT, "machine": MACHINE}


@dataclass(frozen=True)
class EchoParts:
    """What a test composes a service from."""

    add: Callable[[Any, Any], None] = add_echo
    stub: type = EchoStub
    full_name: str = ECHO

    @staticmethod
    def servicer(stopping: asyncio.Event) -> EchoServicer:
        """A servicer whose watch streams end with `stopping`."""
        return EchoServicer(stopping)


@pytest.fixture
def echo() -> EchoParts:
    return EchoParts()
