"""What does the kit's interceptor cost a unary call, in CPU of the server?

Both handlers get the same bytes and do the same work: parse, answer, serialise. One is bare; around the other is all
that every call of the plane gets: the peer's certificate, the access rule, validation, request id, deadline, metrics, a
log line as JSON. The handlers are called directly, because gRPC's own 300 µs and their noise would hide the answer; the
context stands in for gRPC's, with the same types of data. Neighbours on the same cores inflate even CPU time, twofold
at times, so the figure is the one of the calmest round. Another one, taken over mTLS, shows that nothing was forgotten.

Calls that change something are audited on top: two entries each, one of which is waited for. That is measured with as
many calls at once as share a batch in a busy service, into a real Postgres, whose own CPU is not in the figure.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import grpc
from google.protobuf.empty_pb2 import Empty
from metal_kit import identity, logs, validation
from metal_kit.access import rules_of, service_descriptor
from metal_kit.audit.store import LocalLog
from metal_kit.audit.writer import AuditWriter
from metal_kit.ca import Authority
from metal_kit.client import Peers
from metal_kit.db import Database
from metal_kit.identity import Caller
from metal_kit.interceptor import Interceptor
from metal_kit.limits import DEFAULTS, Limiter
from metal_kit.migrations import migrate
from metal_kit.server import Server, Servicer
from metal_kit.tls import Identity
from metal_kit.tokens import TokenVerifier
from metal_lab.servers import Postgres
from metalplane.tenancy.v1 import token_pb2, token_pb2_grpc
from report import Answer, arguments, finish, percentile

SERVICE = "metalplane.tenancy.v1.TokenService"
METHOD = f"/{SERVICE}/CheckToken"
PERSONAL = f"/{SERVICE}/WhoAmI"
AUDITED = f"/{SERVICE}/RevokeToken"
AT_ONCE = 32


class Api:
    """Two methods that do nothing, one for services and one for people; the others are never called."""

    def __getattr__(self, name: str) -> Any:
        if name[0].isupper():
            return self.WhoAmI
        raise AttributeError(name)

    async def CheckToken(self, request: Any, context: Any) -> Any:
        return token_pb2.CheckTokenResponse(token=token_pb2.Token(id=request.secret))

    async def WhoAmI(self, request: Any, context: Any) -> Any:
        return token_pb2.WhoAmIResponse(kind="user")


class Tokens:
    """Knows every token."""

    async def check(self, secret: str) -> Caller:
        return Caller("user", "somebody", token_id=secret)


class Context:
    """What the interceptor asks of gRPC's context, answered with the same types."""

    def __init__(self, certificate: bytes, *metadata: tuple[str, str]) -> None:
        self._metadata = (("user-agent", "grpc-python-asyncio/1.85.1"), *metadata)
        self._certificate = certificate

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple(pair for pair in self._metadata)

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"transport_security_type": [b"ssl"], "x509_pem_cert": [bytes(bytearray(self._certificate))]}

    def peer(self) -> str:
        return "ipv4:192.0.2.7:50123"

    def time_remaining(self) -> float:
        return 9.9


async def cpu_per_call(call: Callable[[], Awaitable[Any]], calls: int, rounds: int) -> list[float]:
    """CPU microseconds a call, one figure a round."""
    figures = []
    for _ in range(rounds):
        started = time.process_time()
        for _ in range(calls):
            await call()
        figures.append((time.process_time() - started) / calls * 1e6)
    return figures


