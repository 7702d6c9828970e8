"""InstallationService: the installer's half, spoken for it by the partition's boot service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf.empty_pb2 import Empty
from metal_kit.clock import Clock
from metal_kit.controller import enqueue
from metal_kit.db import Connection, Database
from metal_kit.errors import FailedPrecondition
from metal_kit.identity import missing
from metalplane.allocation.v1 import installation_pb2 as pb
from metalplane.allocation.v1.installation_pb2_grpc import InstallationServiceServicer

from metal_allocation.changes import publish
from metal_allocation.controller import KIND
from metal_allocation.messages import to_installation
from metal_allocation.phase import Phase
from metal_allocation.record import Record
from metal_allocation.store import AllocationStore


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
            if record.phase is Phase.INSTALLING:
                if request.step != record.installer_step:
                    record.note("INSTALLER_STEP", f"installer: {request.step}")
                record.installer_step = request.step
                record.installer_percent = request.percent
                record.installer_time = self.clock.now()
                await self.allocations.update(conn, record)
                await publish(conn, record, installation_changed=False)
        return Empty()

    async def RecordResult(self, request: pb.RecordResultRequest, context: Any) -> Empty:
        async with self.db.transaction(purpose="installer's result") as conn:
            record = await self._current(conn, request.machine, request.allocation, request.partition)
            # A report that comes late, or twice, meets an allocation that has moved on.
            if record.phase is Phase.INSTALLING and not record.installed:
                before = record.installation
                record.installer_time = self.clock.now()
                if request.succeeded:
                    record.installed = True
                    record.boot_info.CopyFrom(request.boot_info)
                    record.note("INSTALL_REPORTED", "the installer reports success")
                else:
                    record.install_failures += 1
                    record.install_error = f"{request.step}: {request.message or request.reason}"
                    record.note(request.reason or "INSTALL_FAILED", record.install_error)
                await self.allocations.update(conn, record)
                await publish(conn, record, installation_changed=before is not record.installation)
                await enqueue(conn, KIND, record.id)
        return Empty()

    async def _current(self, conn: Connection, machine: str, allocation: str, partition: str) -> Record:
        record = await self.allocations.get(conn, allocation, lock=True)
        if record is None or record.partition != partition:
            raise missing(f"allocation {allocation}")
        if record.machine != machine or record.phase is Phase.RELEASED:
            raise FailedPrecondition("NOT_CURRENT", f"allocation {allocation} does not have machine {machine} now")
        return record
