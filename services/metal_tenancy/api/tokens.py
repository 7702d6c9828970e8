"""TokenService."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from google.protobuf.empty_pb2 import Empty
from metal_kit.db import Connection, Database
from metal_kit.errors import NotFound, PermissionDenied
from metal_kit.identity import Caller, current_caller, missing
from metal_kit.ids import parse_uuid
from metal_kit.outbox import emit
from metal_kit.paging import Paging
from metalplane.common.v1.access_pb2 import PlaneRole
from metalplane.tenancy.v1 import token_pb2 as pb
from metalplane.tenancy.v1.events_pb2 import TokenRevoked
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceServicer

from metal_tenancy.api.messages import token_message
from metal_tenancy.issuing import Issuer, Wish
from metal_tenancy.login import Login, not_configured
from metal_tenancy.roles import OPERATOR, Grants, check_grantable, check_personal, check_plane_until
from metal_tenancy.store import ProjectStore, TenantStore, TokenRow, TokenStore

FIRST_ID = "00000000-0000-0000-0000-000000000000"


@dataclass(slots=True)
class TokenApi(TokenServiceServicer):
    """Tokens."""

    db: Database
    paging: Paging
    issuer: Issuer
    login: Login | None = None
    tokens: TokenStore = field(default_factory=TokenStore)
    projects: ProjectStore = field(default_factory=ProjectStore)
    tenants: TenantStore = field(default_factory=TenantStore)

    async def CreateToken(self, request: pb.CreateTokenRequest, context: Any) -> pb.CreateTokenResponse:
        caller = _person()
        user = request.token.user or caller.name
        wanted = Grants(
            _canonical(request.token.project_roles, "token.project_roles"),
            _canonical(request.token.tenant_roles, "token.tenant_roles"),
            request.token.plane_role,
        )
        now = self.issuer.clock.now()
        lifetime: timedelta = request.lifetime.ToTimedelta()
        async with self.db.transaction(purpose="make a token") as conn:
            # By its worth here and now, not as the caller's roles were when his token was checked.
            own, held = await self.issuer.maker(conn, caller.token_id)
            operator = held.plane >= OPERATOR
            if user != caller.name and not operator:
                raise PermissionDenied(
                    "TOKEN_FOR_OTHERS",
                    "only plane operators make tokens for others: leave it out",
                    field="token.user",
                )
            tenant_of = await self.projects.tenants(conn, wanted.projects, [])
            if not operator:
                await self._check_grantable(conn, own, held, wanted, tenant_of)
            if wanted.plane:
                check_plane_until(own.plane_until, now + lifetime)
            await self._check_there(conn, wanted, tenant_of)
            await self.issuer.check_room(conn, user)
            wish = Wish(
                user,
                wanted,
                now,
                now + lifetime,
                description=request.token.description,
                creator=caller.label,
                by_operator=operator,
                plane_until=own.plane_until,
                made_with=own.id,
            )
            row, secret = await self.issuer.issue(conn, wish)
        return pb.CreateTokenResponse(token=token_message(row), secret=secret)

    async def _check_grantable(
        self, conn: Connection, own: TokenRow, held: Grants, wanted: Grants, tenant_of: Mapping[str, str]
    ) -> None:
        if wanted.personal:
            check_personal(own.grants, login=own.login)
        check_grantable(wanted, held, await self.issuer.members.of_user(conn, own.username), tenant_of)

    async def _check_there(self, conn: Connection, wanted: Grants, tenant_of: Mapping[str, str]) -> None:
        """A grant on something that does not exist is a mistyped id."""
        projects = sorted(wanted.projects.keys() - tenant_of.keys())
        if projects:
            raise NotFound("NOT_FOUND", f"project {projects[0]} does not exist", field="token.project_roles")
        tenants = sorted(wanted.tenants.keys() - await self.tenants.existing(conn, wanted.tenants))
        if tenants:
            raise NotFound("NOT_FOUND", f"tenant {tenants[0]} does not exist", field="token.tenant_roles")

    async def ListTokens(self, request: pb.ListTokensRequest, context: Any) -> pb.ListTokensResponse:
        caller = _person()
        every = caller.may_plane(PlaneRole.PLANE_ROLE_VIEWER)
        user = (request.user or None) if every else caller.name
        if not every and request.user not in {"", caller.name}:
            raise PermissionDenied("TOKENS_OF_OTHERS", "you see only your own tokens; leave the user out", field="user")
        filter_key = f"tokens:{user or ''}"
        page = self.paging.page(request.page_size, request.page_token, filter_key=filter_key)
        async with self.db.connection() as conn:
            rows = await self.tokens.page(conn, user, after=page.after_text(FIRST_ID), limit=page.limit)
        shown, token = page.cut(rows, lambda row: (row.id,))
        return pb.ListTokensResponse(
            tokens=[token_message(row) for row in shown],
            next_page_token=token,
        )

    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: Any) -> Empty:
        caller = current_caller()
        async with self.db.transaction(purpose="revoke a token") as conn:
            row = await self.tokens.lock(conn, request.id)
            if row is None or not _may_revoke(caller, row.username):
                raise missing(f"token {request.id}")
            await self._check_own_reach(conn, caller, row)
            ending = [row]
            while ending:
                await self._end(conn, ending)
                # One generation at a time: those that are locked have no more children than are seen by then.
                ids = [each.id for each in ending]
                ending = await self.tokens.lock_made_with(conn, ids) if request.made_with_it else []
        return Empty()

    async def _check_own_reach(self, conn: Connection, caller: Caller, row: TokenRow) -> None:
        """Raise PermissionDenied when a token that was given some roles, to a script perhaps, would end other ones."""
        if row.id == caller.token_id or caller.may_plane(PlaneRole.PLANE_ROLE_OPERATOR):
            return
        own = await self.tokens.get(conn, caller.token_id)
        if own is None or not (own.login or own.grants.personal):
            raise PermissionDenied(
                "NOT_YOUR_TOKEN", "a token with roles of its own ends no other one; use one without roles, or log in"
            )

    async def _end(self, conn: Connection, rows: Sequence[TokenRow]) -> None:
        await self.tokens.revoke(conn, [row.id for row in rows])
        for row in rows:
            if row.revoke_time is None:
                await emit(
                    conn,
                    subject="metalplane.tenancy.token.revoked",
                    entity="token",
                    entity_id=row.id,
                    version=2,
                    payload=TokenRevoked(id=row.id),
                    deleted=True,
                )

    async def CheckToken(self, request: pb.CheckTokenRequest, context: Any) -> pb.CheckTokenResponse:
        row, grants = await self.issuer.check(request.secret)
        return pb.CheckTokenResponse(token=token_message(row, grants))

    async def WhoAmI(self, request: pb.WhoAmIRequest, context: Any) -> pb.WhoAmIResponse:
        caller = current_caller()
        answer = pb.WhoAmIResponse(kind=caller.kind, name=caller.name)
        if caller.token_id:
            async with self.db.connection() as conn:
                row = await self.tokens.get(conn, caller.token_id)
            if row is not None:
                grants = Grants(caller.projects, caller.tenants, caller.plane_role)
                answer.token.CopyFrom(token_message(row, grants))
        return answer

    async def GetLoginMethods(self, request: pb.GetLoginMethodsRequest, context: Any) -> pb.GetLoginMethodsResponse:
        if self.login is None:
            return pb.GetLoginMethodsResponse()
        provider = self.login.provider
        oidc = pb.OpenIdProvider(issuer=provider.issuer, client_id=provider.client_id, scopes=provider.scopes)
        return pb.GetLoginMethodsResponse(oidc=oidc)

    async def ExchangeIdToken(self, request: pb.ExchangeIdTokenRequest, context: Any) -> pb.ExchangeIdTokenResponse:
        if self.login is None:
            raise not_configured()
        row, secret = await self.login.exchange(request.id_token, request.nonce)
        return pb.ExchangeIdTokenResponse(token=token_message(row), secret=secret)

    async def GetSigningKeys(self, request: pb.GetSigningKeysRequest, context: Any) -> pb.GetSigningKeysResponse:
        return pb.GetSigningKeysResponse(jwks=self.issuer.signer.jwks())


def _person() -> Caller:
    """The caller, when he is a person or a script with a token.

    A certificate names a host, a partition or a service; somebody's user name may be spelt the same, and must not
    become theirs by that.
    """
    caller = current_caller()
    if caller.kind != "user":
        raise PermissionDenied("NOT_A_USER", f"tokens are for users; a {caller.kind} has its certificate")
    return caller


def _canonical(roles: Mapping[str, int], field_name: str) -> dict[str, int]:
    """Ids in the one spelling that rows have."""
    return {parse_uuid(scope, field=field_name): role for scope, role in roles.items()}


def _may_revoke(caller: Caller, user: str) -> bool:
    return caller.may_plane(PlaneRole.PLANE_ROLE_OPERATOR) or (caller.kind == "user" and caller.name == user)
