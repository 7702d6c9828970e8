"""Calls through the interceptor over real gRPC with mTLS: all kinds of methods, failures, limits, deadlines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import prometheus_client
import pytest
import structlog
from metal_kit import identity, interceptor, metrics, request
from metal_kit.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PeerFailed,
    PermissionDenied,
    Problem,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from metal_kit.guard import in_transaction
from metal_kit.server import Limits

KINDS = ["Unary", "Down", "Up", "Both"]


async def _several(*messages: Any) -> AsyncIterator[Any]:
    for each in messages:
        yield each


async def _call(stub: Any, kind: str, *messages: Any) -> list[Any]:
    """Call a method of any kind and collect what comes back."""
    if kind == "Unary":
        return [await stub.Unary(messages[0])]
    if kind == "Down":
        return [each async for each in stub.Down(messages[0])]
    if kind == "Up":
        return [await stub.Up(_several(*messages))]
    return [each async for each in stub.Both(_several(*messages))]


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_method_answers(plane: Any, message: Any, kind: str) -> None:
    answers = await _call(plane.stub(), kind, message(text="a", count=2))
    assert answers[-1].count == 2
    assert plane.servicer.callers[-1].label == "service:tester"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_problem_arrives_whole(plane: Any, message: Any, kind: str) -> None:
    with pytest.raises(NotFound) as caught:
        await _call(plane.stub(), kind, message(text="problem"))
    problem = caught.value
    assert (problem.reason, problem.message, problem.field) == ("THING_UNKNOWN", "no such thing", "text")
    assert problem.metadata == {"thing": "7"}


@pytest.mark.parametrize("kind", KINDS)
async def test_the_text_of_an_exception_never_leaves_the_server(plane: Any, message: Any, kind: str) -> None:
    with structlog.testing.capture_logs() as lines, pytest.raises(PeerFailed) as caught:
        await _call(plane.stub(), kind, message(text="boom"))
    wire = caught.value.__cause__
    assert isinstance(wire, grpc.aio.AioRpcError)
    assert wire.code() is grpc.StatusCode.INTERNAL
    everything = f"{wire.details()} {wire.trailing_metadata()} {wire.debug_error_string()}"
    assert "hunter2" not in everything
    assert "ValueError" not in everything
    defects = [line for line in lines if line["event"] == "rpc.defect"]
    assert [line["log_id"] for line in defects] == [caught.value.metadata["log_id"]]
    assert caught.value.metadata["log_id"] in caught.value.message


async def test_a_handler_that_answers_nonsense_is_an_internal_error(plane: Any, message: Any) -> None:
    with pytest.raises(PeerFailed) as caught:
        await plane.stub().Unary(message(text="badreply"))
    assert caught.value.reason == "INTERNAL"


@pytest.mark.parametrize("kind", KINDS)
async def test_validation_names_the_field(plane: Any, message: Any, kind: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await _call(plane.stub(), kind, message(text="longer than ten"))
    assert caught.value.field == "text"
    assert caught.value.reason == "INVALID_FIELD"
    assert not plane.servicer.callers


async def test_garbage_on_the_wire_is_an_invalid_argument(plane: Any, names: dict[str, str]) -> None:
    channel = plane.peers(plane.identity(identity.service_id("tester"))).channel("echo")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(f"/{names['echo']}/Unary")(b"\xff\xff\xff", timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "message of this method" in (caught.value.details() or "")


async def test_an_unknown_method_is_unimplemented(plane: Any, names: dict[str, str]) -> None:
    channel = plane.peers(plane.identity(identity.service_id("tester"))).channel("echo")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(f"/{names['echo']}/Nothing")(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert issubclass(Unimplemented, Problem)


async def test_an_oversize_message_is_refused(start_plane: Any, message: Any) -> None:
    plane = await start_plane(Limits(max_message_bytes=64 * 1024))
    stub = plane.stub()
    with pytest.raises(ResourceExhausted):
        await stub.Unary(message(blob=b"x" * 100_000))
    assert (await stub.Unary(message(count=1))).count == 1


async def test_a_call_ends_at_its_deadline_and_the_handler_with_it(plane: Any, message: Any) -> None:
    stub = plane.stub()
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await stub.Unary(message(text="slow"), timeout=0.3)
    assert time.monotonic() - started < 5


async def test_calls_inherit_what_is_left_of_the_deadline(plane: Any, message: Any) -> None:
    stub = plane.stub()
    await stub.Unary(message())
    token = request.deadline.set(time.monotonic() + 0.2)
    try:
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await stub.Unary(message(text="slow"))
        assert time.monotonic() - started < 5
        with pytest.raises(DeadlineExceeded, match="no time is left"):
            await stub.Unary(message())
    finally:
        request.deadline.reset(token)


async def test_no_call_leaves_while_a_transaction_is_open(plane: Any, message: Any) -> None:
    stub = plane.stub()
    token = in_transaction.set("test")
    try:
        for method in (stub.Unary, stub.Down, stub.Up, stub.Both):
            with pytest.raises(RuntimeError, match="inside the transaction 'test'"):
                method(message())
    finally:
        in_transaction.reset(token)
    assert not plane.servicer.callers


async def test_the_request_id_travels_and_is_logged_once(plane: Any, message: Any) -> None:
    token = request.request_id.set("req-7")
    try:
        with structlog.testing.capture_logs() as lines:
            await plane.stub().Unary(message())
    finally:
        request.request_id.reset(token)
    served = [line for line in lines if line["event"] == "rpc"]
    assert [(line["request_id"], line["code"], line["caller"]) for line in served] == [
        ("req-7", "OK", "service:tester")
    ]


async def test_a_peer_that_is_not_there_is_unavailable_without_its_address(plane: Any, message: Any) -> None:
    stub = plane.stub()
    address = plane.server.address
    await plane.server.stop(0)
    with pytest.raises(Unavailable) as caught:
        await stub.Unary(message())
    assert caught.value.metadata["peer"] == "echo"
    assert address not in caught.value.message


async def test_a_drain_ends_streams_at_once(plane: Any, message: Any) -> None:
    call = plane.stub().Down(message(text="watch"))
    stream = aiter(call)
    assert (await anext(stream)).text == "first"
    plane.servicer.stopping.set()
    started = time.monotonic()
    await plane.server.stop(10)
    assert time.monotonic() - started < 5
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_leaving_a_stream_ends_it_in_the_server(plane: Any, message: Any, eventually: Any) -> None:
    stream = aiter(plane.stub().Down(message(text="watch")))
    await anext(stream)
    await stream.aclose()
    await eventually(lambda: plane.servicer.ended == ["Down"])


async def test_a_stream_keeps_to_the_machine_that_it_began_with(
    plane: Any, message: Any, names: dict[str, str]
) -> None:
    own = names["machine"]
    stub = plane.stub(identity.machine_id(own))
    answers = [each async for each in stub.MachineStream(_several(message(machine=own), message(count=1)))]
    assert len(answers) == 2
    with pytest.raises(PermissionDenied) as caught:
        _ = [each async for each in stub.MachineStream(_several(message(machine=own), message(machine="other")))]
    assert caught.value.reason == "SCOPE_CHANGED"
    with pytest.raises(PermissionDenied):
        _ = [each async for each in stub.MachineStream(_several(message(machine="other")))]
    with pytest.raises(InvalidArgument):
        _ = [each async for each in stub.MachineStream(_several())]


async def test_writing_to_a_stream_that_has_failed_tells_why(plane: Any, message: Any) -> None:
    call = plane.stub().Both()
    await call.write(message(text="problem"))
    with pytest.raises(NotFound):
        await call.read()
    with pytest.raises(NotFound):
        await call.write(message())


async def test_concurrent_calls_do_not_mix_up_their_callers(plane: Any, message: Any) -> None:
    plane.tokens.known = {f"t{n}": identity.Caller("user", f"u{n}") for n in range(8)}
    stubs = [plane.stub(token=f"t{n}") for n in range(8)]
    answers = await asyncio.gather(*(stubs[n % 8].Whoever(message(count=n)) for n in range(64)))
    assert [answer.machine for answer in answers] == [f"user:u{n % 8}" for n in range(64)]


async def test_a_call_without_a_deadline_does_not_run_for_ever(
    start_plane: Any, message: Any, names: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptor, "LONGEST_UNARY", 0.2)
    plane = await start_plane()
    channel = plane.peers(plane.identity(identity.service_id("tester"))).channel("echo")
    call = channel.unary_unary(f"/{names['echo']}/Unary")(message(text="slow").SerializeToString())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, 10)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_stream_that_never_names_its_scope_is_ended(
    start_plane: Any, message: Any, names: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptor, "FIRST_MESSAGE", 0.2)
    plane = await start_plane()
    call = plane.stub(identity.machine_id(names["machine"])).MachineStream()
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(call.read(), 10)


async def test_a_peer_that_moves_is_found_by_the_stubs_that_exist(start_plane: Any, message: Any) -> None:
    first, second = await start_plane(), await start_plane()
    peers = first.peers(first.identity(identity.service_id("tester")))
    stub = peers.stub(type(first).stub_class, "echo")
    await stub.Unary(message())
    peers.set_endpoint("echo", second.server.address)
    await stub.Unary(message())
    assert (len(first.servicer.callers), len(second.servicer.callers)) == (1, 1)


async def test_a_renewed_client_certificate_is_used_by_the_next_call(plane: Any, message: Any) -> None:
    files = plane.identity(identity.service_id("tester"))
    stub = plane.peers(files).stub(type(plane).stub_class, "echo")
    await stub.Unary(message())
    plane.authority.issue("next", identity.service_id("stranger")).save(files.cert.parent, files.cert.stem)
    with pytest.raises(PermissionDenied):
        await stub.Unary(message())


async def test_a_peer_without_an_endpoint_is_named(plane: Any, message: Any) -> None:
    peers = plane.peers(plane.identity(identity.service_id("tester")))
    assert peers.has("echo")
    assert not peers.has("ipam")
    with pytest.raises(FailedPrecondition, match="ipam"):
        await peers.stub(type(plane).stub_class, "ipam").Unary(message())


async def test_the_metrics_page_counts_calls_by_method_and_code(plane: Any, message: Any) -> None:
    page = metrics.listen("127.0.0.1:0")
    try:
        method = "test.v1.EchoService/Unary"
        before = _sample(method, "NOT_FOUND")
        with pytest.raises(NotFound):
            await plane.stub().Unary(message(text="problem"))
        assert _sample(method, "NOT_FOUND") == before + 1
        reader, writer = await asyncio.open_connection("127.0.0.1", page.port)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = (await asyncio.wait_for(reader.read(), 10)).decode()
        writer.close()
        assert f'metalplane_rpc_server_calls_total{{code="NOT_FOUND",method="{method}"}}' in text
        assert f'metalplane_rpc_server_running{{method="{method}"}} 0.0' in text
    finally:
        await asyncio.to_thread(page.close)


def _sample(method: str, code: str) -> float:
    labels = {"method": method, "code": code}
    return prometheus_client.REGISTRY.get_sample_value("metalplane_rpc_server_calls_total", labels) or 0.0
