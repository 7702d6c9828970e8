"""The installer's gRPC API: machines speak for themselves only, and boot passes it on to inventory and allocation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from google.protobuf.empty_pb2 import Empty
from metal_kit.errors import PermissionDenied
from metal_kit.identity import current_caller
from metal_kit.ids import parse_uuid
from metal_kit.logs import get_logger
from metalplane.boot.v1 import boot_pb2, boot_pb2_grpc

from metal_boot import metrics
from metal_boot.decider import Decider
from metal_boot.hints import Hints
from metal_boot.orders import Verdict, verdict
from metal_boot.plane import Plane
from metal_boot.reporter import Reporter
from metal_boot.work import Pace, WorkStream

log = get_logger(__name__)

_VERDICTS = {
    Verdict.CLEAN: boot_pb2.VERDICT_CLEAN,
    Verdict.INSTALL: boot_pb2.VERDICT_INSTALL,
    Verdict.BOOT_EXISTING: boot_pb2.VERDICT_BOOT_EXISTING,
    Verdict.HOLD: boot_pb2.VERDICT_HOLD,
}


BEHIND_BOOT = 5.0
"""Seconds that an installer's events wait for the report of the boot before them."""

STEPS = frozenset({"plan", "partition", "fetch", "unpack", "configure", "bootloader", "report", "kexec"})
"""Steps of an installation that have a metric of their own."""


def _require_own_session(session: str) -> None:
    """A certificate speaks for the boot that it was made for: one that was kept must not open a later boot's door."""
    if parse_uuid(session, field="session") != current_caller().session:
        raise PermissionDenied("NOT_YOUR_SESSION", "the certificate was made for another boot", field="session")


def _known_step(step: str) -> str:
    """A label from a fixed list: what an installer writes must not make a metric grow."""
    return step if step in STEPS else "other"


class BootApi(boot_pb2_grpc.BootServiceServicer):
    """Who calls is checked by the interceptor: the machine in the request is the one of the certificate."""

    def __init__(
        self,
        plane: Plane,
        decider: Decider,
        reporter: Reporter,
        hints: Hints,
        stopping: asyncio.Event,
        pace: Pace,
    ) -> None:
        self._plane = plane
        self._reporter = reporter
        self._decider = decider
        self._hints = hints
        self._stopping = stopping
        self._pace = pace

    async def Register(self, request: boot_pb2.RegisterRequest, context: Any) -> boot_pb2.RegisterResponse:
        """Register, then look what the machine is in for."""
        _require_own_session(request.session)
        machine = await self._plane.register(request)
        view = await self._plane.view(request.machine)
        found = verdict(view.situation)
        log.info("machine.registered", machine=machine.id, generation=machine.generation, verdict=found.value)
        return boot_pb2.RegisterResponse(
            generation=machine.generation,
            verdict=_VERDICTS[found],
            size=machine.size,
            partition=machine.partition,
            rack=machine.rack,
        )

    async def ReportEvents(self, request: boot_pb2.ReportEventsRequest, context: Any) -> Empty:
        """Pass events on, behind the boot that they follow."""
        await self._reporter.settled(request.machine, within=BEHIND_BOOT)
        await self._plane.record_events(request.machine, list(request.events))
        return Empty()

    async def Work(self, request: boot_pb2.WorkRequest, context: Any) -> AsyncIterator[boot_pb2.WorkResponse]:
        """Follow one machine until its installer goes or this replica drains."""
        _require_own_session(request.session)
        stream = WorkStream(
            plane=self._plane,
            decider=self._decider,
            hints=self._hints,
            stopping=self._stopping,
            machine_id=request.machine,
            generation=request.generation,
            pace=self._pace,
        )
        async with aclosing(stream.items()) as items:
            async for item in items:
                yield item

    async def ReportWipe(self, request: boot_pb2.ReportWipeRequest, context: Any) -> Empty:
        """Pass wipe results on, and look again at once: a clean machine may wait now."""
        failed = [result.serial for result in request.results if result.error]
        if failed:
            metrics.WIPES_FAILED.inc(len(failed))
            log.error("machine.not_clean", machine=request.machine, disks=failed)
        await self._plane.record_wipe(request)
        self._hints.wake(request.machine)
        return Empty()

    async def ReportProgress(self, request: boot_pb2.ReportProgressRequest, context: Any) -> Empty:
        """Pass progress on."""
        await self._plane.record_progress(request)
        return Empty()

    async def ReportResult(self, request: boot_pb2.ReportResultRequest, context: Any) -> Empty:
        """Pass the end of an installation on; from success on the machine is for its local disk."""
        await self._plane.record_result(request)
        metrics.INSTALLATIONS.labels("" if request.succeeded else _known_step(request.step)).inc()
        if request.succeeded:
            self._decider.learn_installed(request.machine)
        else:
            log.error("machine.not_installed", machine=request.machine, step=request.step, reason=request.reason)
        self._hints.wake(request.machine)
        return Empty()
