"""How the commands talk to the running lab: a few questions and orders over HTTP on a Unix socket in its directory.

Only the owner of the state directory can connect. This is the lab's own door, not the plane's: what the plane can be
asked is asked over gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from metal_lab.fault_catalogue import UnknownFault

TIMEOUT = aiohttp.ClientTimeout(total=30)


class LabNotRunning(Exception):
    """Nothing answers on the lab's socket."""


class LabRefused(Exception):
    """The lab answers, and does not do what it was asked for; the text says why."""


class ControlServer:
    """Serves status, port look-ups, faults and stop."""

    def __init__(
        self,
        socket: Path,
        *,
        status: Callable[[], Mapping[str, Any]],
        port: Callable[[str, str], Awaitable[Mapping[str, Any]]],
        fault: Callable[[str, str, bool], Awaitable[str]],
        stop: asyncio.Event,
    ) -> None:
        self._socket = socket
        self._status = status
        self._port = port
        self._fault = fault
        self._stop = stop
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen."""
        app = web.Application()
        app.router.add_get("/status", self._get_status)
        app.router.add_get("/leaf/{leaf}/port/{port}", self._get_port)
        app.router.add_post("/fault", self._post_fault)
        app.router.add_post("/stop", self._post_stop)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        self._socket.unlink(missing_ok=True)
        await web.UnixSite(self._runner, str(self._socket)).start()
        self._socket.chmod(0o600)

    async def stop(self) -> None:
        """Listen no more."""
        if self._runner is not None:
            await self._runner.cleanup()
        self._socket.unlink(missing_ok=True)

    async def _get_status(self, request: web.Request) -> web.Response:
        return web.json_response(dict(self._status()))

    async def _get_port(self, request: web.Request) -> web.Response:
        found = await self._port(request.match_info["leaf"], request.match_info["port"])
        return web.json_response(dict(found))

    async def _post_fault(self, request: web.Request) -> web.Response:
        try:
            wish = await request.json()
            name, target, on = str(wish["name"]), str(wish["target"]), bool(wish["on"])
        except (ValueError, KeyError, TypeError):
            return web.json_response({"error": "a fault has a name, a target and on"}, status=400)
        try:
            return web.json_response({"text": await self._fault(name, target, on)})
        except UnknownFault as unknown:
            return web.json_response({"error": str(unknown)}, status=404)

    async def _post_stop(self, request: web.Request) -> web.Response:
        self._stop.set()
        return web.json_response({})


async def ask(socket: Path, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Ask the running lab. Raises LabNotRunning when nobody answers, LabRefused when the answer is no."""
    try:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket)), timeout=TIMEOUT) as session:
            call = session.get(f"http://lab{path}") if body is None else session.post(f"http://lab{path}", json=body)
            async with call as response:
                if response.content_type != "application/json":
                    raise LabRefused(f"the lab answered {response.status} to {path}; its log says why")
                answer: dict[str, Any] = await response.json()
                if response.status >= 400:
                    raise LabRefused(str(answer.get("error", path)))
                return answer
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise LabNotRunning(f"no lab answers at {socket}") from error
