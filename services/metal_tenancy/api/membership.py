"""Who belongs to a tenant or a project: the same three calls for both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from google.protobuf.empty_pb2 import Empty
from metal_kit.db import Connection, Database
from metal_kit.identity import missing
from metal_kit.paging import Paging
from metalplane.tenancy.v1.tenant_pb2 import Member

from metal_tenancy.store import MemberStore
from metal_tenancy.store.members import Scope


@dataclass(slots=True)
class Membership:
    """Members of all tenants, or of all projects; `exists` says whether there is the one of that id."""

    scope: Scope
    db: Database
    paging: Paging
    exists: Callable[[Connection, str], Awaitable[bool]]
    members: MemberStore = field(default_factory=MemberStore)

    async def set(self, owner: str, member: Member) -> Member:
        """Give a user a role, or change it. Raises NotFound without the tenant or project."""
        async with self.db.transaction(purpose="set a member") as conn:
            await self.members.set(conn, self.scope, owner, member.user, member.role)
        return member

    async def remove(self, owner: str, user: str) -> Empty:
        """Take a user's role away; without effect when there is none."""
        async with self.db.transaction(purpose="remove a member") as conn:
            await self.members.remove(conn, self.scope, owner, user)
        return Empty()

    async def page(self, owner: str, page_size: int, page_token: str) -> tuple[list[Member], str]:
        """Members by name, and the token of the next page. Raises NotFound without the tenant or project."""
        page = self.paging.page(page_size, page_token, filter_key=f"{self.scope}-members:{owner}")
        async with self.db.connection() as conn:
            found = await self.members.page(conn, self.scope, owner, after=page.after_text(), limit=page.limit)
            if not found and not await self.exists(conn, owner):
                raise missing(f"{self.scope} {owner}")
        shown, token = page.cut(found, lambda row: (row[0],))
        return [Member(user=user, role=role) for user, role in shown], token  # type: ignore[arg-type]
