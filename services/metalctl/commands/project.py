"""Projects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer
from metal_kit.client import Peers
from metal_kit.ids import uuid7
from metalplane.tenancy.v1.project_pb2 import CreateProjectRequest, DeleteProjectRequest, Project
from metalplane.tenancy.v1.project_pb2_grpc import ProjectServiceStub

from metalctl import command, naming
from metalctl.output import show_one
from metalctl.session import run


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to their group."""
    command.add(groups["project"], "create", create, "make a project in a tenant")
    command.add(groups["project"], "delete", delete, "delete a project; free its machines and networks first")


def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="name, unique within the tenant")],
    tenant: Annotated[str, typer.Option(help="id or name of the tenant")],
    description: Annotated[str, typer.Option(help="free text")] = "",
    quota: Annotated[int, typer.Option(help="most machines at once; 0 for no limit", min=0)] = 0,
) -> None:
    """Make a project."""
    project = Project(name=name, description=description, machine_quota=quota)

    async def body(peers: Peers) -> Project:
        project.tenant = await naming.tenant(peers, tenant)
        stub = peers.stub(ProjectServiceStub, "tenancy")
        return await stub.CreateProject(CreateProjectRequest(request_id=uuid7(), project=project))

    show_one(run(ctx.obj, body), ctx.obj.output)


def delete(ctx: typer.Context, project: Annotated[str, typer.Argument(help="id or name of the project")]) -> None:
    """Delete a project."""

    async def body(peers: Peers) -> None:
        id_ = await naming.project(peers, project)
        await peers.stub(ProjectServiceStub, "tenancy").DeleteProject(DeleteProjectRequest(id=id_))

    run(ctx.obj, body)
