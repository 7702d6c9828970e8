"""Allocations and their timelines."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg
from metal_kit.controller import StaleSnapshot
from metal_kit.db import Connection
from metalplane.allocation.v1.allocation_pb2 import AllocationSpec, AllocationStatus
from metalplane.allocation.v1.installation_pb2 import BootInfo
from metalplane.inventory.v1.image_pb2 import Image
from metalplane.inventory.v1.layout_pb2 import FilesystemLayout

from metal_allocation.phase import Phase
from metal_allocation.record import Record, TimelineLine

TIMELINE_KEPT = 200

INSERT = """
INSERT INTO allocation (id, project, creator, name, role, spec, userdata, description, labels, placement_labels, phase,
                        phase_time, phase_deadline, machine, partition, rack, size, image, layout, dns_servers,
                        ntp_servers, conditions)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)
RETURNING create_time, update_time
"""

# User data may hold secrets: it goes when the machine has gone.
UPDATE = """
UPDATE allocation SET
    phase = $3, phase_time = $4, phase_deadline = $5, machine = $6, rack = $7, asn = $8, networks = $9,
    conditions = $10,
    installed = $11, install_failures = $12, install_error = $13, installer_step = $14, installer_percent = $15,
    installer_time = $16, boot_info = $17, command = $18, command_attempts = $19, running_time = $20, free_time = $21,
    description = $22, labels = $23, disk_serials = $24,
    command_after = $25, command_error = $26, install_reboots = $27,
    userdata = CASE WHEN $3 = 'released' THEN '' ELSE userdata END,
    version = version + 1, update_time = clock_timestamp()
