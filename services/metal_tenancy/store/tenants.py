"""Tenants."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg
from metal_kit.db import Connection
from metal_kit.errors import AlreadyExists, FailedPrecondition

COLUMNS = "id::text, name, description, labels, version, create_time, update_time"
INSERT = f"INSERT INTO tenant (id, name, description, labels) VALUES ($1, $2, $3, $4) RETURNING {COLUMNS}"
GET = f"SELECT {COLUMNS} FROM tenant WHERE id = $1"
LOCK = f"{GET} FOR UPDATE"
# tenant.id, since a bare one would be the text of the result, which no index has. Two statements, as one has one plan.
LIST = f"SELECT {COLUMNS} FROM tenant WHERE id > $1 ORDER BY tenant.id LIMIT $2"
LIST_SOME = f"SELECT {COLUMNS} FROM tenant WHERE id > $1 AND id = ANY ($3::uuid[]) ORDER BY tenant.id LIMIT $2"
UPDATE = f"""
UPDATE tenant SET name = $2, description = $3, labels = $4, version = version + 1, update_time = clock_timestamp()
WHERE id = $1 RETURNING {COLUMNS}
"""
EXISTING = "SELECT id::text FROM tenant WHERE id = ANY ($1::uuid[])"
DELETE = "DELETE FROM tenant WHERE id = $1"


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A tenant as stored."""

    id: str
    name: str
    description: str
    labels: Mapping[str, str]
    version: int
    create_time: datetime
    update_time: datetime


class TenantStore:
    """Tenants, by id."""

    async def insert(
        self, conn: Connection, id_: str, name: str, description: str, labels: Mapping[str, str]
    ) -> TenantRow:
        """Insert a tenant. AlreadyExists when the name is taken."""
        try:
            return TenantRow(**await _one(conn, INSERT, id_, name, description, dict(labels)))
        except asyncpg.UniqueViolationError:
            raise _taken(name) from None

    async def get(self, conn: Connection, tenant: str, *, lock: bool = False) -> TenantRow | None:
        """One tenant; `lock` keeps others from changing it until the transaction ends."""
        row = await conn.fetchrow(LOCK if lock else GET, tenant)
        return TenantRow(**row) if row else None

    async def page(self, conn: Connection, only: Sequence[str] | None, *, after: str, limit: int) -> list[TenantRow]:
        """Tenants with an id above `after`, only those in `only` unless it is None."""
        if only is None:
            rows = await conn.fetch(LIST, after, limit)
        else:
            rows = await conn.fetch(LIST_SOME, after, limit, list(only))
        return [TenantRow(**row) for row in rows]

    async def existing(self, conn: Connection, tenants: Collection[str]) -> set[str]:
        """Those of the ids that tenants have."""
        return {row["id"] for row in await conn.fetch(EXISTING, list(tenants))}

    async def update(self, conn: Connection, row: TenantRow) -> TenantRow:
        """Write name, description, labels. AlreadyExists when the name is taken."""
        try:
            return TenantRow(**await _one(conn, UPDATE, row.id, row.name, row.description, dict(row.labels)))
        except asyncpg.UniqueViolationError:
            raise _taken(row.name) from None

    async def delete(self, conn: Connection, tenant: str) -> None:
        """Delete a tenant. FailedPrecondition while it has projects."""
        try:
            await conn.execute(DELETE, tenant)
        except asyncpg.ForeignKeyViolationError:
            raise FailedPrecondition("HAS_PROJECTS", "the tenant has projects; delete them first") from None


async def _one(conn: Connection, sql: str, *values: object) -> asyncpg.Record:
    row = await conn.fetchrow(sql, *values)
    if row is None:
        raise RuntimeError("the row vanished under its own lock")
    return row


def _taken(name: str) -> AlreadyExists:
    return AlreadyExists("NAME_TAKEN", f"a tenant named {name} exists; choose another name", field="tenant.name")
