"""Tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from asyncpg import Record
from metal_kit.db import Connection

from metal_tenancy.roles import Grants

COLUMNS = """
    id::text, username, description, project_roles, tenant_roles, plane_role, by_operator, creator, create_time,
    expire_time, revoke_time, login, plane_until, made_with::text
"""
INSERT = f"""
INSERT INTO token (id, username, description, project_roles, tenant_roles, plane_role, by_operator, creator,
                   create_time, expire_time, login, plane_until, made_with)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) RETURNING {COLUMNS}
"""
GET = f"SELECT {COLUMNS} FROM token WHERE id = $1"
# Two may be made with one token at the same time; none while it is revoked.
HOLD = f"{GET} FOR SHARE"
LOCK = f"{GET} FOR UPDATE"
LOCK_MADE_WITH = f"SELECT {COLUMNS} FROM token WHERE made_with = ANY ($1::uuid[]) FOR UPDATE"
# Two that count at the same time would each find room for one more.
LOCK_USER = "SELECT pg_advisory_xact_lock(hashtextextended('token of ' || $1, 0))"
COUNT_LIVING = """
SELECT count(*) FROM (
    SELECT FROM token WHERE username = $1 AND login = $2 AND revoke_time IS NULL AND expire_time > now() LIMIT $3
) AS living
"""
# token.id, since a bare one would be the text of the result, which no index has. Two statements, as one has one plan.
LIST = f"SELECT {COLUMNS} FROM token WHERE id > $1 ORDER BY token.id LIMIT $2"
LIST_OF_USER = f"SELECT {COLUMNS} FROM token WHERE id > $1 AND username = $3 ORDER BY token.id LIMIT $2"
REVOKE = "UPDATE token SET revoke_time = clock_timestamp() WHERE id = ANY ($1::uuid[]) AND revoke_time IS NULL"
# now(), not clock_timestamp(): an index is searched only for what stays the same during the statement. What others were
# made with stays as long as they do: by it they are found when it is revoked with all that came of it.
FORGET = """
DELETE FROM token WHERE expire_time < now() - $1::interval
                    AND NOT EXISTS (SELECT FROM token AS made WHERE made.made_with = token.id)
"""
EXCHANGE = """
INSERT INTO exchanged_id_token (digest, useless_after) VALUES ($1, $2) ON CONFLICT (digest) DO NOTHING
"""
# Kept for longer than needed: the clock that judges the age of ID tokens is not this one.
FORGET_EXCHANGED = "DELETE FROM exchanged_id_token WHERE useless_after < now() - interval '1 hour'"


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
    login: bool = False
    plane_until: datetime | None = None
    made_with: str | None = None

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
            row.plane_role, row.by_operator, row.creator, row.create_time, row.expire_time, row.login,
            row.plane_until, row.made_with,
        )  # fmt: skip
        if new is None:
            raise RuntimeError("INSERT … RETURNING gave no row")
        return TokenRow(**new)

    async def get(self, conn: Connection, token: str) -> TokenRow | None:
        """One token, ended or not."""
        return _row(await conn.fetchrow(GET, token))

    async def hold(self, conn: Connection, token: str) -> TokenRow | None:
        """The same; nobody can revoke it before the transaction ends."""
        return _row(await conn.fetchrow(HOLD, token))

    async def lock(self, conn: Connection, token: str) -> TokenRow | None:
        """The same; nobody can make another one with it before the transaction ends."""
        return _row(await conn.fetchrow(LOCK, token))

    async def lock_made_with(self, conn: Connection, tokens: Sequence[str]) -> list[TokenRow]:
        """Tokens that were made with these, locked like them."""
        return [TokenRow(**row) for row in await conn.fetch(LOCK_MADE_WITH, list(tokens))]

    async def count_living(self, conn: Connection, user: str, *, login: bool, limit: int) -> int:
        """How many of a user's tokens hold, of logins or other ones; counts to `limit`. Until the transaction ends
        nobody else can count them."""
        await conn.execute(LOCK_USER, user)
        return int(await conn.fetchval(COUNT_LIVING, user, login, limit))

    async def page(self, conn: Connection, user: str | None, *, after: str, limit: int) -> list[TokenRow]:
        """Tokens with an id above `after`, of one user or (None) of all."""
        arguments = (LIST, after, limit) if user is None else (LIST_OF_USER, after, limit, user)
        return [TokenRow(**row) for row in await conn.fetch(*arguments)]

    async def revoke(self, conn: Connection, tokens: Sequence[str]) -> None:
        """End tokens; without effect on those that are revoked."""
        await conn.execute(REVOKE, list(tokens))

    async def forget(self, conn: Connection, older_than: timedelta) -> None:
        """Drop tokens that expired longer ago than this."""
        await conn.execute(FORGET, older_than)

    async def exchange(self, conn: Connection, digest: bytes, useless_after: datetime) -> bool:
        """Remember an ID token until it is useless; False when it was exchanged before."""
        return bool(await conn.execute(EXCHANGE, digest, useless_after) == "INSERT 0 1")

    async def forget_exchanged(self, conn: Connection) -> None:
        """Drop ID tokens that have become useless."""
        await conn.execute(FORGET_EXCHANGED)


def _row(row: Record | None) -> TokenRow | None:
    return TokenRow(**row) if row else None
