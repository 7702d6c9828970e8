"""The gRPC server: mutual TLS, sane limits, health, reflection, and the one interceptor.

It starts serving only when every method has an access rule and every validation rule compiles. What is served is the
caller's; when it starts and stops is `metal_kit.runtime`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from metal_kit import validation
from metal_kit.access import rules_of, service_descriptor
from metal_kit.audit.writer import AuditWriter
from metal_kit.interceptor import Interceptor
from metal_kit.limits import DEFAULTS, Allowances, Limiter
from metal_kit.settings import MAX_MESSAGE_BYTES
from metal_kit.tls import Identity, PeerCertificates
from metal_kit.tokens import TokenVerifier

# A client that pings more often than this is told to go away; our own clients ping every 20 s.
_MIN_PING_INTERVAL_MS = 10_000
_KEEPALIVE_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 10_000
_HEALTH = "grpc.health.v1.Health"
_MAX_METADATA_BYTES = 16 * 1024


@dataclass(frozen=True)
class Servicer:
    """One gRPC service to serve: its generated `add_<Service>Servicer_to_server`, the implementation, its full name."""

    add: Callable[[Any, Any], None]
    impl: Any
    full_name: str


@dataclass(frozen=True)
class Limits:
    """What one server takes from its clients: bytes a message, calls at once on one connection, and what one caller
    may on all of his connections together."""

    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_concurrent_streams: int = 1000
    callers: Allowances = field(default_factory=lambda: DEFAULTS)


class Server:
    """A grpc.aio server with its health service. `address` is known after `start`."""

    def __init__(
        self,
        servicers: Sequence[Servicer],
        *,
        tokens: TokenVerifier | None = None,
        limits: Limits | None = None,
        audit: AuditWriter | None = None,
        certificates: PeerCertificates | None = None,
        share_port: bool = False,
    ) -> None:
        """`share_port`: other processes may listen on the same port (SO_REUSEPORT), and each gets a part of the
        connections; a connection stays with the one that has it."""
        names = [servicer.full_name for servicer in servicers]
        rules = rules_of(names)
        for name in names:
            validation.warm(method.input_type for method in service_descriptor(name).methods)
        self._names = names
        self._health = HealthServicer()
        limits = limits or Limits()
        interceptor = Interceptor(
            rules,
            tokens,
            audit,
            limiter=Limiter(limits.callers),
            max_message_bytes=limits.max_message_bytes,
            certificates=certificates,
        )
        self.grpc = grpc.aio.server(interceptors=[interceptor], options=_options(limits, share_port=share_port))
        for servicer in servicers:
            servicer.add(servicer.impl, self.grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)  # type: ignore[no-untyped-call]
        reflected = [*names, _HEALTH, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(reflected, self.grpc)  # type: ignore[no-untyped-call]
        self.address = ""

    async def start(self, listen: str, identity: Identity) -> str:
        """Listen on `host:port` and serve; answers the address with its real port. Not healthy until `healthy`.

        Raises OSError when the address cannot be had or a certificate file cannot be read.
        """
        try:
            port = self.grpc.add_secure_port(listen, identity.server_credentials())
        except RuntimeError as error:  # grpc's way of saying that binding failed
            raise OSError(f"cannot listen on {listen}: the address is in use or not ours") from error
        # It would count as healthy from its first moment on.
        await self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        await self.grpc.start()
        self.address = f"{listen.rpartition(':')[0]}:{port}"
        return self.address

    async def healthy(self) -> None:
        """Report SERVING for every service and for the server as a whole."""
        for name in ("", *self._names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def unhealthy(self) -> None:
        """Report NOT_SERVING, for good: load balancers send nothing new."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace: float) -> None:
        """Refuse new calls, give running ones `grace` seconds, then cancel them."""
        await self.grpc.stop(grace)


def _options(limits: Limits, *, share_port: bool) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_message_bytes),
        ("grpc.max_concurrent_streams", limits.max_concurrent_streams),
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
        # On purpose only: two processes that shared a port by accident would each get half of the calls.
        ("grpc.so_reuseport", int(share_port)),
    ]
