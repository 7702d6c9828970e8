"""Making tokens and saying what they are worth; what servicers, logins and the bootstrap command share."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from metal_kit.clock import Clock
from metal_kit.db import Connection, Database
from metal_kit.errors import ResourceExhausted
from metal_kit.ids import uuid7

from metal_tenancy.roles import Grants, effective
from metal_tenancy.signing import Claims, Signer, invalid
from metal_tenancy.store import MemberStore, ProjectStore, TokenRow, TokenStore

# Tokens of one user that hold at the same time; and so many again of his logins, which end within a day.
MOST_LIVING = 1000


@dataclass(frozen=True, slots=True)
class Wish:
    """A token to be made. The rest is what the store's row says of it."""

    user: str
    grants: Grants
    issued: datetime
    expires: datetime
    description: str
    creator: str
    by_operator: bool = False
    login: bool = False
    plane_until: datetime | None = None
    made_with: str | None = None


@dataclass(slots=True)
class Issuer:
    """Issues and checks tokens."""

    db: Database
    signer: Signer
    clock: Clock
    tokens: TokenStore = field(default_factory=TokenStore)
    members: MemberStore = field(default_factory=MemberStore)
    projects: ProjectStore = field(default_factory=ProjectStore)

    async def issue(self, conn: Connection, wish: Wish) -> tuple[TokenRow, str]:
        """A new token and its secret, which is shown to its maker and stored nowhere. Whether he may have it is not
        asked here."""
        row = TokenRow(
            id=uuid7(),
            username=wish.user,
            description=wish.description,
            project_roles=dict(wish.grants.projects),
            tenant_roles=dict(wish.grants.tenants),
            plane_role=wish.grants.plane,
            by_operator=wish.by_operator,
            creator=wish.creator,
            create_time=wish.issued,
            expire_time=wish.expires,
            login=wish.login,
            plane_until=wish.plane_until,
            made_with=wish.made_with,
        )
        row = await self.tokens.insert(conn, row)
        secret = self.signer.sign(Claims(row.id, row.username), issued=row.create_time, expires=row.expire_time)
        return row, secret

    async def check_room(self, conn: Connection, user: str, *, login: bool = False) -> None:
        """Raise ResourceExhausted when the user has as many tokens as one may have."""
        if await self.tokens.count_living(conn, user, login=login, limit=MOST_LIVING) >= MOST_LIVING:
            what = "logins" if login else "tokens"
            raise ResourceExhausted(
                "TOO_MANY_TOKENS", f"{user} has {MOST_LIVING} {what} that hold; revoke some, or wait for their end"
            )

    async def check(self, secret: str) -> tuple[TokenRow, Grants]:
        """A token and what it is worth now. Unauthenticated when it does not hold."""
        now = self.clock.now()
        claims = self.signer.verify(secret, now=now)
        async with self.db.connection() as conn:
            row = await self.tokens.get(conn, claims.id)
            if row is None or not _holds(row, now) or row.username != claims.user:
                raise invalid()
            return row, await self._worth(conn, row)

    async def maker(self, conn: Connection, token: str) -> tuple[TokenRow, Grants]:
        """The token that another one is made with, and its worth in this transaction, which keeps it from being revoked
        meanwhile: what is remembered of it may be seconds old, and what is made now may hold for a year.

        Raises Unauthenticated when it has ended.
        """
        row = await self.tokens.hold(conn, token)
        if row is None or not _holds(row, self.clock.now()):
            raise invalid()
        return row, await self._worth(conn, row)

    async def _worth(self, conn: Connection, row: TokenRow) -> Grants:
        memberships = await self.members.of_user(conn, row.username)
        projects = {*row.project_roles, *memberships.projects}
        tenants = {*row.tenant_roles, *memberships.tenants}
        tenant_of = await self.projects.tenants(conn, projects, tenants)
        return effective(row.grants, memberships, tenant_of, by_operator=row.by_operator, login=row.login)


def _holds(row: TokenRow, now: datetime) -> bool:
    return row.revoke_time is None and row.expire_time > now
