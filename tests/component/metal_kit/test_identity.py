"""Who gets in and as whom: certificates, tokens, and the access rules over real connections."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from metal_kit import attendance, identity
from metal_kit.access import AccessRuleError
from metal_kit.ca import Authority
from metal_kit.errors import InvalidArgument, NotFound, PermissionDenied, Problem, Unauthenticated, Unavailable
from metal_kit.identity import Caller
from metal_kit.server import Server, Servicer
from metalplane.common.v1.access_pb2 import PlaneRole, Role


async def _raw(channel: Any, method: str) -> Any:
    return await channel.unary_unary(method)(b"", timeout=5)


async def test_a_method_without_an_access_rule_refuses_to_start(names: dict[str, str]) -> None:
    with pytest.raises(AccessRuleError, match=r"BareService\.Forgotten declares no access rule"):
        Server([Servicer(lambda impl, server: None, None, names["bare"])])


async def test_an_expired_certificate_is_refused(plane: Any, message: Any) -> None:
    with pytest.raises(Unavailable):
        await plane.stub(identity.service_id("tester"), ttl=timedelta(seconds=-1)).Open(message())
    assert not plane.servicer.callers


async def test_a_certificate_of_a_foreign_authority_is_refused(plane: Any, message: Any) -> None:
    foreign = Authority.create("foreign")
    with pytest.raises(Unavailable):
        await plane.stub(identity.service_id("tester"), authority=foreign).Open(message())
    assert not plane.servicer.callers


async def test_a_connection_without_a_certificate_is_refused(plane: Any, names: dict[str, str]) -> None:
    credentials = grpc.ssl_channel_credentials(plane.authority.cert)
    options = [("grpc.ssl_target_name_override", "echo.metalplane")]
    async with grpc.aio.secure_channel(plane.server.address, credentials, options=options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _raw(channel, f"/{names['echo']}/Open")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_client_refuses_a_server_of_another_name(plane: Any, message: Any) -> None:
    peers = plane.peers(plane.identity(identity.service_id("tester")))
    peers.set_endpoint("other", plane.server.address)
    channel = peers.channel("other")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _raw(channel, "/x/y")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_that_ends_during_a_connection_ends_its_rights(
    plane: Any, message: Any, eventually: Any
) -> None:
    stub = plane.stub(identity.service_id("tester"), ttl=timedelta(seconds=2))
    assert (await stub.Unary(message(count=1))).count == 1

    async def refused() -> bool:
        try:
            await stub.Unary(message())
        except (Unauthenticated, Unavailable):
            return True
        return False

    await eventually(refused, seconds=10)


async def test_a_renewed_server_certificate_is_taken_up_without_a_restart(plane: Any, message: Any) -> None:
    """The old certificate's authority is replaced too, so only the new files can make this handshake work."""
    successor = Authority.create("successor")
    directory: Path = plane.directory
    successor.issue("echo", identity.service_id("echo"), dns=["echo.metalplane"]).save(directory, "echo")
    successor.save(directory, "ca")
    assert (await plane.stub(authority=successor).Unary(message(count=1))).count == 1
    with pytest.raises(Unavailable):
        await plane.stub().Unary(message())


async def test_the_intermediate_for_machines_signs_machines_only(
    plane: Any, message: Any, names: dict[str, str]
) -> None:
    intermediate = plane.authority.machine_intermediate("boot")
    machine = plane.stub(identity.machine_id(names["machine"]), authority=intermediate)
    answer = await machine.Machine(message(machine=names["machine"]))
    assert answer.machine == f"machine:{names['machine']}"
    with pytest.raises(Unauthenticated) as caught:
        await plane.stub(identity.service_id("tester"), authority=intermediate).Unary(message())
    assert caught.value.reason == "CERTIFICATE_WRONG_ISSUER"


async def test_a_certificate_without_an_identity_of_this_plane_is_refused(plane: Any, message: Any) -> None:
    for spiffe_id in ("spiffe://elsewhere/service/tester", "spiffe://metalplane/service/", "https://example.org/"):
        with pytest.raises(Unauthenticated) as caught:
            await plane.stub(spiffe_id).Open(message())
        assert caught.value.reason == "CERTIFICATE_UNKNOWN_IDENTITY"


