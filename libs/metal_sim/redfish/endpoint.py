"""One simulated Redfish BMC: an HTTPS server on a loopback address with a certificate of its own.

Its machine is a `Chassis`, which an RMCP+ BMC of the simulation may share: what one of them switches, the other shows.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiohttp import web

from metal_sim.bmc.chassis import Chassis
from metal_sim.redfish import changes, documents, wire
from metal_sim.redfish.certificate import Certificate, self_signed, server_context
from metal_sim.redfish.changes import Answer, error
from metal_sim.redfish.events import Listeners
from metal_sim.redfish.faults import RedfishFault, RedfishFaults
from metal_sim.redfish.personality import PLAIN, Etags, Personality
from metal_sim.redfish.sessions import Logins, SessionsFull, SessionTable, basic_login, same
from metal_sim.redfish.state import Document, RedfishState

_MOST_BODY = 64 * 1024
_UNAUTHORIZED = error(401, "NoValidSession", "There is no valid session.")


class SimulatedRedfish:
    """The BMC of the machine with SMBIOS UUID `machine`.

    `session_limit` is how many sessions it keeps, `idle_seconds` how long an unused one lives. `identity` is its
    certificate; without one it makes its own.
    """

    def __init__(
        self,
        machine: str,
        *,
        user: str = "metal",
        password: str = "",
        chassis: Chassis | None = None,
        powered: bool = False,
        personality: Personality = PLAIN,
        firmware: str = "1.20",
        session_limit: int = 4,
        idle_seconds: float = 1800.0,
        identity: Certificate | None = None,
    ) -> None:
        self.machine = str(uuid.UUID(machine))
        self.user, self.password = user, password
        self.chassis = chassis or Chassis(powered=powered)
        self.faults = RedfishFaults()
        self.logins = Logins()
        self.seen: Counter[tuple[str, str]] = Counter()
        self.sessions = SessionTable(
            limit=session_limit, idle_seconds=idle_seconds, clock=lambda: asyncio.get_running_loop().time()
        )
        self.state = RedfishState(
            machine=self.machine,
            chassis=self.chassis,
            personality=personality,
            faults=self.faults,
            sessions=self.sessions,
            firmware={"BMC": firmware, "BIOS": "2.4"},
            serial=f"S{uuid.UUID(machine).hex[-12:].upper()}",
        )
        self.listeners = Listeners()
        self.before_patch: Callable[[str], None] | None = None
        """Called with the path before each PATCH is looked at: somebody else may change the machine there."""
        self.address = ("", 0)
        self._identity = identity or self_signed(self.machine)
        self._web: web.Server | None = None
        self._server: asyncio.Server | None = None
        self._released = asyncio.Event()
        self._asked = 0

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the certificate that it shows."""
        return self._identity.fingerprint

    @property
    def requests(self) -> int:
        """How many came since the start."""
        return sum(self.seen.values())

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> tuple[str, int]:
        """Listen; port 0 picks a free one. Returns the address. Raises OSError when the port is taken."""
        self._web = web.Server(self._serve, access_log=None, keepalive_timeout=75.0)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._web, host, port, ssl=server_context(self._identity))
        name = self._server.sockets[0].getsockname()
        self.address = (str(name[0]), int(name[1]))
        return self.address

    async def stop(self) -> None:
        """Cut all connections and fall silent for good; may be called twice."""
        self._released.set()
        self.chassis.close()
        self.listeners.close()
        server, serving = self._server, self._web
        self._server = self._web = None
        if server is not None and serving is not None:
            server.close()
            await serving.shutdown(0.1)
            await server.wait_closed()

    async def renew(self) -> None:
        """Get another certificate at the same address, as after a factory reset."""
        host, port = self.address
        await self.stop()
        self._released = asyncio.Event()
        self._identity = self_signed(self.machine)
        await self.start(host, port)

    def forget_sessions(self) -> None:
        """End all sessions without a word, as a BMC does that restarts."""
        self.sessions.close_all()

    def record(self, message_id: str, message: str, severity: str = "OK") -> None:
        """Write into the event log, and tell who listens."""
        self.listeners.tell(self.state.record(message_id, message, severity))

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path.rstrip("/")
        self.seen[request.method, path] += 1
        self._asked += 1
        faults = self.faults
        if faults.has(RedfishFault.HANG):
            await self._released.wait()
            return wire.cut(request)
        if (
            faults.has(RedfishFault.RESETS_ITSELF)
            and self._asked % max(1, int(faults.value(RedfishFault.RESETS_ITSELF))) == 0
        ):
            self.forget_sessions()
            return wire.cut(request)
        await asyncio.sleep(faults.value(RedfishFault.SLOW))
        answer = await self._answer(request, path)
        if isinstance(answer, web.StreamResponse):
            return answer
        # Logins are spared unless they are named: nobody could close the session.
        loses = path != documents.SESSIONS or not faults.everywhere(RedfishFault.LOSES_ANSWERS)
        if request.method != "GET" and loses and faults.spoils(RedfishFault.LOSES_ANSWERS, request.method, path):
            return wire.cut(request)
        return await wire.send(request, answer, faults, self.state.personality)

    async def _answer(self, request: web.BaseRequest, path: str) -> Answer | web.StreamResponse:
        if request.method == "GET" and path in ("/redfish", documents.ROOT):
            found = {"v1": f"{documents.ROOT}/"} if path == "/redfish" else documents.find(self.state, path)
            return Answer(200, found)
        if self.faults.has(RedfishFault.BUSY):
            after = f"{self.faults.value(RedfishFault.BUSY):g}"
            busy = error(503, "ServiceTemporarilyUnavailable", "Come back later.")
            return Answer(503, busy.document, {"Retry-After": after})
        body = await self._body(request)
        if body is None:
            return error(400, "MalformedJSON", "The body is no JSON object.")
        if request.method == "POST" and path == documents.SESSIONS and self.state.personality.sessions:
            return self._log_in(body)
        if not self._may(request):
            return _UNAUTHORIZED
        if request.method == "GET":
            return await self._get(request, path)
        if request.method == "DELETE":
            return self._delete(path)
        if request.method == "PATCH":
            if self.before_patch is not None:
                self.before_patch(path)
            refused = self._precondition(request, path)
            return refused or changes.patch(self.state, path, body)
        if request.method == "POST":
            before = len(self.state.log)
            answer = changes.post(self.state, path, body)
            for entry in self.state.log[before:]:
                self.listeners.tell(entry)
            return answer
        return changes.NOT_ALLOWED

    async def _get(self, request: web.BaseRequest, path: str) -> Answer | web.StreamResponse:
        if path == documents.STREAM and self.state.personality.events:
            return await self.listeners.serve(request)
        if path.startswith((f"{documents.TASKS}/", f"{documents.MONITORS}/")):
            answer, restarts = changes.look_at_task(self.state, path)
            if restarts:
                # The task is gone with the old firmware, and so are the sessions.
                self.forget_sessions()
                self.state.updates.clear()
                return wire.cut(request)
            return answer
        skip = request.query.get("$skip", "0")
        document = documents.find(self.state, path, int(skip) if skip.isdigit() else 0)
        return changes.NOT_FOUND if document is None else Answer(200, document)

    def _log_in(self, body: Document) -> Answer:
        self.logins.started += 1
        if not self._knows(str(body.get("UserName", "")), str(body.get("Password", ""))):
            self.logins.failed += 1
            return error(401, "ResourceAtUriUnauthorized", "User or password is wrong.")
        if self.faults.has(RedfishFault.SESSIONS_FULL):
            self.logins.full += 1
            return error(503, "SessionLimitExceeded", "There are too many sessions.")
        try:
            session = self.sessions.open()
        except SessionsFull:
            self.logins.full += 1
            return error(503, "SessionLimitExceeded", "There are too many sessions.")
        self.logins.succeeded += 1
        location = f"{documents.SESSIONS}/{session.id}"
        document = {"@odata.id": location, "Id": session.id, "Name": "Session", "UserName": self.user}
        return Answer(201, document, {"X-Auth-Token": session.token, "Location": location})

    def _may(self, request: web.BaseRequest) -> bool:
        token = request.headers.get("X-Auth-Token")
        if token is not None:
            return self.sessions.holds(token) and not self.faults.has(RedfishFault.REFUSES_TOKENS)
        login = basic_login(request.headers.get("Authorization", ""))
        if login is None:
            return False
        self.logins.started += 1
        known = self._knows(*login)
        self.logins.succeeded += known
        self.logins.failed += not known
        return known

    def _knows(self, user: str, password: str) -> bool:
        right = same(user, self.user) & same(password, self.password)
        return right and not self.faults.has(RedfishFault.WRONG_PASSWORD)

    def _delete(self, path: str) -> Answer:
        parent, _, identity = path.rpartition("/")
        if parent != documents.SESSIONS:
            return changes.NOT_ALLOWED
        return Answer(204) if self.sessions.close(identity) else changes.NOT_FOUND

    def _precondition(self, request: web.BaseRequest, path: str) -> Answer | None:
        make = self.state.personality
        document = documents.find(self.state, path)
        if make.etags is Etags.NONE or document is None:
            return None
        given = request.headers.get("If-Match", "")
        if not given:
            missing = error(428, "PreconditionRequired", "If-Match is missing.")
            return missing if make.etags is Etags.REQUIRED else None
        # Strong comparison (RFC 9110 §13.1.1) would never match a weak one; makes that send weak ones compare the rest.
        if given == "*" or given.removeprefix("W/") == wire.etag(document):
            return None
        return error(412, "PreconditionFailed", "If-Match does not match.")

    @staticmethod
    async def _body(request: web.BaseRequest) -> dict[str, Any] | None:
        if request.method not in ("POST", "PATCH"):
            return {}
        raw = await request.content.read(_MOST_BODY)
        try:
            body = json.loads(raw or b"{}")
        except ValueError:
            return None
        return body if isinstance(body, dict) else None
