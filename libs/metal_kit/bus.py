"""The connection to NATS, and the one JetStream stream that carries every event.

It reconnects for ever; while NATS is away, publishing raises `BusUnavailable` and the outbox keeps what is to be sent.
A permission violation is a configuration error that no retry repairs, and NATS reports it only on the side: it is kept
in `fatal`, which ends the process. Services do not publish here themselves: `metal_kit.outbox` does, after the commit.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import BadRequestError, NoStreamResponseError, NotFoundError

from metal_kit.guard import refuse_in_transaction
from metal_kit.logs import get_logger
from metal_kit.tls import Identity

log = get_logger(__name__)

STREAM = "METALPLANE"
SUBJECTS = "metalplane.>"
MAX_AGE = timedelta(days=7)
MAX_BYTES = 2 << 30
# Longer than any outage in which a relay still holds an unacknowledged batch in its hands; the server keeps the ids.
DUPLICATE_WINDOW = timedelta(minutes=5)
PUBLISH_SECONDS = 5.0
_RECONNECT_SECONDS = 0.5
_CONNECT_SECONDS = 5.0
_COMPLAIN_EVERY_SECONDS = 30.0
_CLOSE_SECONDS = 5.0


class BusUnavailable(Exception):
    """NATS did not take the message; whether it was stored is unknown. Publish again with the same id."""


class _Client(Client):
    """NATS's client with the certificate that there is when it connects, and not the one that it began with."""

    def __init__(self, identity: Identity | None) -> None:
        super().__init__()
        self._identity = identity
        self._context: tuple[tuple[int, ...], ssl.SSLContext] | None = None

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """Asked for at each attempt to connect."""
        if self._identity is None:
            return super().ssl_context
        try:
            stamp = self._identity.stamp()
            if self._context is None or self._context[0] != stamp:
                self._context = (stamp, self._identity.client_context())
        except (OSError, ValueError) as error:
            log.warning("bus.certificate_unusable", error=str(error))
            if self._context is None:
                return super().ssl_context  # what `connect` was given
        return self._context[1]