WHERE id = $1 AND version = $2
RETURNING version, update_time
"""
# Neither version nor event: a sign of life must not get in the way of whoever changes the allocation.
HEARD = "UPDATE allocation SET installer_time = $2 WHERE id = $1"

GET = "SELECT * FROM allocation WHERE id = $1"
GET_FOR_UPDATE = "SELECT * FROM allocation WHERE id = $1 FOR UPDATE"
BY_MACHINE = "SELECT a.* FROM claim c JOIN allocation a ON a.id = c.allocation WHERE c.machine = $1"
PHASES = "SELECT id::text, phase FROM allocation WHERE id = ANY ($1::uuid[])"
ELSEWHERE = """
SELECT a.id::text, bound.machine::text FROM unnest($1::uuid[], $2::uuid[]) AS bound (allocation, machine)
JOIN allocation a ON a.id = bound.allocation
WHERE a.phase = 'released' AND a.machine <> bound.machine
"""
RUNNING = "SELECT a.id::text FROM allocation a WHERE a.phase = 'running' AND a.id > $1::uuid ORDER BY a.id LIMIT $2"
UNSETTLED = "SELECT id::text FROM allocation WHERE phase NOT IN ('running', 'released')"
FORGET_RELEASED = """
DELETE FROM allocation WHERE id = ANY (ARRAY(
    SELECT a.id FROM allocation a WHERE a.phase = 'released' AND a.update_time < $1
      AND NOT EXISTS (SELECT 1 FROM claim WHERE claim.allocation = a.id)
    LIMIT 1000 FOR UPDATE SKIP LOCKED
))
"""
ADD_LINES = """
INSERT INTO timeline (allocation, phase, reason, message)
SELECT $1, line.* FROM unnest($2::text[], $3::text[], $4::text[]) AS line
"""
# What nobody is shown is not kept either: an allocation that cannot go on adds lines for as long as that lasts.
TRIM = """
DELETE FROM timeline WHERE allocation = $1 AND seq <= (
    SELECT seq FROM timeline WHERE allocation = $1 ORDER BY seq DESC OFFSET $2 LIMIT 1
)
"""
TIMELINES = """
SELECT line.* FROM unnest($1::uuid[]) AS wanted (id)
CROSS JOIN LATERAL (
    SELECT * FROM timeline WHERE allocation = wanted.id ORDER BY seq DESC LIMIT $2
) AS line ORDER BY line.allocation, line.seq
"""


@dataclass(frozen=True, slots=True)
class ListFilter:
    """Which allocations to list; None does not filter. `projects` are the only ones that may be shown."""

    projects: Sequence[str] | None = None
    machine: str | None = None
    phase: str | None = None
    released: bool = False


class AllocationStore:
    """Allocations, by id."""

    async def insert(self, conn: Connection, record: Record) -> None:
        """Insert a new allocation; sets its times."""
        row = await conn.fetchrow(
            INSERT,
            record.id, record.project, record.creator, record.name, record.role, record.spec.SerializeToString(),
            record.userdata, record.description, dict(record.labels),
            dict(record.placement_labels), record.phase, record.phase_time, record.phase_deadline,
            record.machine, record.partition, record.rack, record.size, record.image.SerializeToString(),
            record.layout.SerializeToString(), list(record.dns_servers), list(record.ntp_servers),
            _conditions(record),
        )  # fmt: skip
        assert row is not None
        record.create_time, record.update_time = row["create_time"], row["update_time"]
        await self._add_lines(conn, record)

    async def update(self, conn: Connection, record: Record) -> None:
        """Write everything that changes. Raises StaleSnapshot when the allocation is no longer the record's version."""
        row = await conn.fetchrow(UPDATE, record.id, record.version, *changing(record))
        if row is None:
            raise StaleSnapshot(record.id)
        record.version, record.update_time = row["version"], row["update_time"]
        await self._add_lines(conn, record)

    async def heard(self, conn: Connection, allocation: str, now: datetime) -> None:
        """Note that the installer gave a sign of life, which is no change."""
        await conn.execute(HEARD, allocation, now)

    async def get(self, conn: Connection, allocation: str, *, lock: bool = False) -> Record | None:
        """One allocation; `lock` keeps others from changing it until the transaction ends."""
        row = await conn.fetchrow(GET_FOR_UPDATE if lock else GET, allocation)
        return _record(row) if row else None

    async def of_machine(self, conn: Connection, machine: str) -> Record | None:
        """The allocation that has claimed a machine."""
        row = await conn.fetchrow(BY_MACHINE, machine)
        return _record(row) if row else None

    async def phases(self, conn: Connection, allocations: Collection[str]) -> Mapping[str, Phase]:
        """The phases of those allocations that exist."""
        rows = await conn.fetch(PHASES, list(allocations))
        return {row["id"]: Phase(row["phase"]) for row in rows}

    async def elsewhere(self, conn: Connection, bound: Mapping[str, str]) -> Mapping[str, str]:
        """Those of the machines, by allocation, that a released allocation did not have when it ended."""
        rows = await conn.fetch(ELSEWHERE, list(bound), list(bound.values()))
        return {row["id"]: row["machine"] for row in rows}

    async def running(self, conn: Connection, *, after: str, limit: int) -> list[str]:
        """Ids of allocations that run, above an id."""
        return [row["id"] for row in await conn.fetch(RUNNING, after, limit)]

    async def unsettled(self, conn: Connection) -> list[str]:
        """Ids of allocations that have something left to do."""
        return [row["id"] for row in await conn.fetch(UNSETTLED)]

    async def page(self, conn: Connection, which: ListFilter, *, after: str, limit: int) -> list[Record]:
        """Allocations with an id above `after`, by id."""
        statement, arguments = list_statement(which, after=after, limit=limit)
        return [_record(row) for row in await conn.fetch(statement, *arguments)]

    async def timelines(self, conn: Connection, allocations: Sequence[str]) -> Mapping[str, list[TimelineLine]]:
        """The last lines of each timeline, oldest first."""
        lines: dict[str, list[TimelineLine]] = {each: [] for each in allocations}
        for row in await conn.fetch(TIMELINES, list(allocations), TIMELINE_KEPT):
            line = TimelineLine(row["time"], Phase(row["phase"]), row["reason"], row["message"])
            lines[str(row["allocation"])].append(line)
        return lines

    async def forget_released(self, conn: Connection, before: datetime) -> int:
        """Drop some allocations that were released before a time; how many there were."""
        done = await conn.execute(FORGET_RELEASED, before)
        return int(done.rpartition(" ")[2])

    async def _add_lines(self, conn: Connection, record: Record) -> None:
        if not record.new_lines:
            return
        phases, reasons, messages = (list(column) for column in zip(*record.new_lines, strict=True))
        await conn.execute(ADD_LINES, record.id, phases, reasons, messages)
        await conn.execute(TRIM, record.id, TIMELINE_KEPT)
        record.new_lines.clear()


