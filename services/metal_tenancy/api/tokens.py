"""TokenService."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from google.protobuf.empty_pb2 import Empty
from metal_kit.db import Database
from metal_kit.errors import FailedPrecondition, PermissionDenied
from metal_kit.identity import Caller, current_caller, missing
from metal_kit.outbox import emit
from metal_kit.paging import Paging
from metalplane.common.v1.access_pb2 import PlaneRole
from metalplane.tenancy.v1 import token_pb2 as pb
from metalplane.tenancy.v1.events_pb2 import TokenRevoked
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceServicer

from metal_tenancy.api.messages import token_message
from metal_tenancy.issuing import Issuer
from metal_tenancy.roles import Grants, check_grantable
from metal_tenancy.store import ProjectStore, TokenStore

FIRST_ID = "00000000-0000-0000-0000-000000000000"


@dataclass(slots=True)
class TokenApi(TokenServiceServicer):
    """Tokens."""

    db: Database
    paging: Paging
    issuer: Issuer
    tokens: TokenStore = field(default_factory=TokenStore)
    projects: ProjectStore = field(default_factory=ProjectStore)

    async def CreateToken(self, request: pb.CreateTokenRequest, context: Any) -> pb.CreateTokenResponse:
        caller = current_caller()
        operator = caller.may_plane(PlaneRole.PLANE_ROLE_OPERATOR)
        user = request.token.user or (caller.name if caller.kind == "user" else "")
        if not user:
            raise FailedPrecondition("NO_USER", "name the user that the token is for", field="token.user")
        if user != caller.name and not operator:
            raise PermissionDenied(
                "TOKEN_FOR_OTHERS",
                "only plane operators make tokens for others: leave it out",
                field="token.user",
            )
        wanted = Grants(request.token.project_roles, request.token.tenant_roles, request.token.plane_role)
        async with self.db.connection() as conn:
            tenant_of = await self.projects.tenants(conn, wanted.projects, [])
        check_grantable(wanted, Grants(caller.projects, caller.tenants, caller.plane_role), tenant_of)
        lifetime: timedelta = request.lifetime.ToTimedelta()
        row, secret = await self.issuer.issue(
            user,
            wanted,
            lifetime,
            description=request.token.description,
            creator=caller.label,
            by_operator=operator,
        )
        return pb.CreateTokenResponse(token=token_message(row), secret=secret)

    async def ListTokens(self, request: pb.ListTokensRequest, context: Any) -> pb.ListTokensResponse:
        caller = current_caller()
        every = caller.may_plane(PlaneRole.PLANE_ROLE_VIEWER)
        user = (request.user or None) if every else caller.name
        if not every and request.user not in {"", caller.name}:
            raise PermissionDenied("TOKENS_OF_OTHERS", "you see only your own tokens; leave the user out", field="user")
        filter_key = f"tokens:{user or ''}"
        size = self.paging.page_size(request.page_size)
        key = self.paging.parse(request.page_token, filter_key=filter_key)
        async with self.db.connection() as conn:
            rows = await self.tokens.page(conn, user, after=str(key[0]) if key else FIRST_ID, limit=size + 1)
        page = rows[:size]
        more = len(rows) > size
        return pb.ListTokensResponse(
            tokens=[token_message(row) for row in page],
            next_page_token=self.paging.token((page[-1].id,), filter_key=filter_key) if more else "",
        )

    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: Any) -> Empty:
        async with self.db.transaction(purpose="revoke a token") as conn:
            row = await self.tokens.get(conn, request.id)
            if row is None or not _may_revoke(current_caller(), row.username):
                raise missing(f"token {request.id}")
            if await self.tokens.revoke(conn, request.id):
                await emit(
                    conn,
                    subject="metalplane.tenancy.token.revoked",
                    entity="token",
                    entity_id=request.id,
                    version=2,
                    payload=TokenRevoked(id=request.id),
                    deleted=True,
                )
        return Empty()

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

    async def GetSigningKeys(self, request: pb.GetSigningKeysRequest, context: Any) -> pb.GetSigningKeysResponse:
        return pb.GetSigningKeysResponse(jwks=self.issuer.signer.jwks())


def _may_revoke(caller: Caller, user: str) -> bool:
    return caller.may_plane(PlaneRole.PLANE_ROLE_OPERATOR) or (caller.kind == "user" and caller.name == user)
