"""Tells inventory what the BMCs say: at once when something changed, and every few minutes that they still answer."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg
from metal_kit.backoff import Backoff, pause
from metal_kit.db import Database
from metal_kit.errors import Problem
from metal_kit.logs import get_logger
from metalplane.inventory.v1.machine_pb2 import ReportBmcsRequest

from metal_bmc.messages import report_message
from metal_bmc.store import ScheduleStore

if TYPE_CHECKING:
    from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceAsyncStub

log = get_logger(__name__)

_TICK = timedelta(seconds=1)
_BATCH = 500
_RETRY = Backoff(timedelta(seconds=2), timedelta(minutes=1), least=timedelta(milliseconds=500))


class Reporter:
    """`run` it as a task in every replica; two that report the same thing do no harm."""

    def __init__(self, db: Database, machines: MachineServiceAsyncStub, *, partition: str, again: timedelta) -> None:
        self._db, self._machines = db, machines
        self._partition, self._again = partition, again
        self._schedule = ScheduleStore()

    async def run(self, stopping: asyncio.Event) -> None:
        """Report until `stopping` is set; while inventory is away, what is due stays due."""
        failures = 0
        while not stopping.is_set():
            try:
                while await self.report_due() == _BATCH:
                    pass
                failures = 0
            except (Problem, asyncpg.PostgresError, OSError) as error:
                if failures == 0:
                    log.warning("bmc.report.waits", cause=getattr(error, "reason", type(error).__name__))
                await pause(stopping, _RETRY.delay(failures, getattr(error, "retry_after", None)))
                failures += 1
            else:
                await pause(stopping, _TICK)

    async def report_due(self) -> int:
        """Send one batch; returns how many were due."""
        async with self._db.connection() as connection:
            endpoints = await self._schedule.due_reports(connection, self._partition, most=_BATCH)
        if not endpoints:
            return 0
        reports = [report_message(endpoint) for endpoint in endpoints]
        response = await self._machines.ReportBmcs(ReportBmcsRequest(partition=self._partition, reports=reports))
        if response.created:
            log.info("bmc.report.machines_created", count=len(response.created))
        for machine in response.refused:
            log.warning("bmc.report.refused", machine=machine, cause="another partition has this machine")
        sent = [(e.machine, e.observation.observed_at) for e in endpoints if e.observation.observed_at is not None]
        async with self._db.connection() as connection:
            await self._schedule.reported(connection, sent, self._again)
        return len(endpoints)
