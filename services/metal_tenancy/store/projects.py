"""Projects."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

import asyncpg
from metal_kit.db import Connection
from metal_kit.errors import AlreadyExists, NotFound

COLUMNS = "id::text, tenant::text, name, description, labels, machine_quota, version, create_time, update_time"
INSERT = f"""
INSERT INTO project (id, tenant, name, description, labels, machine_quota) VALUES ($1, $2, $3, $4, $5, $6)
RETURNING {COLUMNS}
"""
GET = f"SELECT {COLUMNS} FROM project WHERE id = $1"
LOCK = f"{GET} FOR UPDATE"
LIST = f"""
SELECT {COLUMNS} FROM project
WHERE id > $1 AND ($2::uuid[] IS NULL OR id = ANY ($2) OR tenant = ANY ($3)) AND ($4::uuid IS NULL OR tenant = $4)
  AND ($5::text IS NULL OR name = $5)
ORDER BY id LIMIT $6
"""
UPDATE = f"""
UPDATE project SET name = $2, description = $3, labels = $4, machine_quota = $5, version = version + 1,
                   update_time = clock_timestamp()
WHERE id = $1 RETURNING {COLUMNS}
"""
DELETE = "DELETE FROM project WHERE id = $1"
TENANTS = """
SELECT id::text, tenant::text FROM project WHERE id = ANY ($1::uuid[]) OR tenant = ANY ($2::uuid[])
"""


@dataclass(frozen=True, slots=True)
class NewProject:
    """A project as it is asked for."""

    id: str
    tenant: str
    name: str
    description: str
    labels: Mapping[str, str]
    machine_quota: int


@dataclass(frozen=True, slots=True)
class ProjectRow(NewProject):
    """A project as stored."""

    version: int
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class Visible:
    """What somebody may see: these projects, and all of these tenants."""

    projects: Collection[str]
    tenants: Collection[str]


class ProjectStore:
    """Projects, by id."""

    async def insert(self, conn: Connection, new: NewProject) -> ProjectRow:
        """Insert a project. NotFound without its tenant, AlreadyExists when the tenant has one of that name."""
        try:
            row = await conn.fetchrow(
                INSERT, new.id, new.tenant, new.name, new.description, dict(new.labels), new.machine_quota
            )
        except asyncpg.UniqueViolationError:
            raise _taken(new.name) from None
        except asyncpg.ForeignKeyViolationError:
            raise NotFound("NOT_FOUND", f"tenant {new.tenant} does not exist", field="project.tenant") from None
        return ProjectRow(**_there(row))

    async def get(self, conn: Connection, project: str, *, lock: bool = False) -> ProjectRow | None:
        """One project; `lock` keeps others from changing it until the transaction ends."""
        row = await conn.fetchrow(LOCK if lock else GET, project)
        return ProjectRow(**row) if row else None

    async def page(
        self, conn: Connection, seen: Visible | None, tenant: str, name: str, *, after: str, limit: int
    ) -> list[ProjectRow]:
        """Projects with an id above `after`, only those that are `seen` unless it is None; empty filters do not
        filter."""
        projects, tenants = (None, []) if seen is None else (list(seen.projects), list(seen.tenants))
        rows = await conn.fetch(LIST, after, projects, tenants, tenant or None, name or None, limit)
        return [ProjectRow(**row) for row in rows]

    async def update(self, conn: Connection, row: ProjectRow) -> ProjectRow:
        """Write name, description, labels, quota. AlreadyExists when the tenant has another one of that name."""
        try:
            new = await conn.fetchrow(UPDATE, row.id, row.name, row.description, dict(row.labels), row.machine_quota)
        except asyncpg.UniqueViolationError:
            raise _taken(row.name) from None
        return ProjectRow(**_there(new))

    async def delete(self, conn: Connection, project: str) -> None:
        """Delete a project with its memberships."""
        await conn.execute(DELETE, project)

    async def tenants(self, conn: Connection, projects: Collection[str], tenants: Collection[str]) -> dict[str, str]:
        """Tenant by project id, of these projects and of all projects of these tenants."""
        return {row["id"]: row["tenant"] for row in await conn.fetch(TENANTS, list(projects), list(tenants))}


def _there(row: asyncpg.Record | None) -> asyncpg.Record:
    if row is None:
        raise RuntimeError("the row vanished under its own lock")
    return row


def _taken(name: str) -> AlreadyExists:
    return AlreadyExists("NAME_TAKEN", f"the tenant has a project named {name}; choose another", field="project.name")