async def direct(quick: bool) -> list[Answer]:
    authority = Authority.create("bench")
    rules = rules_of([SERVICE])
    validation.warm(method.input_type for method in service_descriptor(SERVICE).methods)
    # Counted like anybody's calls, only that a benchmark asks more often than a person may.
    limiter = Limiter({"user": replace(DEFAULTS["user"], rate=1e6, burst=1_000_000)})
    interceptor = Interceptor(rules, TokenVerifier(Tokens()), limiter=limiter)
    certificates = {
        name: authority.issue(name, spiffe_id).cert
        for name, spiffe_id in (("service", identity.service_id("ipam")), ("tool", identity.client_id("tool")))
    }
    trace = ("x-request-id", "0198c1d2-0000-7000-8000-000000000001")
    by_service = Context(certificates["service"], trace)
    by_person = Context(certificates["tool"], trace, ("authorization", "Bearer " + "t" * 600))
    request = token_pb2.CheckTokenRequest(secret="s" * 32).SerializeToString()
    api = Api()
    handlers: dict[str, Any] = {
        METHOD: grpc.unary_unary_rpc_method_handler(
            api.CheckToken, token_pb2.CheckTokenRequest.FromString, token_pb2.CheckTokenResponse.SerializeToString
        ),
        PERSONAL: grpc.unary_unary_rpc_method_handler(
            api.WhoAmI, token_pb2.WhoAmIRequest.FromString, token_pb2.WhoAmIResponse.SerializeToString
        ),
    }
    calls, rounds = (200, 10) if quick else (250, 120)
    answers = []
    for question, method, raw, context in (
        ("interceptor over a bare handler, called by a service", METHOD, request, by_service),
        ("interceptor over a bare handler, called with a bearer token", PERSONAL, b"", by_person),
    ):
        handler = handlers[method]
        wrapped = interceptor.wrap(method, handler).unary_unary
        parse, serialize, behave = handler.request_deserializer, handler.response_serializer, handler.unary_unary

        async def bare(parse: Any = parse, serialize: Any = serialize, behave: Any = behave, raw: bytes = raw) -> bytes:
            return cast("bytes", serialize(await behave(parse(raw), None)))

        async def whole(wrapped: Any = wrapped, raw: bytes = raw, context: Context = context) -> bytes:
            return cast("bytes", await wrapped(raw, context))

        await cpu_per_call(whole, 200, 1)
        base = min(await cpu_per_call(bare, calls, rounds))
        extra = [figure - base for figure in await cpu_per_call(whole, calls, rounds)]
        note = f"CPU in the calmest of {rounds} rounds of {calls} calls; bare {base:.1f} µs; percentiles over rounds"
        answers.append(
            Answer(question, min(extra), "µs", "<= 60", percentile(extra, 0.5), percentile(extra, 0.99), note)
        )
    return answers


async def audited(quick: bool) -> list[Answer]:
    """What a call costs that changes something, with and without the audit log, AT_ONCE at a time."""
    rules = rules_of([SERVICE])
    limiter = Limiter({"user": replace(DEFAULTS["user"], rate=1e6, burst=1_000_000, calls=AT_ONCE)})
    certificate = Authority.create("bench").issue("tool", identity.client_id("tool")).cert
    context = Context(certificate, ("authorization", "Bearer " + "t" * 600))
    raw = token_pb2.RevokeTokenRequest(id="0198c1d2-0000-7000-8000-000000000001").SerializeToString()

    async def revoke(request: Any, context: Any) -> Empty:
        return Empty()

    handler = grpc.unary_unary_rpc_method_handler(
        revoke, token_pb2.RevokeTokenRequest.FromString, Empty.SerializeToString
    )
    calls, rounds = (20, 3) if quick else (40, 40)
    figures: dict[str, list[float]] = {"bare": [], "plain": [], "audited": []}
    with tempfile.TemporaryDirectory(prefix="metalplane-bench-") as name:
        os.chmod(name, 0o711)
        server = Postgres(Path(name) / "postgres", durable=True)
        await server.start()
        await migrate(server.url, "bench", "")
        db = await Database.open(server.url, "bench")
        writer, stopping = AuditWriter(LocalLog(db), "bench"), asyncio.Event()
        writing = asyncio.create_task(writer.run(stopping))
        tokens = TokenVerifier(Tokens())
        wrapped: dict[str, Any] = {
            "plain": Interceptor(rules, tokens, limiter=limiter).wrap(AUDITED, handler).unary_unary,
            "audited": Interceptor(rules, tokens, limiter=limiter, audit=writer).wrap(AUDITED, handler).unary_unary,
            "bare": lambda raw, _: bare(handler, raw),
        }
        for _ in range(rounds):
            for which, call in wrapped.items():

                async def together(call: Any = call) -> None:
                    # Each in a context of its own, as gRPC has it.
                    await asyncio.gather(*(asyncio.create_task(call(raw, context)) for _ in range(AT_ONCE)))

                figures[which] += [figure / AT_ONCE for figure in await cpu_per_call(together, calls, 1)]
        stopping.set()
        await writing
        await db.close()
        await server.stop()
    base = min(figures["bare"])
    note = f"{AT_ONCE} calls at once, CPU without Postgres' own, in the calmest of {rounds} rounds; bare {base:.1f} µs"
    answers = []
    for which, question in (
        ("plain", f"interceptor over a bare handler, {AT_ONCE} calls at once"),
        ("audited", f"the same with the audit log of calls that change something, {AT_ONCE} at once"),
    ):
        extra = [figure - base for figure in figures[which]]
        answers.append(Answer(question, min(extra), "µs", "", percentile(extra, 0.5), percentile(extra, 0.99), note))
    return answers


