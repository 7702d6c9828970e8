"""Members of tenants and projects; both tables have one shape."""

from __future__ import annotations

from typing import Literal

import asyncpg
from metal_kit.db import Connection
from metal_kit.errors import NotFound

from metal_tenancy.roles import Grants

Scope = Literal["tenant", "project"]


class MemberStore:
    """Roles of users on tenants and projects."""

    async def set(self, conn: Connection, scope: Scope, scope_id: str, user: str, role: int) -> None:
        """Give a user a role, or change it. NotFound without the tenant or project."""
        sql = f"""
            INSERT INTO {scope}_member ({scope}, username, role) VALUES ($1, $2, $3)
            ON CONFLICT ({scope}, username) DO UPDATE SET role = excluded.role
        """
        try:
            await conn.execute(sql, scope_id, user, role)
        except asyncpg.ForeignKeyViolationError:
            raise NotFound("NOT_FOUND", f"{scope} {scope_id} does not exist", field=scope) from None

    async def remove(self, conn: Connection, scope: Scope, scope_id: str, user: str) -> None:
        """Take a user's role away; without effect when there is none."""
        sql = f"DELETE FROM {scope}_member WHERE {scope} = $1 AND username = $2"
        await conn.execute(sql, scope_id, user)

    async def page(
        self, conn: Connection, scope: Scope, scope_id: str, *, after: str, limit: int
    ) -> list[tuple[str, int]]:
        """Users above `after` with their roles, by name."""
        sql = f"""
            SELECT username, role FROM {scope}_member WHERE {scope} = $1 AND username > $2 ORDER BY username LIMIT $3
        """
        return [(row["username"], row["role"]) for row in await conn.fetch(sql, scope_id, after, limit)]

    async def of_user(self, conn: Connection, user: str) -> Grants:
        """All memberships of a user."""
        tenants = await conn.fetch("SELECT tenant::text AS id, role FROM tenant_member WHERE username = $1", user)
        projects = await conn.fetch("SELECT project::text AS id, role FROM project_member WHERE username = $1", user)
        return Grants(
            projects={row["id"]: row["role"] for row in projects}, tenants={row["id"]: row["role"] for row in tenants}
        )
