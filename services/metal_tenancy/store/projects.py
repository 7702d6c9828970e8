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
        sql, arguments = list_statement(seen, tenant, name, after=after, limit=limit)
        return [ProjectRow(**row) for row in await conn.fetch(sql, *arguments)]

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


def list_statement(seen: Visible | None, tenant: str, name: str, *, after: str, limit: int) -> tuple[str, list[object]]:
    """The query of one page, put together from the filters that are set: one statement for all would have one plan.

    For somebody who sees some projects and some tenants, the page is the first of these projects and of a page of each
    tenant: no index has the order of the ids over several.
    """
    arguments: list[object] = [after]
    everything = seen is None or (tenant and tenant in seen.tenants)
    tail = f"ORDER BY p.id LIMIT {limit:d}"
    # There is one at most of a tenant and a name: IS TRUE keeps it from being looked for by id.
    where = "(p.id > $1) IS TRUE" if name and (tenant or not everything) else "p.id > $1"
    for column, value in (("tenant", tenant), ("name", name)):
        if value:
            arguments.append(value)
            where += f" AND p.{column} = ${len(arguments)}"
    if seen is None or everything:
        return f"SELECT {COLUMNS} FROM project p WHERE {where} {'' if tenant and name else tail}", arguments
    each = "LIMIT 1" if name else tail
    arguments += [list(seen.projects), sorted(set(seen.tenants))]
    projects, tenants = f"${len(arguments) - 1}::uuid[]", f"${len(arguments)}::uuid[]"
    return (
        f"""
        WITH mine AS MATERIALIZED (SELECT * FROM project WHERE id = ANY ({projects}) AND tenant <> ALL ({tenants}))
        SELECT {COLUMNS} FROM (
            SELECT p.* FROM mine p WHERE {where}
            UNION ALL
            SELECT p.* FROM unnest({tenants}) AS seen (id)
            CROSS JOIN LATERAL (SELECT * FROM project p WHERE p.tenant = seen.id AND {where} {each}) AS p
        ) AS p {tail}
        """,
        arguments,
    )


def _there(row: asyncpg.Record | None) -> asyncpg.Record:
    if row is None:
        raise RuntimeError("the row vanished under its own lock")
    return row


def _taken(name: str) -> AlreadyExists:
    return AlreadyExists("NAME_TAKEN", f"the tenant has a project named {name}; choose another", field="project.name")
