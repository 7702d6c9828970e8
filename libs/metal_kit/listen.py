"""One connection that listens for NOTIFY, shared by everything in the service that waits for the database.

A notification is only a reason to look: it carries a topic and no data, several may arrive as one, and those sent while
the connection was down are lost. Whoever waits therefore also looks at intervals; after a reconnect everybody is woken.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import asyncpg

from metal_kit.logs import get_logger

log = get_logger(__name__)

_CONNECT_SECONDS = 10.0
_PROBE_EVERY_SECONDS = 15.0
_PROBE_SECONDS = 5.0
_BACKOFF_FIRST = 0.1
_BACKOFF_MOST = 5.0
# The last one is what asyncpg makes of a server that hangs up at a moment for which it has no name.
_LOST = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class Wakeup:
    """What one waiter waits on; set by a notification of its topic."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def wake(self) -> None:
        """Wake the waiter, or let its next wait return at once."""
        self._event.set()

    async def wait(self, seconds: float) -> bool:
        """Wait for a wake-up, at most `seconds`; True when there was one. Wake-ups since the last wait count."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._event.wait()
        except TimeoutError:
            return False
        finally:
            self._event.clear()
        return True


class Listener:
    """Keeps a connection to `url` that listens on `channel`; the payload of a notification is its topic."""

    def __init__(self, url: str, channel: str, *, server_settings: Mapping[str, str]) -> None:
        self._url = url
        self._channel = channel
        self._server_settings = dict(server_settings)
        self._waiters: dict[str, set[Wakeup]] = {}
        self._task: asyncio.Task[None] | None = None
        self._listening = False

    @property
    def listening(self) -> bool:
        """Whether notifications arrive right now."""
        return self._listening

    def start(self) -> None:
        """Begin to listen, in a task that `close` ends."""
        self._task = asyncio.create_task(self._run(), name=f"listen {self._channel}")

    async def close(self) -> None:
        """Stop listening; waiters are not woken any more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    @contextmanager
    def subscribe(self, *topics: str) -> Iterator[Wakeup]:
        """A Wakeup for notifications of any of `topics`, for the length of the block."""
        wakeup = Wakeup()
        for topic in topics:
            self._waiters.setdefault(topic, set()).add(wakeup)
        try:
            yield wakeup
        finally:
            for topic in topics:
                self._waiters[topic].discard(wakeup)

    def wake(self, topic: str) -> None:
        """Wake the waiters of a topic in this process."""
        for wakeup in self._waiters.get(topic, ()):
            wakeup.wake()

    async def _run(self) -> None:
        delay = _BACKOFF_FIRST
        while True:
            try:
                connection = await asyncpg.connect(
                    self._url, timeout=_CONNECT_SECONDS, server_settings=self._server_settings
                )
            except _LOST as error:
                log.warning("listener.unreachable", channel=self._channel, error=str(error), again_in_s=delay)
                await asyncio.sleep(delay * random.uniform(0.5, 1))
                delay = min(_BACKOFF_MOST, delay * 2)
                continue
            delay = _BACKOFF_FIRST
            try:
                await self._listen(connection)
            except _LOST as error:
                log.warning("listener.lost", channel=self._channel, error=str(error))
            finally:
                self._listening = False
                connection.terminate()
            await asyncio.sleep(_BACKOFF_FIRST)

    async def _listen(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        gone = asyncio.Event()
        connection.add_termination_listener(lambda _connection: gone.set())
        await connection.add_listener(self._channel, self._on_notification)
        self._listening = True
        for topic in self._waiters:
            self.wake(topic)
        while not gone.is_set():
            try:
                async with asyncio.timeout(_PROBE_EVERY_SECONDS):
                    await gone.wait()
            except TimeoutError:
                # A connection that a firewall forgot looks alive until somebody writes to it.
                await connection.execute("SELECT 1", timeout=_PROBE_SECONDS)
        log.warning("listener.lost", channel=self._channel, error="the server closed the connection")

    def _on_notification(self, _connection: Any, _pid: int, _channel: str, payload: object) -> None:
        self.wake(str(payload))


async def wake_at(stopping: asyncio.Event, *wakeups: Wakeup) -> None:
    """Wake the waiters when `stopping` is set, so that they notice; a task beside a loop that waits."""
    await stopping.wait()
    for wakeup in wakeups:
        wakeup.wake()
