"""Tenants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer
from metal_kit.client import Peers
from metal_kit.ids import uuid7
from metalplane.tenancy.v1.tenant_pb2 import CreateTenantRequest, DeleteTenantRequest, Tenant
from metalplane.tenancy.v1.tenant_pb2_grpc import TenantServiceStub

from metalctl import command, naming
from metalctl.output import show_one
from metalctl.session import run


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to their group."""
    command.add(groups["tenant"], "create", create, "make a tenant")
    command.add(groups["tenant"], "delete", delete, "delete a tenant without projects")


def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="unique name")],
    description: Annotated[str, typer.Option(help="free text")] = "",
) -> None:
    """Make a tenant."""
    request = CreateTenantRequest(request_id=uuid7(), tenant=Tenant(name=name, description=description))

    async def body(peers: Peers) -> Tenant:
        return await peers.stub(TenantServiceStub, "tenancy").CreateTenant(request)

    show_one(run(ctx.obj, body), ctx.obj.output)


def delete(ctx: typer.Context, tenant: Annotated[str, typer.Argument(help="id or name of the tenant")]) -> None:
    """Delete a tenant."""

    async def body(peers: Peers) -> None:
        id_ = await naming.tenant(peers, tenant)
        await peers.stub(TenantServiceStub, "tenancy").DeleteTenant(DeleteTenantRequest(id=id_))

    run(ctx.obj, body)
