"""Who the plane takes you for, and what you may do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import typer
from metal_kit.client import Peers
from metal_kit.errors import Problem
from metalplane.common.v1.access_pb2 import PlaneRole, Role
from metalplane.tenancy.v1 import project_pb2, tenant_pb2
from metalplane.tenancy.v1 import token_pb2 as pb
from metalplane.tenancy.v1.project_pb2_grpc import ProjectServiceStub
from metalplane.tenancy.v1.tenant_pb2_grpc import TenantServiceStub
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceStub

from metalctl import naming
from metalctl.output import Format, show_one, write
from metalctl.session import run
from metalctl.table import render, render_pairs
from metalctl.values import enum, minute, until


@dataclass(slots=True)
class _Names:
    """Names of the tenants and projects that the token has roles on, as far as it may read them."""

    tenants: dict[str, str] = field(default_factory=dict)
    projects: dict[str, str] = field(default_factory=dict)
    tenant_of: dict[str, str] = field(default_factory=dict)


def whoami(ctx: typer.Context) -> None:
    """Say who the plane takes you for."""
    table = ctx.obj.output is Format.TABLE

    async def body(peers: Peers) -> tuple[pb.WhoAmIResponse, _Names]:
        answer = await peers.stub(TokenServiceStub, "tenancy").WhoAmI(pb.WhoAmIRequest())
        return answer, await _names(peers, answer.token) if table else _Names()

    answer, names = run(ctx.obj, body)
    if table:
        write(described(answer, names))
    else:
        show_one(answer, ctx.obj.output)


def described(answer: pb.WhoAmIResponse, names: _Names) -> str:
    """The answer for people."""
    token = answer.token
    pairs = [("kind", answer.kind), ("name", answer.name), ("plane role", enum(PlaneRole, token.plane_role))]
    if answer.HasField("token"):
        purpose = f" ({token.description})" if token.description else ""
        ends = token.expire_time
        pairs += [("token", token.id + purpose), ("expires", f"{minute(ends)}, {until(ends)}")]
    parts = [render_pairs(pairs)]
    if token.tenant_roles:
        rows = _rows(token.tenant_roles, names.tenants)
        parts.append(render(["TENANT", "ROLE", "ID"], rows))
    if token.project_roles:
        tenant_of = {project: names.tenants.get(tenant, tenant) for project, tenant in names.tenant_of.items()}
        rows = [
            [name, tenant_of.get(id_, ""), role, id_] for name, role, id_ in _rows(token.project_roles, names.projects)
        ]
        parts.append(render(["PROJECT", "TENANT", "ROLE", "ID"], rows))
    if not (token.plane_role or token.tenant_roles or token.project_roles):
        parts.append("no roles: an owner of a project or tenant, or an operator, can make you a member")
    return "\n\n".join(parts)


def _rows(roles: Mapping[str, Role.ValueType], names: Mapping[str, str]) -> list[list[str]]:
    rows = [[names.get(id_, ""), enum(Role, role), id_] for id_, role in roles.items()]
    return sorted(rows, key=lambda row: (row[0] == "", row[0], row[2]))


async def _names(peers: Peers, token: pb.Token) -> _Names:
    """Names for the ids of the token's roles; what cannot be read stays without one."""
    names = _Names()
    try:
        if token.project_roles:
            projects = peers.stub(ProjectServiceStub, "tenancy").ListProjects
            async for project in naming.pages(projects, project_pb2.ListProjectsRequest(), "projects"):
                names.projects[project.id], names.tenant_of[project.id] = project.name, project.tenant
        if token.tenant_roles or token.project_roles:
            tenants = peers.stub(TenantServiceStub, "tenancy").ListTenants
            async for tenant in naming.pages(tenants, tenant_pb2.ListTenantsRequest(), "tenants"):
                names.tenants[tenant.id] = tenant.name
    except Problem:
        return names
    return names
