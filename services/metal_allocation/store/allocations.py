"""Allocations and their timelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

TIMELINE_SHOWN = 200

INSERT = """
INSERT INTO allocation (id, project, creator, name, role, spec, userdata, description, labels, placement_labels, phase,
                        phase_time, phase_deadline, machine, partition, rack, size, image, layout, dns_servers,
                        ntp_servers, conditions)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)
RETURNING create_time, update_time
"""

UPDATE = """
UPDATE allocation SET
    phase = $3, phase_time = $4, phase_deadline = $5, machine = $6, rack = $7, asn = $8, networks = $9,
    conditions = $10,
    installed = $11, install_failures = $12, install_error = $13, installer_step = $14, installer_percent = $15,
    installer_time = $16, boot_info = $17, command = $18, command_attempts = $19, running_time = $20, free_time = $21,
    description = $22, labels = $23, disk_serials = $24, version = version + 1, update_time = clock_timestamp()
WHERE id = $1 AND version = $2
RETURNING version, update_time
"""

GET = "SELECT * FROM allocation WHERE id = $1"
GET_FOR_UPDATE = "SELECT * FROM allocation WHERE id = $1 FOR UPDATE"
BY_MACHINE = "SELECT a.* FROM claim c JOIN allocation a ON a.id = c.allocation WHERE c.machine = $1"
LIST = """
SELECT * FROM allocation
WHERE id > $1
  AND ($2::uuid[] IS NULL OR project = ANY ($2))
  AND ($3::uuid IS NULL OR machine = $3)
  AND ($4::text IS NULL OR phase = $4)
  AND ($5 OR phase <> 'released')
ORDER BY id LIMIT $6
"""
FORGET_RELEASED = """
DELETE FROM allocation a WHERE phase = 'released' AND update_time < $1
  AND NOT EXISTS (SELECT 1 FROM claim WHERE claim.allocation = a.id)
"""
ADD_LINE = "INSERT INTO timeline (allocation, phase, reason, message) VALUES ($1, $2, $3, $4)"
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
        if row is None:
            raise RuntimeError("INSERT … RETURNING gave no row")
        record.create_time, record.update_time = row["create_time"], row["update_time"]
        await self._add_lines(conn, record)

    async def update(self, conn: Connection, record: Record) -> None:
        """Write what phases and updates change. StaleSnapshot when somebody else was first."""
        row = await conn.fetchrow(
            UPDATE,
            record.id, record.version, record.phase, record.phase_time, record.phase_deadline, record.machine,
            record.rack, record.asn, AllocationStatus(networks=record.networks).SerializeToString(),
            _conditions(record), record.installed, record.install_failures, record.install_error,
            record.installer_step, record.installer_percent, record.installer_time,
            record.boot_info.SerializeToString(), record.command, record.command_attempts, record.running_time,
            record.free_time, record.description, dict(record.labels), list(record.disk_serials),
        )  # fmt: skip
        if row is None:
            raise StaleSnapshot(record.id)
        record.version, record.update_time = row["version"], row["update_time"]
        await self._add_lines(conn, record)

    async def get(self, conn: Connection, allocation: str, *, lock: bool = False) -> Record | None:
        """One allocation; `lock` keeps others from changing it until the transaction ends."""
        row = await conn.fetchrow(GET_FOR_UPDATE if lock else GET, allocation)
        return _record(row) if row else None

    async def of_machine(self, conn: Connection, machine: str) -> Record | None:
        """The allocation that has claimed a machine."""
        row = await conn.fetchrow(BY_MACHINE, machine)
        return _record(row) if row else None

    async def page(self, conn: Connection, which: ListFilter, *, after: str, limit: int) -> list[Record]:
        """Allocations with an id above `after`, by id."""
        projects = None if which.projects is None else list(which.projects)
        rows = await conn.fetch(LIST, after, projects, which.machine, which.phase, which.released, limit)
        return [_record(row) for row in rows]

    async def timelines(self, conn: Connection, allocations: Sequence[str]) -> Mapping[str, list[TimelineLine]]:
        """The last lines of each timeline, oldest first."""
        lines: dict[str, list[TimelineLine]] = {each: [] for each in allocations}
        for row in await conn.fetch(TIMELINES, list(allocations), TIMELINE_SHOWN):
            line = TimelineLine(row["time"], Phase(row["phase"]), row["reason"], row["message"])
            lines[str(row["allocation"])].append(line)
        return lines

    async def forget_released(self, conn: Connection, before: datetime) -> None:
        """Drop allocations that were released before a time."""
        await conn.execute(FORGET_RELEASED, before)

    async def _add_lines(self, conn: Connection, record: Record) -> None:
        for reason, message in record.new_lines:
            await conn.execute(ADD_LINE, record.id, record.phase, reason, message)
        record.new_lines.clear()


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
        installer_step=row["installer_step"],
        installer_percent=row["installer_percent"],
        installer_time=row["installer_time"],
        boot_info=BootInfo.FromString(row["boot_info"]),
        command=str(row["command"]) if row["command"] else None,
        command_attempts=row["command_attempts"],
        running_time=row["running_time"],
        free_time=row["free_time"],
        version=row["version"],
        create_time=row["create_time"],
        update_time=row["update_time"],
    )
