"""The installer's calls to boot over gRPC, with the machine's certificate: messages to plain values and back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence

from google.protobuf.timestamp_pb2 import Timestamp
from metal_kit.client import Peers
from metal_kit.errors import Aborted, DeadlineExceeded, Problem, ResourceExhausted, Unavailable
from metal_kit.tls import Identity
from metalplane.boot.v1 import boot_pb2, boot_pb2_grpc
from metalplane.inventory.v1 import machine_pb2

from metal_hammer import messages
from metal_hammer.enrol import Enrolment
from metal_hammer.failure import StepFailed
from metal_hammer.hardware.base import Disk, Facts, Neighbour
from metal_hammer.wipe.erase import WipeResult
from metal_hammer.work import BootInfo, Event, Item, PlaneError, Registration

DEADLINE = 10.0
"""Seconds for one call; the work stream has none, its keepalive finds a dead peer."""

REGISTER_DEADLINE = 30.0
"""Registration waits for inventory, which waits for the cabling."""

VERSION = "metal-hammer 0.1.0"

_EVENTS = {event: f"PROVISIONING_EVENT_TYPE_{event.name}" for event in Event}


class BootClient:
    """Implements `work.Plane` against boot. Close it when done."""

    def __init__(self, enrolment: Enrolment, machine_id: str, session: str) -> None:
        identity = Identity(enrolment.ca, enrolment.cert, enrolment.key)
        self._peers = Peers({"boot": enrolment.endpoint}, identity)
        self._boot: boot_pb2_grpc.BootServiceAsyncStub = self._peers.stub(boot_pb2_grpc.BootServiceStub, "boot")
        self._machine = machine_id
        self._session = session
        self._clock_behind = enrolment.clock_behind

    async def close(self) -> None:
        """Close the connection."""
        await self._peers.close()

    async def register(self, facts: Facts, neighbours: Mapping[str, Sequence[Neighbour]]) -> Registration:
        """See `work.Plane`."""
        request = boot_pb2.RegisterRequest(
            machine=self._machine,
            session=self._session,
            hardware=messages.hardware(facts, neighbours),
            bios=messages.bios(facts),
            bmc=messages.bmc(facts),
            installer_version=VERSION,
        )
        try:
            answer = await self._boot.Register(request, timeout=REGISTER_DEADLINE)
        except Problem as problem:
            raise plane_error(problem) from problem
        return messages.registration(answer)

    async def report_event(self, event: Event, event_id: str, message: str) -> None:
        """See `work.Plane`."""
        reported = machine_pb2.ReportedEvent(
            id=event_id,
            type=machine_pb2.ProvisioningEventType.Value(_EVENTS[event]),
            reported_time=_now(),
            message=message[:1024],
        )
        request = boot_pb2.ReportEventsRequest(machine=self._machine, events=[reported])
        try:
            await self._boot.ReportEvents(request, timeout=DEADLINE)
        except Problem as problem:
            raise plane_error(problem) from problem

    async def work(self, generation: int) -> AsyncIterator[Item]:
        """See `work.Plane`. Items of a kind that this installer does not know are skipped."""
        request = boot_pb2.WorkRequest(machine=self._machine, session=self._session, generation=generation)
        try:
            async for answer in self._boot.Work(request):
                wall = time.time() + self._clock_behind
                item = messages.item(answer, monotonic=time.monotonic(), wall=wall)
                if item is not None:
                    yield item
        except Problem as problem:
            raise plane_error(problem) from problem

    async def report_wipe(self, generation: int, results: Sequence[WipeResult]) -> None:
        """See `work.Plane`."""
        request = boot_pb2.ReportWipeRequest(
            machine=self._machine, generation=generation, results=[messages.wipe_result(each) for each in results]
        )
        try:
            await self._boot.ReportWipe(request, timeout=DEADLINE)
        except Problem as problem:
            raise plane_error(problem) from problem

    async def report_progress(self, allocation_id: str, step: str, percent: int, message: str) -> None:
        """See `work.Plane`."""
        request = boot_pb2.ReportProgressRequest(
            machine=self._machine, allocation=allocation_id, step=step, percent=percent, message=message[:1024]
        )
        try:
            await self._boot.ReportProgress(request, timeout=DEADLINE)
        except Problem as problem:
            raise plane_error(problem) from problem

    async def report_installed(self, allocation_id: str, boot_info: BootInfo, touched: Sequence[Disk]) -> None:
        """See `work.Plane`."""
        await self._report_result(
            boot_pb2.ReportResultRequest(
                machine=self._machine,
                allocation=allocation_id,
                succeeded=True,
                boot_info=messages.boot_info(boot_info),
                touched_disks=[messages.disk(each) for each in touched],
            )
        )

    async def report_failed(self, allocation_id: str, failure: StepFailed, touched: Sequence[Disk]) -> None:
        """See `work.Plane`."""
        await self._report_result(
            boot_pb2.ReportResultRequest(
                machine=self._machine,
                allocation=allocation_id,
                succeeded=False,
                step=failure.step,
                reason=failure.code,
                message=failure.detail,
                touched_disks=[messages.disk(each) for each in touched],
            )
        )

    async def _report_result(self, request: boot_pb2.ReportResultRequest) -> None:
        try:
            await self._boot.ReportResult(request, timeout=DEADLINE)
        except Problem as problem:
            raise plane_error(problem) from problem


def plane_error(problem: Problem) -> PlaneError:
    """A failure of a call; unavailability, overload and lost time may pass, everything else stays as it is."""
    retry = isinstance(problem, (Unavailable, DeadlineExceeded, ResourceExhausted))
    reason = "SUPERSEDED" if isinstance(problem, Aborted) else problem.reason
    after = problem.retry_after.total_seconds() if problem.retry_after is not None else 0.0
    return PlaneError(reason, problem.message, retry=retry, after=after)


def _now() -> Timestamp:
    stamp = Timestamp()
    stamp.GetCurrentTime()
    return stamp
