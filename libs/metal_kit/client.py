"""Calls to other services: one lazily connected mTLS channel a peer, Problems instead of AioRpcErrors.

Each call carries the request id and the trace of the request that caused it, has a deadline (10 s, or what is left of
the causing request's, whichever ends first), and is refused while a database transaction is open. Nothing is repeated
here: whether a call may be repeated is known to who calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from typing import Any, Literal, TypeVar, cast

import grpc

from metal_kit import request as ambient
from metal_kit.errors import DeadlineExceeded, FailedPrecondition, Problem, Unavailable, problem_from_rpc
from metal_kit.guard import refuse_in_transaction
from metal_kit.tls import Identity

DEFAULT_DEADLINE = 10.0
# gRPC's own default.
MAX_MESSAGE_BYTES = 4 << 20
# Names the service that a call is for where its path does not; the edge goes by it.
SERVICE = "x-metalplane-service"
Stub = TypeVar("Stub")
Metadata = tuple[tuple[str, str], ...]
Kind = Literal["unary_unary", "unary_stream", "stream_unary", "stream_stream"]

_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    # Despite its name the time that one attempt may take, handshake included (two round trips, and a busy peer's time);
    # an attempt that fails earlier is repeated after the backoff above.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Peers are named by settings; a proxy from the environment must not get between them.
    ("grpc.enable_http_proxy", 0),
)


class Peers:
    """The services that this process calls, by name.

    `endpoints` maps a service's name to `host:port`. The server's certificate must carry `<name>.metalplane`, wherever
    it runs, or what `server_names` has for the service: tools of people that go through the edge set that, and
    `token` (a function, asked on each call), which adds a bearer token. Services set neither.
    """

    def __init__(
        self,
        endpoints: Mapping[str, str],
        identity: Identity | None,
        *,
        token: Callable[[], str] | None = None,
        server_names: Mapping[str, str] | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._endpoints = dict(endpoints)
        self._server_names = dict(server_names or {})
        self._identity = identity
        self._token = token
        self._options = (*_OPTIONS, ("grpc.max_receive_message_length", max_message_bytes))
        self._channels: dict[str, tuple[grpc.aio.Channel, tuple[int, ...]]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def has(self, service: str) -> bool:
        """Whether the settings name an endpoint for the service."""
        return service in self._endpoints

    def set_endpoint(self, service: str, endpoint: str) -> None:
        """Name, or rename, where a service is; stubs that exist follow on their next call."""
        if self._endpoints.get(service) != endpoint:
            self._endpoints[service] = endpoint
            self._retire(service)

    def stub(self, stub_class: Callable[[grpc.aio.Channel], Stub], service: str) -> Stub:
        """A stub of the service. It connects on its first call; a peer that is missing fails that call alone."""
        # The generated stub only asks its channel for multi-callables, which is what _Channel has.
        return stub_class(cast("grpc.aio.Channel", _Channel(self, service)))

    async def close(self) -> None:
        """Close every channel; running calls are cancelled."""
        channels, self._channels = self._channels, {}
        for channel, _ in channels.values():
            await channel.close()
        if self._closing:
            await asyncio.gather(*self._closing)

    def channel(self, service: str) -> grpc.aio.Channel:
        """The channel of a service; a new one after its endpoint or our certificate has changed.

        Raises FailedPrecondition when the settings name no endpoint, or there is no certificate to connect with. A
        certificate that is being replaced right now changes nothing until it is whole.
        """
        known = self._channels.get(service)
        endpoint = self._endpoints.get(service)
        if endpoint is None or self._identity is None:
            raise FailedPrecondition("PEER_NOT_CONFIGURED", f"no endpoint or certificate is configured for {service}")
        try:
            stamp = self._identity.stamp()
            if known is not None and known[1] == stamp:
                return known[0]
            credentials = self._identity.channel_credentials()
        except (OSError, ValueError) as error:
            if known is not None:
                return known[0]  # in the middle of a renewal; what is there still holds
            raise FailedPrecondition("CERTIFICATE_UNUSABLE", "our own certificate cannot be used") from error
        self._retire(service)
        name = self._server_names.get(service, f"{service}.metalplane")
        channel = grpc.aio.secure_channel(
            endpoint,
            credentials,
            options=(*self._options, ("grpc.ssl_target_name_override", name)),
        )
        self._channels[service] = (channel, stamp)
        return channel

    def metadata(self, more: Any, service: str) -> Metadata:
        """What goes with each call: request id, trace, token, and what the caller of the stub adds.

        Behind the edge the path leads to the service, except for contracts that all services serve: there it is named.
        """
        pairs: list[tuple[str, str]] = list(more or ())
        if service in self._server_names:
            pairs.append((SERVICE, service))
        request_id, traceparent = ambient.request_id.get(), ambient.traceparent.get()
        if request_id:
            pairs.append((ambient.REQUEST_ID, request_id))
        if traceparent:
            pairs.append((ambient.TRACEPARENT, traceparent))
        if self._token is not None and (secret := self._token()):
            pairs.append(("authorization", f"Bearer {secret}"))
        return tuple(pairs)

    def _retire(self, service: str) -> None:
        """Let the old channel's calls finish, then close it."""
        known = self._channels.pop(service, None)
        if known is not None:
            task = asyncio.get_running_loop().create_task(known[0].close(grace=DEFAULT_DEADLINE))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


