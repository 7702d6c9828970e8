"""The one server interceptor: identity, access, request id, deadline, validation, metrics, one log line, errors.

One and not seven, because each interceptor of grpc costs on every call, and because their order is part of what must be
right: who asks is settled before anything about the request is said. The wrapped handler of a method is built once.
Messages are parsed and serialised here rather than by grpc, whose own answer to garbage is the text of an exception.

Stream handlers take requests from the iterator that they are given. `context.read()` would go around the checks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from metalplane.common.v1.access_pb2 import ScopeKind

from metal_kit import request as ambient
from metal_kit import validation
from metal_kit.access import Rule, decide, settled
from metal_kit.attendance import attended
from metal_kit.audit.trace import MethodAudit
from metal_kit.audit.writer import AuditWriter
from metal_kit.call import Call, Context
from metal_kit.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from metal_kit.identity import ANONYMOUS, Caller
from metal_kit.ids import uuid7
from metal_kit.limits import Limiter, kind_of
from metal_kit.logs import get_logger
from metal_kit.metrics import MethodMetrics
from metal_kit.origin import FORWARDED_FOR, neighbourhood, origin
from metal_kit.settings import MAX_MESSAGE_BYTES
from metal_kit.tls import PeerCertificates
from metal_kit.tokens import TokenVerifier, bearer

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]

# Health and reflection answer everyone who gets through the handshake, and are not worth a log line each.
_OPEN = ("/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/")
# A unary call without a deadline gets this one: a handler that nobody waits for must not run for ever.
LONGEST_UNARY = 60.0
# Time that a stream has to name its scope.
FIRST_MESSAGE = 10.0

log = get_logger("rpc")


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps every method of the plane's services. `rules` comes from `metal_kit.access.rules_of`; without `audit`
    nothing is recorded, which is for servers that keep nothing."""

    def __init__(
        self,
        rules: Mapping[str, Rule],
        tokens: TokenVerifier | None,
        audit: AuditWriter | None = None,
        *,
        limiter: Limiter | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        certificates: PeerCertificates | None = None,
    ) -> None:
        self._rules = rules
        self._audit = audit
        self._around = _Around(
            tokens,
            PeerCertificates() if certificates is None else certificates,
            Limiter() if limiter is None else limiter,
            max_message_bytes,
        )
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The handler of a call, wrapped; an unknown method stays unknown (UNIMPLEMENTED)."""
        method: str = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith(_OPEN):
            return handler
        wrapped = self._wrapped[method] = self.wrap(method, handler)
        return wrapped

    def wrap(self, method: str, handler: Handler) -> Handler:
        """The handler with everything around it. Raises KeyError for a method without an access rule."""
        rule = self._rules[method]
        audit = MethodAudit(method, rule, self._audit) if self._audit is not None and rule.audited else None
        call = _Method(method, handler, rule, self._around, audit)
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(call.stream_stream)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(call.stream_unary)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(call.unary_stream)
        return grpc.unary_unary_rpc_method_handler(call.unary_unary)


@dataclass(frozen=True)
class _Around:
    """What all methods of a server share."""

    tokens: TokenVerifier | None
    certificates: PeerCertificates
    limiter: Limiter
    max_message_bytes: int


class _Method:
    """What surrounds the handler of one method; one instance a method, one `Call` a call."""

    def __init__(
        self, name: str, handler: Handler, rule: Rule, around: _Around, audit: MethodAudit | None = None
    ) -> None:
        self._name = name.removeprefix("/metalplane.")
        self._rule = rule
        self._handler_decides = rule.scope == ScopeKind.SCOPE_KIND_OBJECT
        self._tokens = around.tokens
        self._certificates = around.certificates
        self._limiter = around.limiter
        self._max_bytes = around.max_message_bytes
        self._audit = audit
        self._streams = bool(handler.request_streaming or handler.response_streaming)
        self._parse: Callable[[bytes], Any] = handler.request_deserializer or bytes
        self._serialize: Callable[[Any], bytes] = handler.response_serializer or bytes
        self._behavior: Any = (
            handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        )
        self._metrics = MethodMetrics(self._name)
        self._log = log.bind(method=self._name)

    # The four kinds of methods

    async def unary_unary(self, raw: bytes, context: Context) -> bytes:
        call = self._begin(context)
        try:
            request = await self._admit(call, raw, context)
            if not call.limited:
                async with asyncio.timeout(LONGEST_UNARY):
                    return self._answer(call, await self._behavior(request, context))
            return self._answer(call, await self._behavior(request, context))
        except BaseException as error:
            await call.fail(context, error)
            raise
        finally:
            call.end()

    async def unary_stream(self, raw: bytes, context: Context) -> AsyncIterator[bytes]:
        call = self._begin(context)
        try:
            request = await self._admit(call, raw, context)
            async with contextlib.aclosing(self._responses(call, request, context)) as responses:
                async for response in responses:
                    yield response
        except BaseException as error:
            await call.fail(context, error)
            raise
        finally:
            call.end()

    async def stream_unary(self, stream: AsyncIterator[bytes], context: Context) -> bytes:
        call = self._begin(context)
        try:
            requests = await self._admit_stream(call, stream, context)
            return self._answer(call, await self._behavior(requests, context))
        except BaseException as error:
            await call.fail(context, error)
            raise
        finally:
            call.end()

    async def stream_stream(self, stream: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        call = self._begin(context)
        try:
            requests = await self._admit_stream(call, stream, context)
            async with contextlib.aclosing(self._responses(call, requests, context)) as responses:
                async for response in responses:
                    yield response
        except BaseException as error:
            await call.fail(context, error)
            raise
        finally:
            call.end()

    async def _responses(self, call: Call, request: Any, context: Context) -> AsyncGenerator[bytes]:
        """Responses of the handler, an async generator, for as long as the caller may have them.

        Its `finally` blocks run before the call counts as ended.
        """
        async with contextlib.aclosing(self._behavior(request, context)) as responses:
            if call.bearer is None:
                async for response in responses:
                    await self._admit_still(call)
                    yield self._answer(call, response)
                return
            async with contextlib.aclosing(attended(responses, lambda: self._admit_still(call))) as allowed:
                async for response in allowed:
                    yield self._answer(call, response)

    def _answer(self, call: Call, response: Any) -> bytes:
        """The response for the wire; none of a handler that never asked whether the caller may have it."""
        if self._handler_decides and not settled(self._rule, call.who, call.settled):
            raise RuntimeError(f"{self._name} answered {call.caller} without asking for his role where the object is")
        if call.trace is not None:
            call.trace.answered(response)
        raw = self._serialize(response)
        if len(raw) > self._max_bytes:
            # gRPC's own words for it would name neither the field to change nor the reason.
            raise ResourceExhausted(
                "ANSWER_TOO_LARGE",
                f"the answer has {len(raw)} bytes and the limit is {self._max_bytes}; ask for less at once (page_size)",
                metadata={"limit": str(self._max_bytes)},
            )
        return raw

    # Before the handler

    def _begin(self, context: Context) -> Call:
        call = Call(self._name, self._metrics, self._log, stream=self._streams)
        if self._audit is not None:
            call.trace = self._audit.open(origin(context.peer(), ANONYMOUS))
        return call

    async def _record(self, call: Call) -> None:
        """The last step before the handler: what it will do has its trace."""
        if call.trace is not None:
            await call.trace.begin(call)

    async def _admit(self, call: Call, raw: bytes, context: Context) -> Any:
        caller = await self._identify(call, context)
        request = self._read(raw)
        await self._decide(call, caller, request)
        validation.check(request)
        await self._record(call)
        return request

    async def _admit_stream(self, call: Call, stream: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        caller = await self._identify(call, context)
        if not self._rule.needs_request:
            await self._decide(call, caller, None)
            await self._record(call)
            return self._requests(stream)
        # The first message names the scope; a stream that ends without one has asked for nothing.
        try:
            async with asyncio.timeout(FIRST_MESSAGE):
                first = self._read(await anext(stream))
        except StopAsyncIteration:
            raise InvalidArgument("STREAM_EMPTY", "the stream ended without a message") from None
        await self._decide(call, caller, first)
        validation.check(first)
        await self._record(call)
        return self._requests(stream, first)

    async def _decide(self, call: Call, caller: Caller, request: Any) -> None:
        """Let the call in, or refuse it: by what is remembered of a token only after asking again.

        Whoever has just made a project, or has just become a member, would be told for seconds that it does not exist.
        """
        if call.trace is not None and request is not None:
            call.trace.asked(request)
        try:
            decide(self._rule, caller, request)
        except (NotFound, PermissionDenied):
            if call.remembered is None:
                raise
            tokens, secret = call.remembered
            caller = await tokens.ask(secret)
            if call.bearer is not None:
                call.bearer = (tokens, secret, caller)
            call.identified(caller)
            decide(self._rule, caller, request)

    async def _admit_still(self, call: Call) -> None:
        """Before each answer of a stream: what was decided when it began must not hold for as long as it is open.

        Handlers filter by the roles that the caller had then. When some of them are gone the stream ends; who watches
        goes on from his position with the roles that are left, which is what clients do after UNAVAILABLE.
        """
        call.certificate.use()
        if call.bearer is None:
            return
        tokens, secret, before = call.bearer
        now = await tokens.verify(secret)
        if now is not before and not now.covers(before):
            raise Unavailable("ROLES_CHANGED", "you have lost roles since this stream began; go on in a new one")

    async def _requests(self, stream: AsyncIterator[bytes], first: Any = None) -> AsyncIterator[Any]:
        scope = ""
        if first is not None:
            scope = self._rule.scope_of(first)
            yield first
        async for raw in stream:
            request = self._read(raw)
            if first is not None and self._rule.scope_of(request) not in {"", scope}:
                raise PermissionDenied(
                    "SCOPE_CHANGED", "a stream keeps the scope of its first message", field=self._rule.scope_field
                )
            validation.check(request)
            yield request

    def _read(self, raw: bytes) -> Any:
        try:
            return self._parse(raw)
        except Exception as error:
            raise InvalidArgument("MALFORMED_MESSAGE", "the request is not a message of this method") from error

    async def _identify(self, call: Call, context: Context) -> Caller:
        """Settle request id, deadline and caller, and set them for the handler's context."""
        authorization = request_id = traceparent = forwarded = ""
        for key, value in context.invocation_metadata() or ():
            if key == ambient.REQUEST_ID:
                request_id = str(value)
            elif key == "authorization":
                authorization = str(value)
            elif key == ambient.TRACEPARENT:
                traceparent = str(value)
            elif key == FORWARDED_FOR:
                forwarded = str(value)
        if not request_id or not ambient.acceptable_request_id(request_id):
            request_id = uuid7()
        call.request_id = request_id
        ambient.request_id.set(request_id)
        if traceparent and ambient.acceptable_traceparent(traceparent):
            ambient.traceparent.set(traceparent)
        remaining = context.time_remaining()
        if remaining is not None:
            if remaining <= 0:
                raise DeadlineExceeded("DEADLINE_EXCEEDED", "the deadline had passed when the call arrived")
            ambient.deadline.set(call.started + remaining)
            call.limited = True
        try:
            caller = await self._credentials(call, context, authorization, forwarded)
        except Unauthenticated:
            # Each refusal leaves a line and, of an audited method, an entry: those are bounded, too.
            if call.account is None:
                self._enter_as_stranger(call, context, forwarded)
            raise
        call.identified(caller)
        return caller

    async def _credentials(self, call: Call, context: Context, authorization: str, forwarded: str) -> Caller:
        """Whom certificate and token name, counted for him or, as long as that is open, for where he calls from."""
        call.certificate = self._certificates.shown(context.auth_context())
        connection = call.certificate.use()
        call.caller = connection.label
        if call.trace is not None and forwarded:
            call.trace.peer = origin(context.peer(), connection, forwarded)
        if authorization:
            tokens, secret = self._token_of(connection, authorization)
            known = tokens.known(secret)
            if known is not None:
                call.remembered = (tokens, secret)
            last = known or tokens.last_known(secret)
            if last is not None:
                call.enter(self._limiter.account(last.label, kind_of(last.kind)))
            caller = known or await self._ask(call, context, forwarded, tokens, secret)
            call.bearer = (tokens, secret, caller)
        else:
            caller = connection
            if caller.authenticated:
                call.enter(self._limiter.account(caller.label, kind_of(caller.kind)))
            else:
                self._enter_as_stranger(call, context, forwarded)
        return caller

    def _enter_as_stranger(self, call: Call, context: Context, forwarded: str) -> None:
        """Count a call of which nothing is known but where it comes from."""
        where = neighbourhood(origin(context.peer(), call.certificate.caller, forwarded))
        call.enter(self._limiter.account(f"address:{where}", "stranger"))

    async def _ask(self, call: Call, context: Context, forwarded: str, tokens: TokenVerifier, secret: str) -> Caller:
        """Whom a token speaks for that is not remembered, or no longer.

        A token that has never held here is its sender's guess as long as tenancy has not said otherwise: it counts for
        his address, so that guessing is bounded, and what is asked of tenancy for everybody with it.
        """
        if call.account is not None:
            return await tokens.ask(secret)
        self._enter_as_stranger(call, context, forwarded)
        caller = await tokens.ask(secret, stranger=True)
        call.vouched_for(self._limiter.account(caller.label, kind_of(caller.kind)))
        return caller

    def _token_of(self, connection: Caller, authorization: str) -> tuple[TokenVerifier, str]:
        """The token and who verifies it. A service or an agent that also shows a token is refused: two identities in
        one call make it unclear whose rights count."""
        if connection.authenticated:
            raise Unauthenticated("TWO_IDENTITIES", f"{connection.label} speaks by its certificate; send no token")
        if self._tokens is None:
            raise Unauthenticated("TOKENS_NOT_ACCEPTED", "this service does not accept bearer tokens")
        return self._tokens, bearer(authorization)
