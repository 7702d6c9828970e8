"""InstallationService: the installer's half, spoken for it by the partition's boot service."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from google.protobuf.empty_pb2 import Empty
from metal_kit.clock import Clock
from metal_kit.controller import enqueue
from metal_kit.db import Connection, Database
from metal_kit.errors import FailedPrecondition, InvalidArgument
from metal_kit.identity import missing
from metalplane.allocation.v1 import installation_pb2 as pb
from metalplane.allocation.v1.installation_pb2_grpc import InstallationServiceServicer

from metal_allocation.changes import publish
from metal_allocation.controller import KIND
from metal_allocation.messages import to_installation
from metal_allocation.phase import FREEING, Phase
from metal_allocation.record import INSTALLED, Record
from metal_allocation.store import AllocationStore
from metal_allocation.telemetry import INSTALL_FAILURES

# Progress comes every percent; told is what a person would want to see.
TOLD_PERCENT = 10
# How old the last sign of life may get before one more is noted; far less than the silence of a dead installer.
HEARD_EVERY = timedelta(seconds=15)
MAX_ERROR = 400
_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,62}", re.ASCII)


@dataclass(slots=True)
class InstallationApi(InstallationServiceServicer):
    """What is wanted of a machine's installer, and what it reports."""

    db: Database
    clock: Clock
    allocations: AllocationStore

    async def GetInstallation(self, request: pb.GetInstallationRequest, context: Any) -> pb.Installation:
        async with self.db.connection() as conn:
            record = await self.allocations.of_machine(conn, request.machine)
        if record is None:
            return pb.Installation(machine=request.machine)
        if record.partition != request.partition:
            raise missing(f"machine {request.machine}")
        return to_installation(record)

    async def RecordProgress(self, request: pb.RecordProgressRequest, context: Any) -> Empty:
        async with self.db.transaction(purpose="installer's progress") as conn:
            record = await self._current(conn, request.machine, request.allocation, request.partition)
            if record.phase is not Phase.INSTALLING or record.installed:
                # Who goes on all the same would write to disks that are spoken for otherwise.
                raise FailedPrecondition(
                    "NOT_INSTALLING", f"allocation {record.id} is {record.phase}: it is not being installed"
                )
            now = self.clock.now()
            if worth_telling(record, request):
                if request.step != record.installer_step:
                    record.note("INSTALLER_STEP", f"installer: {request.step}")
                if request.message:
                    record.note("INSTALLER_SAYS", f"installer: {request.message}")
                record.installer_step, record.installer_percent = request.step, request.percent
                record.installer_time = now
                await self.allocations.update(conn, record)
                await publish(conn, record, installation_changed=False)
            elif record.installer_time is None or now - record.installer_time >= HEARD_EVERY:
                await self.allocations.heard(conn, record.id, now)
        return Empty()

    async def RecordResult(self, request: pb.RecordResultRequest, context: Any) -> Empty:
        if request.succeeded and not request.boot_info.kernel:
            raise InvalidArgument(
                "REQUIRED", "an installed system is started by its kernel; name it", field="boot_info.kernel"
            )
        async with self.db.transaction(purpose="installer's result") as conn:
            record = await self._current(conn, request.machine, request.allocation, request.partition)
            before = record.installation
            if self._take_in(record, request):
                await self.allocations.update(conn, record)
                await publish(conn, record, installation_changed=before is not record.installation)
                await enqueue(conn, KIND, record.id)
        return Empty()

    def _take_in(self, record: Record, request: pb.RecordResultRequest) -> bool:
        """Set the result; False for one that is known, or that comes too late to matter."""
        if record.phase in FREEING:
            return False
        now = self.clock.now()
        if request.succeeded:
            if record.phase is not Phase.INSTALLING or record.installed:
                return False
            record.installed = True
            record.install_error = ""
            record.installer_step, record.installer_percent = "installed", 100
            record.installer_time = now
            record.boot_info.CopyFrom(request.boot_info)
            record.note("INSTALL_REPORTED", "the installer reports success")
            return True
        # One failure a run of the installer: it is forgotten with the reboot that follows.
        if record.install_error:
            return False
        told = [part for part in (request.step, request.message or request.reason) if part]
        text = ": ".join(told) or "no reason given"
        reason = request.reason if _REASON.fullmatch(request.reason) else "INSTALL_FAILED"
        record.install_failures += 1
        record.install_error = text[:MAX_ERROR]
        record.note(reason, text)
        INSTALL_FAILURES.inc()
        if record.phase is Phase.INSTALLING and not record.installed:
            record.installer_time = now
            record.set_condition(INSTALLED, False, reason, text, now)
        return True

    async def _current(self, conn: Connection, machine: str, allocation: str, partition: str) -> Record:
        record = await self.allocations.get(conn, allocation, lock=True)
        if record is None or record.partition != partition:
            raise missing(f"allocation {allocation}")
        if record.machine != machine.lower() or record.phase is Phase.RELEASED:
            raise FailedPrecondition("NOT_CURRENT", f"allocation {allocation} does not have machine {machine} now")
        return record


def worth_telling(record: Record, request: pb.RecordProgressRequest) -> bool:
    """Whether progress is news: another step, a message, the end of a step, or a good piece further."""
    if request.step != record.installer_step or request.message:
        return True
    if request.percent == record.installer_percent:
        return False
    return request.percent == 100 or abs(request.percent - record.installer_percent) >= TOLD_PERCENT