class Bus:
    """One connection a process. `await Bus.open(...)`, and `close()` it."""

    def __init__(self, url: str, name: str, *, tls: Identity | None = None, tls_hostname: str = "") -> None:
        self._url = url
        self._where = url.rpartition("@")[2] or url
        self._name = name
        self._options: dict[str, Any] = {
            "connect_timeout": _CONNECT_SECONDS,
            "reconnect_time_wait": _RECONNECT_SECONDS,
        }
        if tls is not None:
            self._options["tls"] = tls.client_context()
        if tls_hostname:
            self._options["tls_hostname"] = tls_hostname
        self._client = _Client(tls)
        self._jetstream: JetStreamContext | None = None
        self._task: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._closing = False
        self._stream_checked = False
        self._ensuring = asyncio.Lock()
        self._complained_at = float("-inf")
        self.fatal: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Gets the text of a failure that no retry repairs."""

    @classmethod
    async def open(
        cls,
        url: str,
        name: str,
        *,
        tls: Identity | None = None,
        tls_hostname: str = "",
        patience: timedelta = timedelta(seconds=2),
    ) -> Bus:
        """Begin to connect to `url` and wait for it, at most `patience`; it goes on trying afterwards.

        A service that starts while NATS is away is worth more than one that does not start: requests are answered and
        events queue up. `name` identifies the connection on the server; `tls_hostname` is the name that the server's
        certificate must bear when it is not the one in `url`.
        """
        bus = cls(url, name, tls=tls, tls_hostname=tls_hostname)
        bus._task = asyncio.create_task(bus._connect(), name=f"nats {name}")
        if not await bus.wait_connected(patience):
            log.warning("bus.unreachable", url=bus._where, hint="events wait in the outbox until NATS is back")
        return bus

    @property
    def connected(self) -> bool:
        """Whether NATS can be talked to right now."""
        return self._client.is_connected

    @property
    def jetstream(self) -> JetStreamContext:
        """JetStream of this connection, for consumers."""
        if self._jetstream is None:
            self._jetstream = self._client.jetstream(timeout=PUBLISH_SECONDS)
        return self._jetstream

    async def wait_connected(self, limit: timedelta) -> bool:
        """Wait until connected, at most `limit`."""
        try:
            async with asyncio.timeout(limit.total_seconds()):
                await self._connected.wait()
        except TimeoutError:
            return False
        return self.connected

    async def publish(self, subject: str, data: bytes, *, message_id: str) -> None:
        """Publish to the stream and wait until it is stored, at most PUBLISH_SECONDS.

        Raises:
            BusUnavailable: not connected, no answer, or the stream is missing.
            RuntimeError: a transaction is open.
        """
        refuse_in_transaction(f"nats {subject}")
        if not self.connected:
            raise BusUnavailable(f"not connected to NATS at {self._where}")
        headers = {"Nats-Msg-Id": message_id}
        try:
            await self.ensure_stream()
            await self.jetstream.publish(subject, data, timeout=PUBLISH_SECONDS, stream=STREAM, headers=headers)
        except NoStreamResponseError as error:
            self._stream_checked = False  # somebody removed it; the next attempt makes it anew
            raise BusUnavailable("the stream is missing") from error
        except (NatsError, OSError, TimeoutError) as error:
            raise BusUnavailable(str(error) or type(error).__name__) from error

    async def listen(self, subject: str, handler: Callable[[bytes], Awaitable[None]]) -> None:
        """Hand every message of `subject` from now on to `handler`, for hints: what comes while this process is away,
        or while a thousand wait, is lost. The subscription lasts as long as the connection object.

        Raises:
            BusUnavailable: not connected.
        """
        if not self.connected:
            raise BusUnavailable(f"not connected to NATS at {self._where}")

        async def pass_on(message: Msg) -> None:
            await handler(message.data)

        try:
            await self._client.subscribe(subject, cb=pass_on, pending_msgs_limit=1000)
        except (NatsError, OSError, TimeoutError) as error:
            raise BusUnavailable(str(error) or type(error).__name__) from error

    async def ensure_stream(self) -> None:
        """Create the stream if there is none; the settings of one that exists are left to its administrator.

        Raises BusUnavailable.
        """
        if self._stream_checked:
            return
        # One after the other, so that those who wait here go on in the order in which they came.
        async with self._ensuring:
            if not self._stream_checked:
                try:
                    await self._create_stream()
                except (NatsError, OSError, TimeoutError) as error:
                    raise BusUnavailable(str(error) or type(error).__name__) from error
                self._stream_checked = True

    async def _create_stream(self) -> None:
        manager = self.jetstream
        with suppress(NotFoundError):
            await manager.stream_info(STREAM)
            return
        config = StreamConfig(
            name=STREAM,
            subjects=[SUBJECTS],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            discard=DiscardPolicy.OLD,
            max_age=MAX_AGE.total_seconds(),
            max_bytes=MAX_BYTES,
            duplicate_window=DUPLICATE_WINDOW.total_seconds(),
        )
        with suppress(BadRequestError):  # "name already in use": another replica was faster
            await manager.add_stream(config)

    def forget_stream(self) -> None:
        """Look for the stream again before the next use; for consumers that find it gone."""
        self._stream_checked = False

    async def close(self) -> None:
        """Close the connection; what was published and not acknowledged counts as not published."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        with suppress(NatsError, OSError, TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._client.close()
        if not self.fatal.done():
            self.fatal.cancel()

    async def _connect(self) -> None:
        await self._client.connect(
            self._url,
            name=self._name,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            ping_interval=10,
            max_outstanding_pings=2,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            **self._options,
        )
        await self._on_reconnected()

    async def _on_reconnected(self) -> None:
        # A server that came back may have lost its disk: look at the stream again.
        self._stream_checked = False
        self._connected.set()
        log.info("bus.connected", url=self._where)

    async def _on_disconnected(self) -> None:
        self._connected.clear()
        if self._closing:
            return
        log.warning("bus.disconnected", url=self._where)

    async def _on_error(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        lower = text.lower()
        if "permissions violation" in lower or "authorization violation" in lower:
            log.error("bus.refused", url=self._where, error=text, hint="correct the permissions or the credentials")
            if not self.fatal.done():
                self.fatal.set_result(f"NATS at {self._where} refuses us: {text}")
            return
        now = asyncio.get_running_loop().time()
        if now - self._complained_at >= _COMPLAIN_EVERY_SECONDS:
            self._complained_at = now
            log.warning("bus.error", url=self._where, error=text)


__all__ = ["STREAM", "SUBJECTS", "Bus", "BusUnavailable"]
