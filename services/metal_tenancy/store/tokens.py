"""Tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from metal_kit.db import Connection

from metal_tenancy.roles import Grants

COLUMNS = """
    id::text, username, description, project_roles, tenant_roles, plane_role, by_operator, creator, create_time,
    expire_time, revoke_time
"""
INSERT = f"""
INSERT INTO token (id, username, description, project_roles, tenant_roles, plane_role, by_operator, creator,
                   create_time, expire_time)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING {COLUMNS}
"""
GET = f"SELECT {COLUMNS} FROM token WHERE id = $1"
# token.id, since a bare one would be the text of the result, which no index has. Two statements, as one has one plan.
LIST = f"SELECT {COLUMNS} FROM token WHERE id > $1 ORDER BY token.id LIMIT $2"
LIST_OF_USER = f"SELECT {COLUMNS} FROM token WHERE id > $1 AND username = $3 ORDER BY token.id LIMIT $2"
REVOKE = "UPDATE token SET revoke_time = clock_timestamp() WHERE id = $1 AND revoke_time IS NULL"
# now(), not clock_timestamp(): an index is searched only for what stays the same during the statement.
FORGET = "DELETE FROM token WHERE expire_time < now() - $1::interval"


@dataclass(frozen=True, slots=True)
class TokenRow:
    """What is known of a token."""

    id: str
    username: str
    description: str
    project_roles: Mapping[str, int]
    tenant_roles: Mapping[str, int]
    plane_role: int
    by_operator: bool
    creator: str
    create_time: datetime
    expire_time: datetime
    revoke_time: datetime | None = None

    @property
    def grants(self) -> Grants:
        """The roles that the token carries."""
        return Grants(self.project_roles, self.tenant_roles, self.plane_role)


class TokenStore:
    """Tokens, by id."""

    async def insert(self, conn: Connection, row: TokenRow) -> TokenRow:
        """Insert a token."""
        new = await conn.fetchrow(
            INSERT, row.id, row.username, row.description, dict(row.project_roles), dict(row.tenant_roles),
            row.plane_role, row.by_operator, row.creator, row.create_time, row.expire_time,
        )  # fmt: skip
        if new is None:
            raise RuntimeError("INSERT … RETURNING gave no row")
        return TokenRow(**new)

    async def get(self, conn: Connection, token: str) -> TokenRow | None:
        """One token, ended or not."""
        row = await conn.fetchrow(GET, token)
        return TokenRow(**row) if row else None

    async def page(self, conn: Connection, user: str | None, *, after: str, limit: int) -> list[TokenRow]:
        """Tokens with an id above `after`, of one user or (None) of all."""
        arguments = (LIST, after, limit) if user is None else (LIST_OF_USER, after, limit, user)
        return [TokenRow(**row) for row in await conn.fetch(*arguments)]

    async def revoke(self, conn: Connection, token: str) -> bool:
        """End a token; False when it had ended by revocation before."""
        return bool(await conn.execute(REVOKE, token) == "UPDATE 1")

    async def forget(self, conn: Connection, older_than: timedelta) -> None:
        """Drop tokens that expired longer ago than this."""
        await conn.execute(FORGET, older_than)