async def bare(handler: Any, raw: bytes) -> bytes:
    """The handler with nothing around it."""
    return cast(
        "bytes", handler.response_serializer(await handler.unary_unary(handler.request_deserializer(raw), None))
    )


async def over_the_wire(quick: bool) -> list[Answer]:
    """The same difference over mTLS, client and server in one process: rounds alternate between the two servers."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        authority = Authority.create("bench")
        authority.save(directory)
        cert, key = authority.issue(
            "tenancy", identity.service_id("ipam"), ["tenancy.metalplane"], ttl=timedelta(hours=1)
        ).save(directory, "tenancy")
        files = Identity(directory / "ca.crt", cert, key)
        api: Any = Api()
        ours = Server([Servicer(token_pb2_grpc.add_TokenServiceServicer_to_server, api, SERVICE)])
        await ours.start("127.0.0.1:0", files)
        bare = grpc.aio.server()
        token_pb2_grpc.add_TokenServiceServicer_to_server(api, bare)
        port = bare.add_secure_port("127.0.0.1:0", files.server_credentials())
        await bare.start()
        stubs = {}
        peers = []
        for which, address in (("bare", f"127.0.0.1:{port}"), ("ours", ours.address)):
            peers.append(Peers({"tenancy": address}, files))
            stubs[which] = token_pb2_grpc.TokenServiceStub(peers[-1].channel("tenancy"))
        request = token_pb2.CheckTokenRequest(secret="s" * 32)
        calls, rounds = (50, 3) if quick else (300, 30)
        figures: dict[str, list[float]] = {"bare": [], "ours": []}
        for _ in range(rounds):
            for which, stub in stubs.items():
                await stub.CheckToken(request, timeout=10)

                async def call(stub: Any = stub) -> Any:
                    return await stub.CheckToken(request, timeout=10)

                figures[which] += await cpu_per_call(call, calls, 1)
        for each in peers:
            await each.close()
        await ours.stop(0)
        await bare.stop(0)
    base = min(figures["bare"])
    extra = [figure - base for figure in figures["ours"]]
    note = f"client and server in one process; a bare call takes {base:.0f} µs of CPU there; calmest rounds"
    question = "interceptor over a bare server, over mTLS"
    return [Answer(question, min(extra), "µs", "", percentile(extra, 0.5), percentile(extra, 0.99), note)]


async def measure(quick: bool) -> list[Answer]:
    return [*await direct(quick), *await audited(quick), *await over_the_wire(quick)]


def main() -> int:
    options = arguments(__doc__.partition("\n")[0])
    # The log lines are written like any service's, to a file that swallows them.
    with open(os.devnull, "w", encoding="utf-8", buffering=1) as swallow:
        logs.configure("info", json=True, stream=swallow)
        return finish(asyncio.run(measure(options.quick)), options)


if __name__ == "__main__":
    sys.exit(main())
