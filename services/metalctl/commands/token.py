"""Bearer tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration
from metal_kit.client import Peers
from metalplane.common.v1.access_pb2 import PlaneRole, Role
from metalplane.tenancy.v1 import token_pb2 as pb
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceStub

from metalctl import command, naming
from metalctl.failure import USAGE, fail
from metalctl.output import show_one
from metalctl.session import run

ROLES = ("viewer", "editor", "owner")


class PlaneWord(StrEnum):
    """Roles on the plane."""

    VIEWER = "viewer"
    OPERATOR = "operator"


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to their group."""
    command.add(groups["token"], "create", create, "make a token; its secret is shown once")
    command.add(groups["token"], "revoke", revoke, "end a token at once")


def create(
    ctx: typer.Context,
    user: Annotated[str, typer.Option(help="user that it speaks for; you, when left out")] = "",
    description: Annotated[str, typer.Option(help="what it is for")] = "",
    project: Annotated[
        list[str] | None, typer.Option(help="role on a project: PROJECT=viewer|editor|owner; repeatable")
    ] = None,
    tenant: Annotated[
        list[str] | None, typer.Option(help="role on a tenant: TENANT=viewer|editor|owner; repeatable")
    ] = None,
    plane: Annotated[PlaneWord | None, typer.Option(help="role on the plane")] = None,
    hours: Annotated[float, typer.Option(help="hours that it holds: a minute to a year", min=1 / 60, max=8784)] = 8.0,
) -> None:
    """Make a token."""
    projects, tenants = _roles("--project", project or []), _roles("--tenant", tenant or [])
    token = pb.Token(user=user, description=description, plane_role=_plane_role(plane))

    async def body(peers: Peers) -> pb.CreateTokenResponse:
        for name, role in projects:
            token.project_roles[await naming.project(peers, name)] = role
        for name, role in tenants:
            token.tenant_roles[await naming.tenant(peers, name)] = role
        request = pb.CreateTokenRequest(token=token, lifetime=Duration(seconds=round(hours * 3600)))
        return await peers.stub(TokenServiceStub, "tenancy").CreateToken(request)

    show_one(run(ctx.obj, body), ctx.obj.output)


def revoke(
    ctx: typer.Context,
    token: Annotated[str, typer.Argument(help="id of the token")],
    made_with_it: Annotated[
        bool, typer.Option("--made-with-it", help="also all tokens that were made with it, and with those")
    ] = False,
) -> None:
    """End a token."""
    request = pb.RevokeTokenRequest(id=token, made_with_it=made_with_it)

    async def body(peers: Peers) -> None:
        await peers.stub(TokenServiceStub, "tenancy").RevokeToken(request)

    run(ctx.obj, body)


def _roles(option: str, pairs: Sequence[str]) -> list[tuple[str, Role.ValueType]]:
    found: list[tuple[str, Role.ValueType]] = []
    for pair in pairs:
        scope, _, role = pair.partition("=")
        if role not in ROLES or not scope:
            fail(f"{option} {pair}: write NAME=viewer, NAME=editor or NAME=owner, with an id or a name", USAGE)
        found.append((scope, Role.Value(f"ROLE_{role.upper()}")))
    return found


def _plane_role(role: PlaneWord | None) -> PlaneRole.ValueType:
    return PlaneRole.Value(f"PLANE_ROLE_{role.upper()}") if role else PlaneRole.PLANE_ROLE_UNSPECIFIED
