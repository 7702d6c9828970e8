"""Tells inventory of a reboot before it happens; otherwise what the machine does next looks like a crash loop.

The order matters more than the news: inventory gets a short while to take it in, and when it does not, the reboot goes
on unannounced. A false alarm is cleared by the next regular boot; a machine that cannot be switched off is worse.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from metal_kit.backoff import Backoff
from metal_kit.errors import Aborted, DeadlineExceeded, Problem, ResourceExhausted, Unavailable
from metal_kit.logs import get_logger
from metalplane.inventory.v1.machine_pb2 import (
    PROVISIONING_EVENT_TYPE_PLANNED_REBOOT,
    RecordEventsRequest,
    ReportedEvent,
)

if TYPE_CHECKING:
    from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceAsyncStub

log = get_logger(__name__)

_PASSING = (Unavailable, DeadlineExceeded, Aborted, ResourceExhausted)
_RETRY = Backoff(timedelta(milliseconds=400), timedelta(seconds=2), least=timedelta(milliseconds=100))
_LEAST_SECONDS = 0.1


def event_of(command: str) -> str:
    """The id of a command's event, the same at every attempt; `command` is the UUID of the command."""
    return str(uuid5(UUID(command), "planned-reboot"))


class Announcer:
    """Records planned reboots of machines in one partition at inventory."""

    def __init__(self, machines: MachineServiceAsyncStub, *, partition: str) -> None:
        self._machines, self._partition = machines, partition

    async def planned_reboot(self, machine: str, *, event: str, command: str, message: str, within: timedelta) -> None:
        """Record the event `event` of the machine. Returns after `within` at the latest; a failure is logged only."""
        request = RecordEventsRequest(
            partition=self._partition,
            machine=machine,
            events=[ReportedEvent(id=event, type=PROVISIONING_EVENT_TYPE_PLANNED_REBOOT, message=message)],
        )
        try:
            await self._insist(request, within.total_seconds())
        except Problem as problem:
            log.warning("bmc.reboot.unannounced", machine=machine, command=command, cause=problem.reason)

    async def _insist(self, request: RecordEventsRequest, seconds: float) -> None:
        """Try until it is taken in, cannot be, or the time is up. Raises the last Problem."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + seconds
        attempt = 0
        while True:
            try:
                await self._machines.RecordEvents(request, timeout=max(_LEAST_SECONDS, give_up - loop.time()))
            except _PASSING as problem:
                delay = _RETRY.delay(attempt, problem.retry_after).total_seconds()
                if loop.time() + delay >= give_up:
                    raise
                await asyncio.sleep(delay)
                attempt += 1
            else:
                return
