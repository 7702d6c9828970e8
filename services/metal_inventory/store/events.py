"""Provisioning events: one machine's are taken in one after the other, each exactly once.

The machine's row is the lock. Under it an event gets the next sequence number, goes into the history, and moves state
and flags, and the outbox row is written, all in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg
from metal_kit.db import Connection

from metal_inventory import snapshot
from metal_inventory.lifecycle import HISTORY_LIMIT, Event, EventType, Progress, State, Verdict, receive
from metal_inventory.liveliness import Liveliness
from metal_inventory.store.machines import MachineStore
from metal_inventory.telemetry import EVENTS

# Whoever gets past registering is no longer where its waiting lease was given.
_KEEPS_LEASE = frozenset({State.REGISTERING, State.WAITING})
# From here on a tenant's system is written to or runs from the disks. The installer's event that says so may be lost,
# which does not stop it; allocation's, that the machine is taken back, is told before anything is done to the machine.
_SOILS_DISKS = frozenset({State.INSTALLING, State.BOOTING_NEW_KERNEL, State.PHONED_HOME, State.MACHINE_RECLAIM})

_KNOWN = "SELECT id::text, verdict FROM received_event WHERE machine = $1 AND id = ANY ($2::uuid[])"
_REMEMBER = "INSERT INTO received_event (machine, id, verdict) VALUES ($1, $2, $3)"
_APPEND = """
INSERT INTO provisioning_event (machine, sequence, type, received_at, reported_at, message)
VALUES ($1, $2, $3, $4, $5, $6)
"""
_TRIM = "DELETE FROM provisioning_event WHERE machine = $1 AND sequence <= $2"
_SAVE = """
UPDATE lifecycle SET state = $2, sequence = $3, last_event_at = $4, liveliness = $5, crash_loop = $6,
    failed_reclaim = $7, error_type = $8, error_at = $9, error_reported_at = $10, error_message = $11
WHERE machine = $1
"""
_HISTORY = """
SELECT sequence, type, received_at, reported_at, message FROM provisioning_event
WHERE machine = $1 AND sequence < $2 ORDER BY sequence DESC LIMIT $3
"""
# now(), not clock_timestamp(): an index is searched only for what stays the same during the statement.
_FORGET = """
DELETE FROM received_event WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM received_event WHERE received_at < now() - $1::interval LIMIT 5000 FOR UPDATE SKIP LOCKED
))
"""


@dataclass(frozen=True, slots=True)
class Report:
    """An event as its sender reports it; `id` is the sender's own, empty when it has none.

    `time` is when the plane took the event in, when that was before now: in another service, which passed it on.
    """

    type: EventType
    message: str = ""
    id: str = ""
    reported_time: datetime | None = None
    time: datetime | None = None


class EventStore:
    """Takes events in and lists them."""

    def __init__(self, machines: MachineStore) -> None:
        self._machines = machines

    async def record(
        self, conn: Connection, row: asyncpg.Record, reports: Iterable[Report], *, publish: bool = True
    ) -> list[Verdict]:
        """Take in the reports, oldest first, for a machine that the caller has locked, and say what became of each.

        A report whose id was seen before changes nothing and gets the verdict that it got then. `publish` is false
        for a caller that changes more of the machine and publishes it then.
        """
        machine, reports = row["id"], list(reports)
        ids = [report.id for report in reports if report.id]
        known = {each["id"]: Verdict[each["verdict"]] for each in await conn.fetch(_KNOWN, machine, ids)} if ids else {}
        before = progress = snapshot.progress(row)
        sequence, verdicts = row["sequence"], []
        for report in reports:
            if report.id in known:
                verdicts.append(known[report.id])
                continue
            time = row["now"] if report.time is None else min(report.time, row["now"])
            event = Event(report.type, time, report.message, report.reported_time)
            reception = receive(progress, event, allocated=row["allocation_id"] is not None)
            progress = reception.progress
            verdicts.append(reception.verdict)
            EVENTS.labels(report.type.value, reception.verdict.value).inc()
            if reception.stored is not None:
                sequence += 1
                await self._append(conn, machine, sequence, reception.stored)
            if report.id:
                known[report.id] = reception.verdict
                await conn.execute(_REMEMBER, machine, report.id, reception.verdict.name)
        if sequence > row["sequence"]:
            await conn.execute(_TRIM, machine, sequence - HISTORY_LIMIT)
        if await self._save(conn, row, before, progress, sequence) and publish:
            await self._machines.publish(conn, machine)
        return verdicts

    async def page(self, conn: Connection, machine: str, *, before: int, limit: int) -> list[asyncpg.Record]:
        """The history below the sequence number, newest first."""
        return await conn.fetch(_HISTORY, machine, before, limit)

    async def forget_ids(self, conn: Connection, older_than: timedelta) -> int:
        """Drop some sender ids that are too old to be retried; how many there were."""
        done = await conn.execute(_FORGET, older_than)
        return int(done.rpartition(" ")[2])

    async def _append(self, conn: Connection, machine: object, sequence: int, event: Event) -> None:
        await conn.execute(_APPEND, machine, sequence, event.type.name, event.time, event.reported_time, event.message)

    async def _save(
        self, conn: Connection, row: asyncpg.Record, before: Progress, after: Progress, sequence: int
    ) -> bool:
        """Write what changed, and say whether that is worth telling.

        A mere sign of life only moves the time: no new version, no event, no rewritten machine.
        """
        if after == before and sequence == row["sequence"]:
            return False
        error = after.last_error
        await conn.execute(
            _SAVE,
            *(row["id"], after.state.name, sequence, after.last_event_time, Liveliness.ALIVE.name),
            *(after.crash_loop, after.failed_machine_reclaim),
            *((error.type.name, error.time, error.reported_time, error.message) if error else (None,) * 4),
        )
        revived = snapshot.stored_liveliness(row) is not Liveliness.ALIVE
        if sequence == row["sequence"] and not revived and _but_time(after) == _but_time(before):
            return False
        changes: dict[str, object] = {}
        if row["waiting"] and after.state not in _KEEPS_LEASE:
            changes["waiting"] = False
            await conn.execute("DELETE FROM waiting_lease WHERE machine = $1", row["id"])
        if row["disks_clean"] and after.state in _SOILS_DISKS:
            changes["disks_clean"] = False
        await self._machines.change(conn, row["id"], **changes)
        return True


def _but_time(progress: Progress) -> tuple[object, ...]:
    return progress.state, progress.last_error, progress.crash_loop, progress.failed_machine_reclaim