def changing(record: Record) -> tuple[object, ...]:
    """The columns that an update writes: two records with the same ones need none."""
    return (
        record.phase, record.phase_time, record.phase_deadline, record.machine, record.rack, record.asn,
        AllocationStatus(networks=record.networks).SerializeToString(),
        _conditions(record), record.installed, record.install_failures, record.install_error,
        record.installer_step, record.installer_percent, record.installer_time,
        record.boot_info.SerializeToString(), record.command, record.command_attempts, record.running_time,
        record.free_time, record.description, dict(record.labels), list(record.disk_serials),
        record.command_after, record.command_error, record.install_reboots,
    )  # fmt: skip


def list_statement(which: ListFilter, *, after: str, limit: int) -> tuple[str, list[object]]:
    """The query of one page. Built from the filters that are set, so that each combination gets a plan of its own: one
    statement for all would be planned for none. Phase and limit are in the text: without them Postgres supposes that
    every phase is as frequent, and that a tenth of all rows is asked for.
    """
    arguments: list[object] = [after]
    conditions = ["a.id > $1"]
    if which.machine is not None:
        arguments.append(which.machine)
        conditions.append(f"a.machine = ${len(arguments)}::uuid")
    if which.phase is not None:
        conditions.append(f"a.phase = '{Phase(which.phase)}'")
    if not which.released:
        conditions.append("a.phase <> 'released'")
    seen = ""
    if which.projects is not None:
        arguments.append(sorted(set(which.projects)))
        seen = f"unnest(${len(arguments)}::uuid[]) AS seen (project) CROSS JOIN LATERAL "
        conditions.append("a.project = seen.project")
    page = f"SELECT a.* FROM allocation a WHERE {' AND '.join(conditions)} ORDER BY a.id LIMIT {limit:d}"
    if seen:
        # A page of each project, and of these the first: for a set of projects no index has the order of the ids.
        page = f"SELECT a.* FROM {seen}({page}) AS a ORDER BY a.id LIMIT {limit:d}"
    return page, arguments


def _conditions(record: Record) -> bytes:
    return AllocationStatus(conditions=record.conditions).SerializeToString()


def _record(row: asyncpg.Record) -> Record:
    return Record(
        id=str(row["id"]),
        project=str(row["project"]),
        creator=row["creator"],
        name=row["name"],
        role=row["role"],
        spec=AllocationSpec.FromString(row["spec"]),
        userdata=row["userdata"],
        description=row["description"],
        labels=row["labels"],
        placement_labels=row["placement_labels"],
        phase=Phase(row["phase"]),
        phase_time=row["phase_time"],
        phase_deadline=row["phase_deadline"],
        machine=str(row["machine"]),
        partition=row["partition"],
        rack=row["rack"],
        size=row["size"],
        image=Image.FromString(row["image"]),
        layout=FilesystemLayout.FromString(row["layout"]),
        dns_servers=row["dns_servers"],
        ntp_servers=row["ntp_servers"],
        disk_serials=row["disk_serials"],
        asn=row["asn"],
        networks=list(AllocationStatus.FromString(row["networks"]).networks),
        conditions=list(AllocationStatus.FromString(row["conditions"]).conditions),
        installed=row["installed"],
        install_failures=row["install_failures"],
        install_error=row["install_error"],
        install_reboots=row["install_reboots"],
        installer_step=row["installer_step"],
        installer_percent=row["installer_percent"],
        installer_time=row["installer_time"],
        boot_info=BootInfo.FromString(row["boot_info"]),
        command=str(row["command"]) if row["command"] else None,
        command_attempts=row["command_attempts"],
        command_after=row["command_after"],
        command_error=row["command_error"],
        running_time=row["running_time"],
        free_time=row["free_time"],
        version=row["version"],
        create_time=row["create_time"],
        update_time=row["update_time"],
    )
