"""Making tokens and saying what they are worth; what the servicer and the bootstrap command share."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from metal_kit.clock import Clock
from metal_kit.db import Connection, Database
from metal_kit.ids import uuid7

from metal_tenancy.roles import Grants, effective
from metal_tenancy.signing import Claims, Signer, invalid
from metal_tenancy.store import MemberStore, ProjectStore, TokenRow, TokenStore


@dataclass(slots=True)
class Issuer:
    """Issues and checks tokens."""

    db: Database
    signer: Signer
    clock: Clock
    tokens: TokenStore = field(default_factory=TokenStore)
    members: MemberStore = field(default_factory=MemberStore)
    projects: ProjectStore = field(default_factory=ProjectStore)

    async def issue(
        self, user: str, grants: Grants, lifetime: timedelta, *, description: str, creator: str, by_operator: bool
    ) -> tuple[TokenRow, str]:
        """A new token and its secret, which is shown to its maker and stored nowhere."""
        now = self.clock.now()
        row = TokenRow(
            id=uuid7(),
            username=user,
            description=description,
            project_roles=dict(grants.projects),
            tenant_roles=dict(grants.tenants),
            plane_role=grants.plane,
            by_operator=by_operator,
            creator=creator,
            create_time=now,
            expire_time=now + lifetime,
        )
        async with self.db.transaction(purpose="make a token") as conn:
            row = await self.tokens.insert(conn, row)
        return row, self.signer.sign(Claims(row.id, user), issued=now, expires=row.expire_time)

    async def check(self, secret: str) -> tuple[TokenRow, Grants]:
        """A token and what it is worth now. Unauthenticated when it does not hold."""
        now = self.clock.now()
        claims = self.signer.verify(secret, now=now)
        async with self.db.connection() as conn:
            row = await self.tokens.get(conn, claims.id)
            if row is None or row.revoke_time is not None or row.expire_time <= now or row.username != claims.user:
                raise invalid()
            return row, await self._worth(conn, row)

    async def _worth(self, conn: Connection, row: TokenRow) -> Grants:
        memberships = await self.members.of_user(conn, row.username)
        projects = {*row.project_roles, *memberships.projects}
        tenants = {*row.tenant_roles, *memberships.tenants}
        tenant_of = await self.projects.tenants(conn, projects, tenants)
        return effective(row.grants, memberships, tenant_of, by_operator=row.by_operator)
