"""Composition of metal-boot: settings, the HTTP server, the gRPC API, and what runs beside them."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

from metal_kit.endpoint import parse_endpoint
from metal_kit.process import StartError
from metal_kit.runtime import Background, Parts, Runtime, Servicer, ServiceSpec
from metal_kit.settings import Endpoint, ServiceSettings
from metalplane.boot.v1 import boot_pb2_grpc
from pydantic import Field

from metal_boot.api import BootApi
from metal_boot.bootconfig import CurrentBootConfig
from metal_boot.certificates import LIFETIME, MachineAuthorityFiles, MachineCertificates
from metal_boot.decider import Decider
from metal_boot.hints import Hints
from metal_boot.plane import Plane
from metal_boot.reporter import Reporter
from metal_boot.tokens import RamdiskTokens
from metal_boot.web import Web, serve
from metal_boot.work import Pace


class Settings(ServiceSettings):
    """What metal-boot needs besides what every service does."""

    partition: str = Field("", description="id of the partition that this service boots; mandatory")
    http_listen: Endpoint = Field("127.0.0.1:0", description="address of the HTTP server for firmware; port 0: any")
    http_url: str = Field("", description="URL that machines reach the HTTP server at; empty: http://<http_listen>")
    grpc_endpoint: str = Field("", description="host:port that installers reach the gRPC API at; empty: <listen>")
    machine_ca: str = Field("", description="directory with the authority for machine certificates; mandatory")
    machine_ca_name: str = Field("ca", description="name of its files: <name>.crt and <name>.key")
    token_key: str = Field("", repr=False, description="secret for ramdisk tokens, shared by the partition's replicas")
    certificate_hours: float = Field(
        LIFETIME / timedelta(hours=1), gt=0, le=24 * 7, description="lifetime of a machine's certificate"
    )
    poll_seconds: float = Field(2.0, ge=0.05, le=2.0, description="how often a work stream looks without a hint")
    lease_seconds: float = Field(20.0, ge=2.0, le=120.0, description="how long a machine counts as waiting unrenewed")


class Boot:
    """The composed service. `http_port` is 0 until the HTTP server listens."""

    def __init__(self, rt: Runtime, settings: Settings) -> None:
        self._rt = rt
        self._settings = settings
        self.http_port = 0
        plane = Plane(rt.peers, settings.partition)
        self.decider = Decider(plane)
        self.reporter = Reporter(plane.record_events, rt.stopping)
        self.hints = Hints()
        self.config = CurrentBootConfig(plane.boot_config)
        tokens = RamdiskTokens(settings.token_key.encode(), time.time)
        lifetime = timedelta(hours=settings.certificate_hours)
        self.authority = _authority(settings)
        self.web = Web(
            decider=self.decider,
            reporter=self.reporter,
            config=self.config,
            tokens=tokens,
            certificates=MachineCertificates(self.authority, tokens, lifetime),
            url=self._url,
            endpoint=self._endpoint,
            stopping=rt.stopping,
        )
        pace = Pace(
            poll=settings.poll_seconds,
            lease_renewal=settings.lease_seconds / 4,
            lease=settings.lease_seconds,
        )
        self.api = BootApi(plane, self.decider, self.reporter, self.hints, rt.stopping, pace)

    def parts(self) -> Parts:
        """What the kit runs."""
        background = [
            Background("boot-reporter", self.reporter.run),
            Background("boot-config", lambda: self.config.run(self._rt.stopping)),
        ]
        bus = self._rt.bus
        if bus is not None:
            background.append(Background("boot-hints", lambda: self.hints.listen(bus, self._rt.stopping)))
        servicer = Servicer(boot_pb2_grpc.add_BootServiceServicer_to_server, self.api, "metalplane.boot.v1.BootService")
        machines = self.authority.certificate
        return Parts(servicers=[servicer], background=background, machine_authority=machines)

    def _url(self) -> str:
        host, _ = parse_endpoint(self._settings.http_listen)
        return self._settings.http_url.rstrip("/") or f"http://{host}:{self.http_port}"

    def _endpoint(self) -> str:
        return self._settings.grpc_endpoint or self._settings.listen


def _authority(settings: Settings) -> MachineAuthorityFiles:
    try:
        return MachineAuthorityFiles(Path(settings.machine_ca), settings.machine_ca_name, Path(settings.tls_ca))
    except (OSError, ValueError) as error:
        raise StartError(f"METALPLANE_MACHINE_CA: {error}") from error


async def compose(rt: Runtime) -> Parts:
    """Put metal-boot together and start its HTTP server. Raises StartError for a setting that is missing or wrong."""
    settings = rt.settings
    assert isinstance(settings, Settings)
    for name in ("partition", "machine_ca", "token_key"):
        if not getattr(settings, name):
            raise StartError(f"METALPLANE_{name.upper()} is not set")
    try:
        boot = Boot(rt, settings)
    except ValueError as error:
        raise StartError(f"METALPLANE_TOKEN_KEY: {error}") from error
    if not settings.grpc_endpoint and parse_endpoint(settings.listen)[1] == 0:
        raise StartError("METALPLANE_GRPC_ENDPOINT is not set, and METALPLANE_LISTEN names no port")
    host, port = parse_endpoint(settings.http_listen)
    try:
        runner, boot.http_port = await serve(boot.web.application(), host, port)
    except OSError as error:
        raise StartError(f"cannot listen on {settings.http_listen}: {error.strerror}") from error
    parts = boot.parts()
    parts.close.append(runner.cleanup)
    rt.log.info("http.listening", url=boot.web.url())
    return parts


SPEC = ServiceSpec(name="boot", settings=Settings, package="", compose=compose)