async def test_a_client_certificate_alone_authorises_nothing(plane: Any, message: Any) -> None:
    stub = plane.stub(identity.client_id("tool"))
    assert (await stub.Open(message())).machine == "client:tool"
    for method in (stub.Unary, stub.Whoever, stub.Write, stub.Operate, stub.Machine):
        with pytest.raises(Unauthenticated) as caught:
            await method(message())
        assert caught.value.reason == "CREDENTIALS_MISSING"


async def test_a_service_needs_to_be_named_by_the_rule(plane: Any, message: Any) -> None:
    stub = plane.stub(identity.service_id("stranger"))
    with pytest.raises(PermissionDenied):
        await stub.Unary(message())
    with pytest.raises(PermissionDenied):
        await stub.Operate(message())
    assert (await stub.Whoever(message())).machine == "service:stranger"


async def test_a_machine_speaks_for_itself_only(plane: Any, message: Any, names: dict[str, str]) -> None:
    stub = plane.stub(identity.machine_id(names["machine"]))
    await stub.Machine(message(machine=names["machine"]))
    for other in ("", "00000000-0000-0000-0000-000000000000", names["machine"].upper()):
        with pytest.raises(PermissionDenied) as caught:
            await stub.Machine(message(machine=other))
        assert (caught.value.reason, caught.value.field) == ("NOT_YOUR_SCOPE", "machine")


async def test_roles_of_a_token_decide_by_project(plane: Any, message: Any, names: dict[str, str]) -> None:
    project = names["project"]
    plane.tokens.known = {
        "viewer": Caller("user", "v", projects={project: Role.ROLE_VIEWER}),
        "editor": Caller("user", "e", projects={project: Role.ROLE_EDITOR}),
        "stranger": Caller("user", "s"),
        "operator": Caller("user", "o", plane_role=PlaneRole.PLANE_ROLE_OPERATOR),
    }
    await plane.stub(token="editor").Write(message(project=project))
    await plane.stub(token="operator").Write(message(project=project))
    with pytest.raises(PermissionDenied):
        await plane.stub(token="viewer").Write(message(project=project))
    with pytest.raises(NotFound) as hidden:
        await plane.stub(token="stranger").Write(message(project=project))
    assert project in hidden.value.message
    with pytest.raises(InvalidArgument) as unnamed:
        await plane.stub(token="editor").Write(message())
    assert unnamed.value.field == "project"


@pytest.mark.parametrize("method", ["Object", "ObjectStream"])
async def test_a_handler_that_did_not_ask_for_the_role_at_its_object_does_not_answer(
    plane: Any, message: Any, names: dict[str, str], method: str
) -> None:
    project = names["project"]
    plane.tokens.known = {
        "editor": Caller("user", "e", projects={project: Role.ROLE_EDITOR}),
        "operator": Caller("user", "o", plane_role=PlaneRole.PLANE_ROLE_OPERATOR),
    }

    async def ask(stub: Any, **fields: str) -> str:
        call = getattr(stub, method)(message(**fields))
        answer = await call if method == "Object" else await anext(call.__aiter__())
        return str(answer.machine)

    editor, boot = plane.stub(token="editor"), plane.stub(identity.partition_agent_id("p1", "boot"))
    assert await ask(editor, text="project", project=project) == "user:e"
    assert await ask(boot, text="partition", machine="p1") == "boot:p1"
    # What the plane role of the rule opens needs no question.
    assert await ask(plane.stub(token="operator")) == "user:o"
    for stub, fields in (
        (editor, {}),
        (editor, {"text": "too little", "project": project}),
        (boot, {}),
    ):
        with pytest.raises(Problem) as refused:
            await ask(stub, **fields)
        assert refused.value.reason == "INTERNAL"
        assert "thing" not in refused.value.message
    with pytest.raises(NotFound):
        await ask(editor, text="project", project="another")
    with pytest.raises(NotFound):
        await ask(boot, text="partition", machine="p2")


async def test_a_token_that_does_not_hold_is_refused(plane: Any, message: Any) -> None:
    with pytest.raises(Unauthenticated) as caught:
        await plane.stub(token="nonsense").Open(message())
    assert caught.value.reason == "TOKEN_INVALID"


