"""The stream to fabric: Hello, then states down and reports up, again and again for as long as the agent lives.

Losing the plane is normal: the stream is opened again with growing, jittered pauses, and nothing on the leaf changes
meanwhile. Whatever the plane says wrong ends the stream or is refused; it never empties the leaf.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any

import grpc
from metal_kit import logs
from metal_kit.backoff import Backoff, pause
from metal_kit.client import Peers, StreamCall
from metal_kit.errors import Problem, Unavailable
from metalplane.fabric.v1.agent_pb2 import ConnectRequest, ConnectResponse, DesiredState, Heartbeat, Hello
from metalplane.fabric.v1.agent_pb2_grpc import SwitchAgentServiceStub

from metal_core.following import Following
from metal_core.identity import IdentityError
from metal_core.reports import Reports
from metal_core.sonic import SonicUnavailable
from metal_core.wire import UnknownState, desired_of

# Seconds. The contract has each side say something every 5 s.
HEARTBEAT = 5.0
SILENCE = 20.0
_CALL_LIMIT = 10.0
# A stream that lived this long was a good one; after a shorter one the pauses go on growing.
_STABLE = 10.0
RECONNECT = Backoff(first=timedelta(milliseconds=500), most=timedelta(seconds=30), least=timedelta(milliseconds=100))
_log = logs.get_logger("metal_core.plane")


class PlaneStream:
    """Keeps one stream open. `hello` is asked for anew at each connection, since the leaf may have changed."""

    def __init__(
        self,
        peers: Peers,
        hello: Callable[[], Awaitable[Hello]],
        following: Following,
        reports: Reports,
        *,
        reconnect: Backoff = RECONNECT,
    ) -> None:
        self._peers, self._hello, self._following, self._reports = peers, hello, following, reports
        self._reconnect = reconnect
        self._answered_at: float | None = None

    async def run(self, stopping: asyncio.Event) -> None:
        """Connect and stay connected until `stopping` is set."""
        failures = 0
        while not stopping.is_set():
            self._answered_at = None
            told: timedelta | None = None
            try:
                await self._session(stopping)
            except Problem as problem:
                told = problem.retry_after
                _log.warning("plane.disconnected", reason=problem.reason, error=problem.message, attempt=failures)
            except (SonicUnavailable, IdentityError) as error:
                _log.warning("plane.not_ready", error=str(error), attempt=failures)
            except TimeoutError:
                _log.warning("plane.silent", attempt=failures)
            lasted = _now() - (self._answered_at if self._answered_at is not None else _now())
            failures = 0 if lasted >= _STABLE else failures + 1
            if not stopping.is_set():
                await pause(stopping, self._reconnect.delay(max(failures - 1, 0), told))

    async def _session(self, stopping: asyncio.Event) -> None:
        async with asyncio.timeout(_CALL_LIMIT):
            hello = await self._hello()
        call: StreamCall = self._peers.stub(SwitchAgentServiceStub, "fabric").Connect()  # type: ignore[assignment]
        try:
            await _say(call, ConnectRequest(hello=hello))
            self._reports.reconnected()
            await _first_of(self._read(call), self._write(call), _until(stopping))
        finally:
            call.cancel()

    async def _read(self, call: StreamCall) -> None:
        while True:
            async with asyncio.timeout(SILENCE):
                message = await call.read()
            if message is grpc.aio.EOF:
                raise Unavailable("STREAM_ENDED", "fabric ended the stream")
            if self._answered_at is None:
                self._answered_at = _now()
                _log.info("plane.connected")
            self._take(message)

    def _take(self, message: ConnectResponse) -> None:
        match message.WhichOneof("message"):
            case "desired_state":
                self._following.heard()
                self._want(message.desired_state)
            case "ack":
                self._following.heard(self._reports.acknowledged(message.ack.id))
            case _:
                # A heartbeat, or something of a newer contract that this version has no other use for.
                self._following.heard()

    def _want(self, state: DesiredState) -> None:
        try:
            desired = desired_of(state)
        except UnknownState as error:
            _log.error("state.not_understood", generation=state.generation, error=str(error))
            self._following.refuse(state.generation, state.hash, str(error))
            return
        self._following.want(desired)

    async def _write(self, call: StreamCall) -> None:
        while True:
            self._reports.wake.clear()
            due = self._reports.due()
            for request in due or [ConnectRequest(heartbeat=Heartbeat())]:
                await _say(call, request)
            try:
                async with asyncio.timeout(HEARTBEAT):
                    await self._reports.wake.wait()
            except TimeoutError:
                continue


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _say(call: StreamCall, request: ConnectRequest) -> None:
    async with asyncio.timeout(_CALL_LIMIT):
        await call.write(request)


async def _until(stopping: asyncio.Event) -> None:
    await stopping.wait()


async def _first_of(*work: Coroutine[Any, Any, None]) -> None:
    """Run all until the first ends, end the others, and raise what the first one raised."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
