"""Bearer tokens, and who one is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration
from metal_kit.client import Peers
from metalplane.common.v1.access_pb2 import PlaneRole, Role
from metalplane.tenancy.v1 import token_pb2 as pb
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceStub

from metalctl.output import show_one
from metalctl.session import fail, run

ROLES = ("viewer", "editor", "owner")


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to their group."""
    groups["token"].command("create", help="make a token; its secret is shown once")(create)
    groups["token"].command("revoke", help="end a token at once")(revoke)


def create(
    ctx: typer.Context,
    user: Annotated[str, typer.Option(help="user that it speaks for; you, when left out")] = "",
    description: Annotated[str, typer.Option(help="what it is for")] = "",
    project: Annotated[list[str] | None, typer.Option(help="ID=viewer|editor|owner, repeatable")] = None,
    tenant: Annotated[list[str] | None, typer.Option(help="ID=viewer|editor|owner, repeatable")] = None,
    plane: Annotated[str, typer.Option(help="role on the plane: viewer or operator")] = "",
    hours: Annotated[float, typer.Option(help="hours that it holds", min=1 / 60, max=8784)] = 8.0,
) -> None:
    """Make a token."""
    request = pb.CreateTokenRequest(
        token=pb.Token(
            user=user,
            description=description,
            project_roles=_roles("--project", project or []),
            tenant_roles=_roles("--tenant", tenant or []),
            plane_role=_plane_role(plane),
        ),
        lifetime=Duration(seconds=int(hours * 3600)),
    )

    async def body(peers: Peers) -> pb.CreateTokenResponse:
        return await peers.stub(TokenServiceStub, "tenancy").CreateToken(request)

    show_one(run(ctx.obj, body), ctx.obj.output)


def revoke(ctx: typer.Context, token: Annotated[str, typer.Argument(help="id of the token")]) -> None:
    """End a token."""

    async def body(peers: Peers) -> None:
        await peers.stub(TokenServiceStub, "tenancy").RevokeToken(pb.RevokeTokenRequest(id=token))

    run(ctx.obj, body)


def whoami(ctx: typer.Context) -> None:
    """Say who the plane takes you for."""

    async def body(peers: Peers) -> pb.WhoAmIResponse:
        return await peers.stub(TokenServiceStub, "tenancy").WhoAmI(pb.WhoAmIRequest())

    show_one(run(ctx.obj, body), ctx.obj.output)


def _roles(option: str, pairs: Sequence[str]) -> dict[str, Role.ValueType]:
    found: dict[str, Role.ValueType] = {}
    for pair in pairs:
        scope, _, role = pair.partition("=")
        if role not in ROLES:
            fail(f"{option} {pair}: write ID=viewer, ID=editor or ID=owner", 2)
        found[scope] = Role.Value(f"ROLE_{role.upper()}")
    return found


def _plane_role(role: str) -> PlaneRole.ValueType:
    if not role:
        return PlaneRole.PLANE_ROLE_UNSPECIFIED
    if role not in {"viewer", "operator"}:
        fail(f"--plane {role}: write viewer or operator", 2)
    return PlaneRole.Value(f"PLANE_ROLE_{role.upper()}")
