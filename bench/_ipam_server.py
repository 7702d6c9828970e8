"""The server's side of bench/ipam.py: the real metal_ipam and a bare echo, in a process of their own.

`_ipam_server.py SETTINGS.json` prints one line of JSON with the addresses and serves until its standard input ends. A
tenancy of a few lines says whom the tokens speak for. With `profile` in the settings, what ran is written there. With
`shared`, a second argument, both are served on the ports of the process whose line that was.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import uvloop
from metal_ipam.service import SPEC
from metal_kit import logs
from metal_kit.audit.writer import AuditWriter
from metal_kit.runtime import start
from metal_kit.server import Server, Servicer
from metal_kit.tls import Identity
from metalplane.audit.v1.audit_pb2 import AuditEntry
from metalplane.common.v1.access_pb2 import PlaneRole, Role
from metalplane.tenancy.v1.token_pb2 import CheckTokenRequest, CheckTokenResponse
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceServicer, add_TokenServiceServicer_to_server

ECHO = "/bench.Echo/Echo"
OPERATOR = "operator"
SAMPLE_SECONDS = 0.002
PROJECT = "0198c1d2-0000-7000-8000-00000000000a"


class Tokens(TokenServiceServicer):
    """`operator` is the plane's; every other token is a user who may edit PROJECT."""

    async def CheckToken(self, request: CheckTokenRequest, context: Any) -> CheckTokenResponse:
        answer = CheckTokenResponse()
        answer.token.id = answer.token.user = request.secret
        if request.secret == OPERATOR:
            answer.token.plane_role = PlaneRole.PLANE_ROLE_OPERATOR
        else:
            answer.token.project_roles[PROJECT] = Role.ROLE_EDITOR
        return answer


class _Echo(grpc.GenericRpcHandler):
    """Bytes in, the same bytes out."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._echo) if details.method == ECHO else None

    async def _echo(self, raw: bytes, context: Any) -> bytes:
        return raw


class Samples:
    """Where this process spends its CPU: the stack of its main thread, every few milliseconds of CPU.

    A tracing profiler makes calls dearer than what they do, and loses its way among coroutines.
    """

    def __init__(self) -> None:
        self._own: Counter[str] = Counter()
        self._with_callees: Counter[str] = Counter()
        self._count = 0
        signal.signal(signal.SIGPROF, self._take)
        signal.setitimer(signal.ITIMER_PROF, SAMPLE_SECONDS, SAMPLE_SECONDS)

    def _take(self, _signal: int, frame: FrameType | None) -> None:
        self._count += 1
        seen: set[str] = set()
        while frame is not None:
            code = frame.f_code
            name = f"{'/'.join(Path(code.co_filename).parts[-2:])}:{code.co_qualname}"
            if not seen:
                self._own[f"{name}:{frame.f_lineno}"] += 1
            if name not in seen:
                seen.add(name)
                self._with_callees[name] += 1
            frame = frame.f_back

    def report(self) -> str:
        """The shares in percent: lines by their own, functions with all that they call."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        lines = [f"{self._count} samples, {SAMPLE_SECONDS * 1000:g} ms of CPU apart"]
        for title, counts in (("lines", self._own), ("functions, with what they call", self._with_callees)):
            lines.append(f"\n{title}")
            lines += [f"{100 * count / self._count:5.1f} %  {name}" for name, count in counts.most_common(60)]
        return "\n".join(lines) + "\n"


async def serve(settings: dict[str, Any], shared: dict[str, str]) -> None:
    """Until standard input ends; on the ports that others listen on, if any are `shared`."""
    tokens = Tokens()  # type: ignore[abstract]  # the rest is never called
    tenancy = Server([Servicer(add_TokenServiceServicer_to_server, tokens, "metalplane.tenancy.v1.TokenService")])
    tls = {name: Identity(*(Path(path) for path in paths)) for name, paths in settings["tls"].items()}
    address = await tenancy.start("127.0.0.1:0", tls["tenancy"])
    echo = grpc.aio.server()
    echo.add_generic_rpc_handlers((_Echo(),))
    port = echo.add_secure_port(shared.get("echo", "127.0.0.1:0"), tls["ipam"].server_credentials())
    await echo.start()
    ca, cert, key = settings["tls"]["ipam"]
    values = {"tls_ca": ca, "tls_cert": cert, "tls_key": key, "peers": {"tenancy": address}} | settings["ipam"]
    values |= {"listen": shared.get("ipam", "127.0.0.1:0"), "share_port": True}
    running = await start(SPEC, SPEC.settings(**values))
    print(json.dumps({"ipam": running.address, "echo": f"127.0.0.1:{port}"}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await running.stop(1)
    await echo.stop(0)
    await tenancy.stop(0)


def _drop_audit() -> None:
    """Let the audit log take entries and keep none, to see by the difference what it costs."""

    async def drop_at_once(_writer: AuditWriter, _entry: AuditEntry) -> None: ...

    def drop(_writer: AuditWriter, _entry: AuditEntry) -> None: ...

    for name, instead in (("commit", drop_at_once), ("put", drop)):
        setattr(AuditWriter, name, instead)


def main() -> None:
    """The process."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    with open(settings["log"], "w", encoding="utf-8", buffering=1) as log:
        logs.configure("info", json=True, stream=log)
        if settings.get("without_audit"):
            _drop_audit()
        samples = Samples() if settings.get("profile") else None
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}))
        if samples is not None:
            Path(settings["profile"]).write_text(samples.report())


if __name__ == "__main__":
    main()