async def test_a_revoked_token_stops_working_when_the_cache_ends(plane: Any, message: Any, eventually: Any) -> None:
    plane.tokens.known = {"t": Caller("user", "u")}
    stub = plane.stub(token="t")
    for _ in range(20):
        await stub.Whoever(message())
    assert plane.tokens.asked < 20
    plane.tokens.known = {}

    async def refused() -> bool:
        try:
            await stub.Whoever(message())
        except Unauthenticated:
            return True
        return False

    await eventually(refused, seconds=6)


async def follow_until_refused(plane: Any, stream: Any) -> Problem:
    """What ends a stream that goes on for as long as it is allowed to."""
    try:
        async with asyncio.timeout(10):
            while True:
                plane.servicer.next.set()
                await anext(stream)
    except Problem as problem:
        return problem


async def test_a_stream_that_is_open_ends_with_its_token(plane: Any, message: Any) -> None:
    plane.tokens.known = {"t": Caller("user", "u")}
    stream = aiter(plane.stub(token="t").Follow(message(count=1_000_000)))
    await anext(stream)
    plane.tokens.known = {}
    assert isinstance(await follow_until_refused(plane, stream), Unauthenticated)


async def test_a_stream_that_says_nothing_ends_with_its_token_too(
    plane: Any, message: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attendance, "EVERY", 0.05)
    plane.tokens.known = {"t": Caller("user", "u")}
    stream = aiter(plane.stub(token="t").Follow(message(count=2)))
    await anext(stream)
    plane.tokens.known = {}
    with pytest.raises(Unauthenticated):
        async with asyncio.timeout(10):
            await anext(stream)


async def test_a_stream_that_is_open_ends_with_a_role_and_not_with_a_new_one(
    plane: Any, message: Any, names: dict[str, str], eventually: Any
) -> None:
    project = names["project"]
    plane.tokens.known = {"t": Caller("user", "u", projects={project: Role.ROLE_VIEWER})}
    stream = aiter(plane.stub(token="t").Follow(message(count=1_000_000)))
    await anext(stream)
    more = {project: Role.ROLE_EDITOR, names["machine"]: Role.ROLE_VIEWER}
    plane.tokens.known = {"t": Caller("user", "u", projects=more)}
    asked = plane.tokens.asked

    async def asked_again() -> bool:
        plane.servicer.next.set()
        await anext(stream)
        return bool(plane.tokens.asked > asked)

    await eventually(asked_again)
    plane.tokens.known = {"t": Caller("user", "u")}
    assert (await follow_until_refused(plane, stream)).reason == "ROLES_CHANGED"


async def test_a_service_may_not_bring_a_token_as_well(plane: Any, message: Any) -> None:
    plane.tokens.known = {"t": Caller("user", "u")}
    with pytest.raises(Unauthenticated) as caught:
        await plane.stub(identity.service_id("tester"), token="t").Unary(message())
    assert caught.value.reason == "TWO_IDENTITIES"


async def test_health_and_reflection_answer_for_every_service(plane: Any, names: dict[str, str]) -> None:
    channel = plane.peers(plane.identity(identity.client_id("probe"))).channel("echo")
    health: Any = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
    for name in ("", names["echo"]):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[no-untyped-call]
    question = reflection_pb2.ServerReflectionRequest(list_services="")

    async def questions() -> Any:
        yield question

    answers = [each async for each in reflection.ServerReflectionInfo(questions(), timeout=5)]
    listed = {service.name for service in answers[0].list_services_response.service}
    assert {names["echo"], "grpc.health.v1.Health"} <= listed
    await plane.server.unhealthy()
    answer = await health.Check(health_pb2.HealthCheckRequest(service=names["echo"]), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_server_is_not_healthy_before_it_says_so(plane: Any, names: dict[str, str]) -> None:
    server = Server([Servicer(lambda impl, server: None, None, names["echo"])])
    files = plane.identity(identity.service_id("late"), dns=["late.metalplane"])
    address = await server.start("127.0.0.1:0", files)
    try:
        peers = plane.peers(files)
        peers.set_endpoint("late", address)
        health: Any = health_pb2_grpc.HealthStub(peers.channel("late"))  # type: ignore[no-untyped-call]
        question = health_pb2.HealthCheckRequest(service="")
        assert (await health.Check(question, timeout=5)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await server.healthy()
        assert (await health.Check(question, timeout=5)).status == health_pb2.HealthCheckResponse.SERVING
    finally:
        await server.stop(0)
