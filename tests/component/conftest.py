"""Services as they run, for component tests: real gRPC with mTLS, real Postgres and NATS, peers that follow a script.

A test of one service starts it with `start_service`, its peers as `start_peer` (real servers that implement the peer's
contract), and calls it through `stub` as whoever the certificate or the token names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from metal_kit import identity
from metal_kit.ca import Authority
from metal_kit.client import Peers
from metal_kit.runtime import RunningService, ServiceSpec, start
from metal_kit.server import Server, Servicer
from metal_kit.tls import Identity

NewIdentity = Callable[..., Identity]
StartService = Callable[..., Awaitable[RunningService]]
StartPeer = Callable[..., Awaitable[str]]
MakeStub = Callable[..., Any]
NewDatabase = Callable[..., Awaitable[str]]


@pytest.fixture(scope="session")
def authority() -> Authority:
    """The plane's CA for this session."""
    return Authority.create("component tests")


@pytest.fixture
def new_identity(authority: Authority, tmp_path: Path) -> NewIdentity:
    """`new_identity(spiffe_id, dns=())` issues a certificate; its `ca`, `cert` and `key` are paths."""
    authority.save(tmp_path)

    def issue(spiffe_id: str, *, dns: Iterable[str] = ()) -> Identity:
        name = f"c{uuid4().hex[:12]}"
        cert, key = authority.issue(name, spiffe_id, dns=list(dns)).save(tmp_path, name)
        return Identity(tmp_path / "ca.crt", cert, key)

    return issue


@pytest.fixture
async def start_service(new_identity: NewIdentity, new_database: NewDatabase) -> AsyncIterator[StartService]:
    """`await start_service(SPEC, peers={name: endpoint}, **settings)` gives a RunningService, stopped after the test.

    It gets a database of its own unless `database_url` names one (a second replica shares the first's), and no bus
    unless `nats_url` does.
    """
    async with AsyncExitStack() as stack:

        async def start_one(spec: ServiceSpec, **settings: Any) -> RunningService:
            mine = new_identity(identity.service_id(spec.name), dns=[f"{spec.name}.metalplane"])
            if spec.package and "database_url" not in settings:
                settings["database_url"] = await new_database(spec.name, spec.package)
            defaults: dict[str, Any] = {"listen": "127.0.0.1:0", "drain_seconds": 3}
            files = {"tls_ca": str(mine.ca), "tls_cert": str(mine.cert), "tls_key": str(mine.key)}
            running = await start(spec, spec.settings(**(defaults | files | settings)))
            stack.push_async_callback(running.stop)
            return running

        yield start_one


@pytest.fixture
async def start_peer(new_identity: NewIdentity) -> AsyncIterator[StartPeer]:
    """`await start_peer("ipam", (add_function, servicer, full_name), ...)` serves a peer; gives its endpoint."""
    async with AsyncExitStack() as stack:

        async def start_one(name: str, *servicers: tuple[Callable[..., None], Any, str]) -> str:
            server = Server([Servicer(*each) for each in servicers])
            mine = new_identity(identity.service_id(name), dns=[f"{name}.metalplane"])
            address = await server.start("127.0.0.1:0", mine)
            stack.push_async_callback(server.stop, 0)
            return address

        yield start_one


@pytest.fixture
async def stub(new_identity: NewIdentity) -> AsyncIterator[MakeStub]:
    """`stub(running, StubClass, as_=spiffe_id)` or `stub(running, StubClass, token=secret)` calls a running service."""
    async with AsyncExitStack() as stack:
        known: dict[tuple[str, str, str], Peers] = {}

        def make(running: RunningService, stub_class: Any, *, as_: str = "", token: str = "") -> Any:
            bearer = as_ or identity.client_id("tool")
            key = (running.address, bearer, token)
            if key not in known:
                endpoints = {running.name: running.address}
                peers = Peers(endpoints, new_identity(bearer), token=(lambda: token) if token else None)
                stack.push_async_callback(peers.close)
                known[key] = peers
            return known[key].stub(stub_class, running.name)

        yield make