class _Channel:
    """What a generated stub needs of a channel: the four makers of multi-callables."""

    def __init__(self, peers: Peers, service: str) -> None:
        self._peers, self._service = peers, service

    def unary_unary(self, method: str, serialize: Any = None, parse: Any = None, **rest: Any) -> Any:
        return self._callable("unary_unary", method, serialize, parse, rest)

    def unary_stream(self, method: str, serialize: Any = None, parse: Any = None, **rest: Any) -> Any:
        return self._callable("unary_stream", method, serialize, parse, rest)

    def stream_unary(self, method: str, serialize: Any = None, parse: Any = None, **rest: Any) -> Any:
        return self._callable("stream_unary", method, serialize, parse, rest)

    def stream_stream(self, method: str, serialize: Any = None, parse: Any = None, **rest: Any) -> Any:
        return self._callable("stream_stream", method, serialize, parse, rest)

    def _callable(self, kind: Kind, method: str, serialize: Any, parse: Any, rest: dict[str, Any]) -> Any:
        serialize = rest.get("request_serializer", serialize)
        parse = rest.get("response_deserializer", parse)

        def make(channel: grpc.aio.Channel) -> Any:
            return getattr(channel, kind)(method, serialize, parse)

        def start(request: Any = None, *, timeout: float | None = None, metadata: Any = None) -> Any:
            refuse_in_transaction(method)
            if kind == "unary_unary":
                return self._unary(method, make, request, timeout, metadata)
            call = make(self._peers.channel(self._service))
            return StreamCall(
                call(request, timeout=timeout, metadata=self._peers.metadata(metadata, self._service)), self._service
            )

        return start

    async def _unary(
        self, method: str, make: Callable[[grpc.aio.Channel], Any], request: Any, timeout: float | None, metadata: Any
    ) -> Any:
        limit = min(timeout if timeout is not None else DEFAULT_DEADLINE, ambient.remaining())
        if limit <= 0:
            raise DeadlineExceeded("DEADLINE_EXCEEDED", "no time is left to ask another service")
        call = make(self._peers.channel(self._service))
        try:
            return await call(request, timeout=limit, metadata=self._peers.metadata(metadata, self._service))
        except grpc.aio.AioRpcError as error:
            raise _problem(error, self._service) from error


class StreamCall:
    """A streaming call whose failures are Problems. It has no deadline unless it was given one; keepalive pings find a
    dead peer within half a minute. Leaving the iteration ends the call."""

    def __init__(self, call: Any, service: str) -> None:
        self._call, self._service = call, service

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            async for response in self._call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise _problem(error, self._service) from error
        finally:
            self._call.cancel()

    def __await__(self) -> Generator[Any, None, Any]:
        """The response of a method that streams requests only."""
        return self._guarded(self._call).__await__()

    async def read(self) -> Any:
        """The next response, or `grpc.aio.EOF` after the last."""
        return await self._guarded(self._call.read())

    async def write(self, request: Any) -> None:
        """Send one request."""
        await self._guarded(self._call.write(request))

    async def done_writing(self) -> None:
        """Tell the server that no more requests come."""
        await self._guarded(self._call.done_writing())

    def cancel(self) -> None:
        """End the call."""
        self._call.cancel()

    async def _guarded(self, operation: Awaitable[Any]) -> Any:
        try:
            return await operation
        except grpc.aio.AioRpcError as error:
            raise _problem(error, self._service) from error
        except asyncio.InvalidStateError as error:
            # grpc says this of a call that ended while one wrote to it; its status tells why.
            raise await self._ended() from error

    async def _ended(self) -> Problem:
        code, details = await self._call.code(), await self._call.details()
        if code is grpc.StatusCode.OK:
            return Unavailable("STREAM_ENDED", "the peer ended the stream")
        trailing = await self._call.trailing_metadata()
        initial = grpc.aio.Metadata()
        return _problem(grpc.aio.AioRpcError(code, initial, trailing, details=details), self._service)


def _problem(error: grpc.aio.AioRpcError, service: str) -> Problem:
    problem = problem_from_rpc(error)
    if problem.reason.startswith("TRANSPORT_"):
        problem.metadata.setdefault("peer", service)
    return problem
