"""A service from its start to its end: database, bus, peers, server, workers, and the drain in the right order.

`start` is for whoever embeds services (the lab, tests); `main` is the console script. What a service is made of, its
`ServiceSpec.compose` says. This module does not configure logs except in `main`.

Start: schema, pool, bus, composition, server, workers; healthy last. Stop: unhealthy, `stopping` is set so that watch
streams end, the server drains, the workers end (the relay after them, it sends what they wrote), bus, peers, pool.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import protovalidate
from metalplane.audit.v1.audit_pb2_grpc import add_AuditServiceServicer_to_server
from metalplane.plane.v1.issue_pb2_grpc import add_IssueServiceServicer_to_server
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceStub

from metal_kit import logs, metrics, process, sweep
from metal_kit.access import AccessRuleError, rules_of
from metal_kit.agent import identity_of
from metal_kit.audit import api as audit_api
from metal_kit.audit import upkeep
from metal_kit.audit.remote import KEEPER, RemoteLog
from metal_kit.audit.store import LocalLog
from metal_kit.audit.writer import AuditLog, AuditWriter
from metal_kit.bus import Bus
from metal_kit.client import Peers
from metal_kit.clock import Clock
from metal_kit.controller import Controller
from metal_kit.db import Database, DatabaseUnreachable
from metal_kit.events import Consumer, ConsumerRunner
from metal_kit.issues import Source
from metal_kit.issues import api as issue_api
from metal_kit.issues.certificates import CertificateWatch
from metal_kit.issues.events import EventIssues
from metal_kit.migrations import MigrationError, migrate
from metal_kit.outbox import Relay
from metal_kit.paging import Paging
from metal_kit.process import StartError
from metal_kit.server import Limits, Server, Servicer
from metal_kit.settings import ServiceSettings
from metal_kit.tasks import Tasks
from metal_kit.tls import Identity, PeerCertificates
from metal_kit.tokens import MAX_AGE, RemoteTokenChecker, TokenChecker, TokenVerifier

__all__ = ["Background", "Parts", "RunningService", "Runtime", "ServiceSpec", "Servicer", "StartError", "main", "start"]

log = logs.get_logger("runtime")

# Time that controllers, consumers and the relay get after the server has drained.
WORKER_DRAIN = 15.0
# Background work is told by `stopping` before the drain; what has not ended after it is cancelled soon.
BACKGROUND_DRAIN = 1.0
# Time that the audit log gets to take what the last calls have left.
AUDIT_DRAIN = 8.0


@dataclass(frozen=True)
class ServiceSpec:
    """What a service is: its name (also its schema and its DNS name `<name>.metalplane`), and how to compose it.

    `package` holds the `migrations` folder; empty for a service without a database.
    """

    name: str
    settings: type[ServiceSettings]
    package: str
    compose: Callable[[Runtime], Awaitable[Parts]]


@dataclass
class Runtime:
    """What a service is composed from. `stopping` is set when the drain begins: streams that wait must end then."""

    name: str
    settings: ServiceSettings
    db: Database | None
    bus: Bus | None
    peers: Peers
    identity: Identity
    paging: Paging
    clock: Clock
    stopping: asyncio.Event
    log: logs.Logger

    def require_db(self) -> Database:
        """The database. Raises StartError when the service was started without one."""
        if self.db is None:
            raise StartError(f"{self.name} needs a database: set METALPLANE_DATABASE_URL")
        return self.db


@dataclass(frozen=True)
class Background:
    """Work beside the requests, for as long as the service runs. `run` watches `Runtime.stopping`, or is cancelled
    when the service stops; an end before that takes the service down."""

    name: str
    run: Callable[[], Awaitable[None]]


@dataclass
class Parts:
    """What a composed service consists of.

    `token_checker` replaces the question to tenancy; tenancy needs that, and has nothing remembered (`token_age`, in
    seconds): who has lost a role must not give it to others in the meantime. `machine_authority` is the file with the
    certificate of the authority that the service signs machines with, if it does; its end is watched. `issues` are
    sources of what is wrong, by name, beside those that every service has. `close` functions are awaited last, in
    reverse order, after all else has stopped.
    """

    servicers: list[Servicer] = field(default_factory=list)
    controllers: list[Controller] = field(default_factory=list)
    consumers: list[Consumer] = field(default_factory=list)
    background: list[Background] = field(default_factory=list)
    token_checker: TokenChecker | None = None
    token_age: float = MAX_AGE
    machine_authority: Path | None = None
    issues: list[tuple[str, Source]] = field(default_factory=list)
    close: list[Callable[[], Awaitable[None]]] = field(default_factory=list)


class RunningService:
    """A started service. `failed` gets the name of a background task that ended by itself: stop, and say so."""

    def __init__(self, runtime: Runtime, server: Server, tasks: Sequence[Tasks], resources: AsyncExitStack) -> None:
        self.runtime = runtime
        self.name = runtime.name
        self.address = server.address
        self.failed: asyncio.Future[str] = tasks[0].failed
        self._server = server
        self._tasks = tasks
        self._resources = resources
        self._stopped: asyncio.Task[None] | None = None

    async def stop(self, drain_seconds: float | None = None) -> None:
        """Drain and close everything; calling it again waits for the same stop."""
        if self._stopped is None:
            grace = self.runtime.settings.drain_seconds if drain_seconds is None else drain_seconds
            self._stopped = asyncio.create_task(self._stop(grace), name=f"{self.name} stop")
        await asyncio.shield(self._stopped)

    async def _stop(self, grace: float) -> None:
        self.runtime.log.info("service.draining", grace=grace)
        async with self._resources:
            for tasks in self._tasks:
                tasks.expect_end()
            await self._server.unhealthy()
            if self.runtime.settings.drain_notice_seconds:
                await asyncio.sleep(self.runtime.settings.drain_notice_seconds)
            self.runtime.stopping.set()
            await self._server.stop(grace)
        self.runtime.log.info("service.stopped")


async def start(spec: ServiceSpec, settings: ServiceSettings) -> RunningService:
    """Start a service; it serves when this returns.

    Raises StartError, with one line that says what is missing: no certificate, no database, a schema newer than the
    code, an address that is taken, a method without an access rule. Nothing is left running then.
    """
    async with AsyncExitStack() as opening:
        runtime = await _open(spec, settings, opening)
        parts = await spec.compose(runtime)
        for close in parts.close:
            opening.push_async_callback(close)
        writer = _audit_writer(runtime)
        certificates = PeerCertificates()
        watch = CertificateWatch(spec.name, runtime.identity, certificates, parts.machine_authority)
        servicers = [*parts.servicers, *_shared(runtime, watch, parts.issues)]
        server = _server(runtime, parts, servicers, certificates, writer)
        workers = Tasks()
        relaying, auditing = Tasks(workers.failed), Tasks(workers.failed)
        ending, relay_ending, audit_ending = asyncio.Event(), asyncio.Event(), asyncio.Event()
        # Undone in reverse: the server has drained, the workers end, then the relay, which still sends what they wrote.
        opening.push_async_callback(_end, auditing, audit_ending)
        if writer is not None:
            auditing.spawn(f"{spec.name} audit", writer.run(audit_ending), patience=AUDIT_DRAIN)
        opening.push_async_callback(_end, relaying, relay_ending)
        opening.push_async_callback(_end, workers, ending)
        try:
            await server.start(settings.listen, runtime.identity)
            opening.push_async_callback(server.stop, 0)
            if settings.metrics_listen:
                opening.callback(metrics.listen(settings.metrics_listen).close)
        except OSError as error:
            raise StartError(str(error), os.EX_UNAVAILABLE) from error
        workers.spawn(f"{spec.name} certificates", watch.run(ending))
        _spawn(runtime, parts, workers, ending)
        if runtime.db is not None and runtime.bus is not None:
            relay = Relay(runtime.db, runtime.bus)
            relaying.spawn(f"{spec.name} relay", relay.run(relay_ending), patience=WORKER_DRAIN)
        await server.healthy()
        runtime.log.info("service.started", address=server.address)
        return RunningService(runtime, server, (workers, relaying, auditing), opening.pop_all())


def main(spec: ServiceSpec) -> NoReturn:
    """Console script of a service: settings from the environment, until a signal or the failure of a worker."""

    async def body(settings: ServiceSettings, stopping: asyncio.Event) -> None:
        running = await start(spec, settings)
        signalled = asyncio.create_task(stopping.wait(), name="signal")
        ends: list[asyncio.Future[Any]] = [signalled, running.failed]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        signalled.cancel()
        failed = running.failed.result() if running.failed.done() else ""
        await running.stop()
        if failed:
            raise StartError(f"{failed} ended unexpectedly; its log line says why", os.EX_SOFTWARE)

    process.run(f"metal-{spec.name}", spec.settings, body)


async def _open(spec: ServiceSpec, settings: ServiceSettings, opening: AsyncExitStack) -> Runtime:
    """Everything that composition builds upon; what was opened is closed by `opening`."""
    identity = identity_of(settings)
    db = await _open_database(spec, settings, opening) if spec.package else None
    bus = await _open_bus(spec, settings, identity, opening)
    peers = Peers(settings.peers, identity, max_message_bytes=settings.max_message_bytes)
    opening.push_async_callback(peers.close)
    # Replicas share their database, so its address is a secret that they have in common without being told.
    secret = settings.paging_key or settings.database_url or secrets.token_hex()
    return Runtime(
        name=spec.name,
        settings=settings,
        db=db,
        bus=bus,
        peers=peers,
        identity=identity,
        paging=Paging(secret.encode()),
        clock=Clock(),
        stopping=asyncio.Event(),
        log=logs.get_logger(spec.name),
    )


async def _open_database(spec: ServiceSpec, settings: ServiceSettings, opening: AsyncExitStack) -> Database:
    if not settings.database_url:
        raise StartError("METALPLANE_DATABASE_URL is not set")
    try:
        await migrate(settings.database_url, spec.name, spec.package)
        db = await Database.open(settings.database_url, spec.name)
    except DatabaseUnreachable as error:
        raise StartError(str(error), os.EX_UNAVAILABLE) from error
    except MigrationError as error:
        raise StartError(str(error)) from error
    opening.push_async_callback(db.close)
    return db


async def _open_bus(
    spec: ServiceSpec, settings: ServiceSettings, identity: Identity, opening: AsyncExitStack
) -> Bus | None:
    if not settings.nats_url:
        if spec.package:
            log.warning("bus.absent", service=spec.name, hint="set METALPLANE_NATS_URL; events stay in the outbox")
        return None
    secure = settings.nats_url.startswith("tls://")
    bus = await Bus.open(settings.nats_url, f"metal-{spec.name}", tls=identity if secure else None)
    opening.push_async_callback(bus.close)
    return bus


def _audit_writer(runtime: Runtime) -> AuditWriter | None:
    """The audit log of this process: in its own schema, else kept by a peer; None when there is neither."""
    partition = str(getattr(runtime.settings, "partition", ""))
    destination: AuditLog
    if runtime.db is not None:
        destination = LocalLog(runtime.db)
    elif partition and runtime.peers.has(KEEPER):
        destination = RemoteLog(runtime.peers, partition)
    else:
        return None
    return AuditWriter(destination, runtime.name, partition=partition)


def _shared(runtime: Runtime, watch: CertificateWatch, own: Sequence[tuple[str, Source]]) -> list[Servicer]:
    """What every service serves beside its own: its issues, and the audit log of one that has a database."""
    sources: list[tuple[str, Source]] = [("certificates", watch.issues)]
    servicers: list[Servicer] = []
    if runtime.db is not None:
        sources.append(("events", EventIssues(runtime.db).issues))
        audit = audit_api.AuditApi(runtime.db, runtime.paging)
        servicers.append(Servicer(add_AuditServiceServicer_to_server, audit, audit_api.FULL_NAME))
    issues = issue_api.IssueApi(runtime.name, runtime.paging, [*sources, *own])
    return [*servicers, Servicer(add_IssueServiceServicer_to_server, issues, issue_api.FULL_NAME)]


def _server(
    runtime: Runtime,
    parts: Parts,
    servicers: Sequence[Servicer],
    certificates: PeerCertificates,
    audit: AuditWriter | None,
) -> Server:
    checker = parts.token_checker
    if checker is None and runtime.peers.has("tenancy"):
        checker = RemoteTokenChecker(runtime.peers.stub(TokenServiceStub, "tenancy"))
    settings = runtime.settings
    limits = Limits(settings.max_message_bytes, settings.max_concurrent_streams, settings.allowances)
    tokens = TokenVerifier(checker, max_age=parts.token_age) if checker is not None else None
    try:
        if audit is None and _changes(servicers):
            raise StartError(
                f"{runtime.name} has no audit log: it needs a database, or a partition and the peer {KEEPER}"
            )
        return Server(
            servicers,
            tokens=tokens,
            limits=limits,
            audit=audit,
            certificates=certificates,
            share_port=settings.share_port,
        )
    except (AccessRuleError, protovalidate.CompilationError) as error:
        raise StartError(f"{runtime.name} must not serve: {error}", os.EX_SOFTWARE) from error


def _changes(servicers: Sequence[Servicer]) -> bool:
    """Whether a method changes anything, or tells a secret."""
    return any(rule.audited for rule in rules_of(servicer.full_name for servicer in servicers).values())


def _spawn(runtime: Runtime, parts: Parts, workers: Tasks, ending: asyncio.Event) -> None:
    """Start controllers, consumers and background work."""
    name = runtime.name
    for controller in parts.controllers:
        workers.spawn(f"{name} {controller.kind}", controller.run(ending), patience=WORKER_DRAIN)
    if parts.consumers and runtime.bus is not None:
        db = runtime.require_db()
        for consumer in parts.consumers:
            running = ConsumerRunner(db, runtime.bus, consumer).run(ending)
            workers.spawn(f"{name} {consumer.name}", running, patience=WORKER_DRAIN)
    for work in parts.background:
        workers.spawn(f"{name} {work.name}", _background(work), patience=BACKGROUND_DRAIN)
    if runtime.db is not None:
        workers.spawn(f"{name} sweep", sweep.run(runtime.db, ending), patience=WORKER_DRAIN)
        keep = timedelta(days=runtime.settings.audit_keep_days)
        workers.spawn(f"{name} audit upkeep", upkeep.run(runtime.db, keep, ending), patience=WORKER_DRAIN)
    if runtime.bus is not None:
        workers.spawn(f"{name} bus", _watch(runtime.bus))


async def _background(work: Background) -> None:
    await work.run()


async def _watch(bus: Bus) -> None:
    """Fail when the bus reports what no retry repairs, such as a missing permission."""
    raise StartError(await asyncio.shield(bus.fatal))


async def _end(tasks: Tasks, ending: asyncio.Event) -> None:
    ending.set()
    await tasks.stop()
