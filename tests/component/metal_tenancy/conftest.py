"""tenancy as it runs, with the tokens of an operator and of a few people."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.duration_pb2 import Duration
from metal_kit.runtime import RunningService
from metal_tenancy.bootstrap import operator_token
from metal_tenancy.service import SPEC, Settings
from metalplane.common.v1.access_pb2 import PlaneRole, Role
from metalplane.tenancy.v1 import project_pb2, tenant_pb2, token_pb2
from metalplane.tenancy.v1.project_pb2_grpc import ProjectServiceStub
from metalplane.tenancy.v1.tenant_pb2_grpc import TenantServiceStub
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceStub
from oidc_provider import CLIENT, OidcProvider, serving


@dataclass
class Tenancy:
    """The running service. `as_` of the helpers is a bearer token; the operator's unless given."""

    running: RunningService
    make_stub: Callable[..., Any]
    operator: str

    def tenants(self, token: str = "") -> Any:
        return self.make_stub(self.running, TenantServiceStub, token=token or self.operator)

    def projects(self, token: str = "") -> Any:
        return self.make_stub(self.running, ProjectServiceStub, token=token or self.operator)

    def tokens(self, token: str = "", *, as_: str = "") -> Any:
        if as_:
            return self.make_stub(self.running, TokenServiceStub, as_=as_)
        return self.make_stub(self.running, TokenServiceStub, token=token or self.operator)

    async def tenant(self, name: str = "acme", **fields: Any) -> tenant_pb2.Tenant:
        """A new tenant."""
        request = tenant_pb2.CreateTenantRequest(tenant=tenant_pb2.Tenant(name=name, **fields))
        answer: tenant_pb2.Tenant = await self.tenants().CreateTenant(request)
        return answer

    async def project(self, tenant: str, name: str = "web", *, as_: str = "", **fields: Any) -> project_pb2.Project:
        """A new project."""
        wanted = project_pb2.Project(tenant=tenant, name=name, **fields)
        answer: project_pb2.Project = await self.projects(as_).CreateProject(
            project_pb2.CreateProjectRequest(project=wanted)
        )
        return answer

    async def join(
        self, user: str, role: Role.ValueType, *, tenant: str = "", project: str = "", as_: str = ""
    ) -> None:
        """Make a user a member of a tenant or a project."""
        member = tenant_pb2.Member(user=user, role=role)
        if tenant:
            request = tenant_pb2.SetTenantMemberRequest(tenant=tenant, member=member)
            await self.tenants(as_).SetTenantMember(request)
        if project:
            other = project_pb2.SetProjectMemberRequest(project=project, member=member)
            await self.projects(as_).SetProjectMember(other)

    async def token(
        self,
        user: str = "",
        *,
        as_: str = "",
        projects: Mapping[str, Role.ValueType] | None = None,
        tenants: Mapping[str, Role.ValueType] | None = None,
        plane: PlaneRole.ValueType = PlaneRole.PLANE_ROLE_UNSPECIFIED,
        seconds: int = 3600,
    ) -> token_pb2.CreateTokenResponse:
        """A new token; without roles it stands for its user."""
        wanted = token_pb2.Token(user=user, project_roles=projects or {}, tenant_roles=tenants or {}, plane_role=plane)
        answer: token_pb2.CreateTokenResponse = await self.tokens(as_).CreateToken(
            token_pb2.CreateTokenRequest(token=wanted, lifetime=Duration(seconds=seconds))
        )
        return answer

    async def person(self, user: str, role: Role.ValueType, *, tenant: str = "", project: str = "") -> str:
        """A member with a token of his own; its secret."""
        await self.join(user, role, tenant=tenant, project=project)
        return (await self.token(user)).secret

    async def check(self, secret: str) -> token_pb2.Token:
        """What another service is told of a token: past the cache of the kit, which a test would have to wait for."""
        stub = self.tokens(as_="spiffe://metalplane/service/ipam")
        answer: token_pb2.CheckTokenResponse = await stub.CheckToken(token_pb2.CheckTokenRequest(secret=secret))
        return answer.token


@pytest.fixture
def token_key(tmp_path: Path) -> Path:
    """A signing key."""
    path = tmp_path / "tokens.pem"
    path.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return path


@pytest.fixture
async def tenancy_url(new_database: Callable[..., Awaitable[str]]) -> str:
    """URL of a database with the service's schema."""
    return await new_database("tenancy", "metal_tenancy")


@pytest.fixture
async def tenancy(
    start_service: Callable[..., Awaitable[RunningService]],
    stub: Callable[..., Any],
    tenancy_url: str,
    nats_url: str,
    token_key: Path,
) -> Tenancy:
    """The service, with an operator's token from the bootstrap command's function."""
    running = await start_service(SPEC, database_url=tenancy_url, nats_url=nats_url, token_key=token_key)
    settings = Settings(database_url=tenancy_url, token_key=token_key)
    secret = await operator_token(settings, user="root", lifetime=timedelta(hours=1), description="test")
    return Tenancy(running, stub, secret)


@pytest.fixture
async def provider() -> AsyncIterator[OidcProvider]:
    """An identity provider."""
    async with serving() as made:
        yield made


@pytest.fixture
async def login_tenancy(
    start_service: Callable[..., Awaitable[RunningService]],
    stub: Callable[..., Any],
    tenancy_url: str,
    token_key: Path,
    provider: OidcProvider,
) -> Tenancy:
    """The service of a plane where people log in at that provider."""
    running = await start_service(
        SPEC, database_url=tenancy_url, token_key=token_key, oidc_issuer=provider.issuer, oidc_client_id=CLIENT,
        oidc_operator_groups=("plane-ops",), oidc_viewer_groups=("plane-look",),
    )  # fmt: skip
    settings = Settings(database_url=tenancy_url, token_key=token_key)
    secret = await operator_token(settings, user="root", lifetime=timedelta(hours=1), description="test")
    return Tenancy(running, stub, secret)
