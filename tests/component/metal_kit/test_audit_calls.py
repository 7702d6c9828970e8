"""What calls leave in the audit log: over a real server and a real database, when all is well and when it is not."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from metal_kit import identity
from metal_kit.audit import store
from metal_kit.audit.store import Filters, LocalLog
from metal_kit.audit.writer import AuditWriter
from metal_kit.client import Peers
from metal_kit.db import Database
from metal_kit.errors import InvalidArgument, NotFound, PermissionDenied, Problem, Unauthenticated, Unavailable
from metal_kit.identity import Caller
from metal_kit.migrations import migrate
from metal_lab.servers import Postgres
from metal_lab.servers.ports import free_port
from metalplane.audit.v1.audit_pb2 import AuditEntry, AuditPhase
from metalplane.common.v1.access_pb2 import Role
from metalplane.tenancy.v1.tenant_pb2 import CreateTenantRequest, Tenant
from metalplane.tenancy.v1.tenant_pb2_grpc import TenantServiceStub
from running import running

BEGUN, ENDED = AuditPhase.AUDIT_PHASE_BEGUN, AuditPhase.AUDIT_PHASE_ENDED
REFUSED, SUMMED = AuditPhase.AUDIT_PHASE_REFUSED, AuditPhase.AUDIT_PHASE_SUMMED
SECRET = "hunter2"


async def chain(db: Database) -> list[AuditEntry]:
    """Every entry, in order."""
    async with db.connection() as connection:
        links = await store.links(connection, 0, (await store.ends(connection)).head_sequence, 1000)
    return [AuditEntry.FromString(link.entry) for link in links]


@pytest.fixture
async def db(new_database: Callable[..., Awaitable[str]]) -> AsyncIterator[Database]:
    database = await Database.open(await new_database("kit"), "kit")
    yield database
    await database.close()


@pytest.fixture
async def writer(db: Database) -> AsyncIterator[AuditWriter]:
    made = AuditWriter(LocalLog(db), "echo")
    async with running(made):
        yield made


@pytest.fixture
async def audited(start_plane: Any, writer: AuditWriter) -> Any:
    """An echo server whose calls are recorded."""
    plane = await start_plane(audit=writer)
    plane.tokens.known["editor"] = Caller("user", "ed", token_id="t-1", projects={"p-1": Role.ROLE_EDITOR})
    plane.tokens.known["viewer"] = Caller("user", "vi", token_id="t-2", projects={"p-1": Role.ROLE_VIEWER})
    return plane


@pytest.fixture
def recorded(db: Database, eventually: Any) -> Callable[[int], Awaitable[list[AuditEntry]]]:
    """`await recorded(n)` waits for n entries."""

    async def wait(count: int) -> list[AuditEntry]:
        async def there() -> bool:
            return len(await chain(db)) >= count

        await eventually(there, what=f"{count} entries")
        found = await chain(db)
        assert len(found) == count, found
        return found

    return wait


async def test_a_call_leaves_who_what_when_where_and_how_it_ended(audited: Any, message: Any, recorded: Any) -> None:
    await audited.stub(token="editor").Write(
        message(project="p-1", machine="m-1", text=SECRET), metadata=(("x-request-id", "req-1"),)
    )
    begun, ended = await recorded(2)
    assert (begun.phase, ended.phase) == (BEGUN, ENDED)
    assert begun.call == ended.call
    for entry in (begun, ended):
        assert entry.service == "echo"
        assert entry.method == "test.v1.EchoService/Write"
        assert (entry.caller, entry.token_id, entry.peer) == ("user:ed", "t-1", "127.0.0.1")
        assert (entry.project, entry.object, entry.request_id) == ("p-1", "m-1", "req-1")
        assert SECRET.encode() not in entry.SerializeToString()
    assert (begun.code, ended.code) == ("", "OK")
    assert ended.begin_time == begun.begin_time == begun.time
    assert begun.time.ToNanoseconds() < ended.time.ToNanoseconds()


async def test_a_failure_of_the_handler_is_recorded_with_its_reason(audited: Any, message: Any, recorded: Any) -> None:
    stub = audited.stub(token="editor")
    with pytest.raises(NotFound):
        await stub.Write(message(project="p-1", text="problem"))
    with pytest.raises(Problem):
        await stub.Write(message(project="p-1", text="boom"))
    entries = await recorded(4)
    assert [(each.code, each.reason) for each in entries if each.phase == ENDED] == [
        ("NOT_FOUND", "THING_UNKNOWN"), ("INTERNAL", "INTERNAL")
    ]  # fmt: skip
    assert not any(SECRET.encode() in each.SerializeToString() for each in entries)


async def test_the_project_of_an_object_is_the_one_that_the_handler_asked_about(
    audited: Any, message: Any, recorded: Any
) -> None:
    await audited.stub(token="editor").Object(message(text="project", project="p-1"))
    with pytest.raises(NotFound):
        await audited.stub(token="editor").Object(message(text="project", project="p-of-others"))
    mine, strange = [each for each in await recorded(4) if each.phase == ENDED]
    assert (mine.project, mine.code) == ("p-1", "OK")
    assert strange.code == "NOT_FOUND"


async def test_refusals_are_recorded_whoever_knocked(audited: Any, message: Any, recorded: Any) -> None:
    request = message(project="p-1", machine="m-1")
    expected = []
    for caller, problem, token, asked, label in (
        ("", Unauthenticated, "", request, "client:tool"),
        ("", Unauthenticated, "forged", request, "client:tool"),
        ("", PermissionDenied, "viewer", request, "user:vi"),
        ("", NotFound, "editor", message(project="p-of-others"), "user:ed"),
        ("", InvalidArgument, "editor", message(project="p-1", text="longer than ten"), "user:ed"),
        (identity.leaf_id("mini", "leaf01"), PermissionDenied, "", request, "leaf:leaf01"),
    ):
        with pytest.raises(problem) as caught:
            await audited.stub(caller or identity.client_id("tool"), token=token).Write(asked)
        expected.append((label, caught.value.code.name, caught.value.reason))
    entries = await recorded(len(expected))
    assert [(each.caller, each.code, each.reason) for each in entries] == expected
    assert {each.phase for each in entries} == {REFUSED}
    assert [each.project for each in entries] == ["p-1", "", "p-1", "p-of-others", "p-1", "p-1"]
    assert audited.servicer.callers == []


async def test_reads_leave_nothing(audited: Any, message: Any, db: Database) -> None:
    await audited.stub().Unary(message())
    with pytest.raises(Unauthenticated):
        await audited.stub(identity.client_id("tool")).Whoever(message())
    await audited.stub(token="editor").Write(message(project="p-1"))
    assert {each.method for each in await chain(db)} == {"test.v1.EchoService/Write"}


async def test_routine_calls_that_go_well_are_summed_and_the_others_recorded_each(
    start_plane: Any, message: Any, db: Database
) -> None:
    writer = AuditWriter(LocalLog(db), "echo")
    async with running(writer):
        plane = await start_plane(audit=writer)
        for _ in range(5):
            await plane.stub().Routine(message(machine="m-1"))
        await plane.stub().Routine(message(machine="m-2"))
        with pytest.raises(NotFound):
            await plane.stub().Routine(message(machine="m-1", text="problem"))
        async for _ in plane.stub().RoutineStream(message(count=3)):
            pass
        await plane.server.stop(0)
    entries = await chain(db)
    assert [(each.object, each.count) for each in entries if each.phase == SUMMED] == [("m-1", 5), ("m-2", 1)]
    others = [(each.phase, each.method.rpartition("/")[2], each.code) for each in entries if each.phase != SUMMED]
    assert others == [
        (ENDED, "Routine", "NOT_FOUND"), (BEGUN, "RoutineStream", ""), (ENDED, "RoutineStream", "OK")
    ]  # fmt: skip


async def test_a_stream_is_one_call_from_its_admission_to_its_end(audited: Any, message: Any, recorded: Any) -> None:
    stub = audited.stub(token="editor")
    stream = aiter(stub.RoutineStream(message(text="watch")))
    with pytest.raises(PermissionDenied):
        await anext(stream)
    service = audited.stub()
    watch = service.RoutineStream(message(text="watch"))
    stream = aiter(watch)
    await anext(stream)
    begun = (await recorded(2))[1]
    assert (begun.phase, begun.caller) == (BEGUN, "service:tester")
    watch.cancel()
    ended = (await recorded(3))[2]
    assert (ended.call, ended.phase, ended.code) == (begun.call, ENDED, "CANCELLED")
    with suppress(Exception, asyncio.CancelledError):
        await anext(stream)


async def test_the_edge_and_nobody_else_says_where_a_call_came_from(audited: Any, message: Any, recorded: Any) -> None:
    forwarded = (("x-forwarded-for", "203.0.113.9"),)
    for bearer in ("edge", "tool"):
        stub = audited.stub(identity.client_id(bearer), token="editor")
        await stub.Write(message(project="p-1"), metadata=forwarded)
    entries = await recorded(4)
    assert [each.peer for each in entries if each.phase == ENDED] == ["203.0.113.9", "127.0.0.1"]


async def test_the_handler_does_not_run_before_its_entry_is_durable(
    audited: Any, message: Any, db: Database, recorded: Any
) -> None:
    async with db.connection() as connection, connection.transaction():
        await connection.execute("SELECT FROM audit_chain FOR UPDATE")
        calling = asyncio.create_task(audited.stub(token="editor").Write(message(project="p-1")))
        # Reads need no entry, and come through meanwhile.
        assert (await audited.stub().Unary(message(count=3))).count == 3
        await asyncio.wait([calling], timeout=0.3)
        assert not calling.done()
        assert [each.name for each in audited.servicer.callers] == ["tester"]
    await calling
    assert [each.name for each in audited.servicer.callers] == ["tester", "ed"]
    await recorded(2)


async def test_while_the_database_is_away_nothing_changes_reads_go_on_and_afterwards_it_is_told(
    server_directory: Path, start_plane: Any, message: Any, eventually: Any
) -> None:
    server = Postgres(server_directory / f"pg-{uuid4().hex[:8]}", durable=False)
    await server.start()
    try:
        await migrate(server.url, "kit", "")
        db = await Database.open(server.url, "kit")
        writer = AuditWriter(LocalLog(db), "echo")
        async with running(writer):
            plane = await start_plane(audit=writer)
            await plane.stub().Write(message(project="p-1"))
            await server.stop()
            for _ in range(2):
                with pytest.raises(Unavailable) as refused:
                    await plane.stub().Write(message(project="p-1"))
                assert refused.value.reason == "AUDIT_UNAVAILABLE"
                assert refused.value.retry_after == timedelta(seconds=1)
            assert (await plane.stub().Unary(message(count=3))).count == 3
            assert len(plane.servicer.callers) == 2, "one change before, one read"
            await server.start()

            async def changes_again() -> bool:
                with suppress(Unavailable):
                    await plane.stub().Write(message(project="p-1"))
                    return True
                return False

            await eventually(changes_again)
            await plane.server.stop(0)
        codes = [each.code for each in await chain(db) if each.phase in {ENDED, REFUSED}]
        await db.close()
    finally:
        await server.stop()
    assert codes[0] == codes[-1] == "OK"
    assert codes.count("UNAVAILABLE") >= 2
    assert codes.count("OK") == 2


async def test_a_process_that_is_killed_in_the_midst_of_a_call_leaves_a_call_without_an_end(
    new_database: Callable[..., Awaitable[str]], new_identity: Any, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{free_port()}"
    url = await new_database("tenancy", "metal_tenancy")
    mine = new_identity(identity.service_id("tenancy"), dns=["tenancy.metalplane"])
    settings = {
        "tls_ca": mine.ca, "tls_cert": mine.cert, "tls_key": mine.key, "database_url": url, "listen": address,
    }  # fmt: skip
    script = tmp_path / "service.py"
    script.write_text(_HANGING)
    environment = dict(os.environ) | {f"METALPLANE_{name.upper()}": str(value) for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    peers = Peers({"tenancy": address}, new_identity(identity.client_id("tool")), token=lambda: "t")
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"ready\n"
            request = CreateTenantRequest(tenant=Tenant(name="acme"))
            calling = asyncio.create_task(peers.stub(TenantServiceStub, "tenancy").CreateTenant(request, timeout=60))
            assert await process.stdout.readline() == b"the handler runs\n"
            process.kill()
            with pytest.raises(Problem):
                await calling
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await peers.close()
    db = await Database.open(url, "tenancy")
    try:
        [entry] = await chain(db)
        assert (entry.phase, entry.method) == (BEGUN, "tenancy.v1.TenantService/CreateTenant")
        async with db.connection() as connection:
            assert len(await store.page(connection, Filters(code=""), None, 10)) == 1
    finally:
        await db.close()


_HANGING = """
import asyncio
from metal_kit.identity import Caller
from metal_kit.runtime import Background, Parts, Servicer, ServiceSpec, main
from metal_kit.settings import ServiceSettings
from metalplane.common.v1.access_pb2 import PlaneRole
from metalplane.tenancy.v1 import tenant_pb2_grpc

class Api(tenant_pb2_grpc.TenantServiceServicer):
    async def CreateTenant(self, request, context):
        print("the handler runs", flush=True)
        await asyncio.Event().wait()

class Tokens:
    async def check(self, secret):
        return Caller("user", "root", token_id="t", plane_role=PlaneRole.PLANE_ROLE_OPERATOR)

async def ready():
    print("ready", flush=True)
    await asyncio.Event().wait()

async def compose(rt):
    name = "metalplane.tenancy.v1.TenantService"
    servicer = Servicer(tenant_pb2_grpc.add_TenantServiceServicer_to_server, Api(), name)
    return Parts(servicers=[servicer], token_checker=Tokens(), background=[Background("ready", ready)])

main(ServiceSpec("tenancy", ServiceSettings, "metal_tenancy", compose))
"""
