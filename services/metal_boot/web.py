"""The HTTP side: boot scripts for firmware, certificates for installers, health.

Plain HTTP is served on purpose: iPXE on the provisioning network speaks it, and nothing secret is given to who only
asks. The one thing worth stealing is a ramdisk token in a script; it is bound to a machine, short-lived and
single-use.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web
from metal_kit.errors import InvalidArgument, Problem, Unauthenticated
from metal_kit.ids import parse_uuid, uuid7
from metal_kit.logs import get_logger

from metal_boot import metrics, script
from metal_boot.bootconfig import CurrentBootConfig
from metal_boot.certificates import MachineCertificates
from metal_boot.decider import Decider
from metal_boot.decision import Answer, Decision
from metal_boot.reporter import Reporter
from metal_boot.tokens import RamdiskTokens

log = get_logger(__name__)

MAX_BODY = 32 * 1024
NIL = "00000000-0000-0000-0000-000000000000"
_HEX = set("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Web:
    """The handlers. `url` and `endpoint` give the public addresses of this HTTP server and of the gRPC server."""

    decider: Decider
    reporter: Reporter
    config: CurrentBootConfig
    tokens: RamdiskTokens
    certificates: MachineCertificates
    url: Callable[[], str]
    endpoint: Callable[[], str]
    stopping: asyncio.Event

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application(client_max_size=MAX_BODY, middlewares=[_problems])
        application.router.add_get("/v1/boot/{uuid}", self.boot)
        application.router.add_post("/v1/certificate", self.certificate)
        application.router.add_get("/healthz", self.health)
        return application

    async def boot(self, request: web.Request) -> web.Response:
        """The iPXE script for one machine. `mac` (query) helps firmware that has no UUID."""
        began = time.monotonic()
        machine_id = parse_uuid(request.match_info["uuid"], field="uuid")
        mac = parse_mac(request.query.get("mac", ""))
        found, decision = await self.decider.decide("" if machine_id == NIL else machine_id, mac)
        text = self._script(found, decision)
        seconds = time.monotonic() - began
        metrics.DECISION_SECONDS.observe(seconds)
        if decision.unexpected:
            metrics.UNEXPECTED.inc()
        if found:
            what = f"network boot, {decision.answer}: {decision.reason}"
            self.reporter.booted(found, what, local_disk=decision.answer is Answer.LOCAL_DISK)
        level = log.warning if decision.unexpected else log.info
        level(
            "boot.answered",
            machine=found,
            mac=mac,
            answer=decision.answer,
            reason=decision.reason,
            milliseconds=round(seconds * 1000),
        )
        return web.Response(text=text, headers={"Cache-Control": "no-store"})

    def _script(self, machine_id: str, decision: Decision) -> str:
        if decision.answer is Answer.LOCAL_DISK:
            return script.local_disk(reason=f"local disk: {decision.reason}")
        config = self.config.current
        if config is None:
            return script.again(reason="the partition has no boot configuration yet")
        session = uuid7()
        token = self.tokens.issue(machine_id, session)
        parameters = script.InstallerParameters(self.url(), machine_id, session, token, decision.answer)
        try:
            return script.installer(config, parameters, reason=f"{decision.answer}: {decision.reason}")
        except ValueError as error:
            log.warning("boot_config.unusable", error=str(error))
            return script.again(reason="the partition's boot configuration cannot be used")

    async def certificate(self, request: web.Request) -> web.Response:
        """A client certificate for the machine that the ramdisk token was issued to."""
        try:
            body = json.loads(await request.read())
        except (ValueError, RecursionError) as error:
            raise InvalidArgument("INVALID_JSON", "the body must be a JSON object") from error
        if not isinstance(body, dict):
            raise InvalidArgument("INVALID_JSON", "the body must be a JSON object")
        values: dict[str, str] = {}
        for name in ("machine", "token", "csr"):
            value = body.get(name)
            if not isinstance(value, str) or not value.isascii():
                raise InvalidArgument("INVALID_FIELD", "must be a string of ASCII characters", field=name)
            values[name] = value
        chain = self.certificates.issue(values["machine"], values["token"], values["csr"].encode())
        answer = {
            "certificate": chain.decode(),
            "ca": self.certificates.files.roots().decode(),
            "endpoint": self.endpoint(),
        }
        return web.json_response(answer, headers={"Cache-Control": "no-store"})

    async def health(self, _request: web.Request) -> web.Response:
        """200 while the service takes requests, 503 while it drains. Says nothing of the control plane: boots are
        answered without it, too."""
        draining = self.stopping.is_set()
        return web.json_response({"status": "draining" if draining else "serving"}, status=503 if draining else 200)


def parse_mac(text: str) -> str:
    """A MAC address in lower case with colons; `-` is accepted, as iPXE's hexhyp writes it. Empty stays empty.

    Raises InvalidArgument naming `mac`.
    """
    mac = text.lower().replace("-", ":")
    pairs = mac.split(":")
    if mac and (len(pairs) != 6 or not all(len(pair) == 2 and set(pair) <= _HEX for pair in pairs)):
        raise InvalidArgument("INVALID_MAC", "must be a MAC address such as 02:00:00:00:00:01", field="mac")
    return mac


@web.middleware
async def _problems(request: web.Request, handler: Callable[[web.Request], object]) -> web.StreamResponse:
    """Problems as JSON; whatever else goes wrong stays in the log, under an id."""
    try:
        answer = await handler(request)  # type: ignore[misc]
    except Problem as problem:
        status = 400 if isinstance(problem, InvalidArgument) else 401 if isinstance(problem, Unauthenticated) else 503
        body = {"reason": problem.reason, "message": problem.message, "field": problem.field}
        return web.json_response(body, status=status)
    except web.HTTPException:
        raise
    except Exception:
        log_id = str(uuid.uuid4())
        log.exception("http.failed", path=request.path, log_id=log_id)
        return web.json_response({"reason": "INTERNAL", "message": "internal error", "log_id": log_id}, status=500)
    assert isinstance(answer, web.StreamResponse)
    return answer


async def serve(application: web.Application, host: str, port: int) -> tuple[web.AppRunner, int]:
    """Start to listen; returns the runner, to be cleaned up, and the port. Raises OSError."""
    runner = web.AppRunner(
        application, access_log=None, handle_signals=False, shutdown_timeout=5.0, keepalive_timeout=15.0
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, reuse_address=True, backlog=1024)
        await site.start()
    except OSError:
        await runner.cleanup()
        raise
    address: tuple[str, int] = runner.addresses[0]
    return runner, address[1]
