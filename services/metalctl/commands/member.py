"""Members of tenants and projects: who may do what there. The same three commands for both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer
from google.protobuf.message import Message
from metal_kit.client import Peers
from metalplane.common.v1.access_pb2 import Role
from metalplane.tenancy.v1 import project_pb2, tenant_pb2
from metalplane.tenancy.v1.project_pb2_grpc import ProjectServiceStub
from metalplane.tenancy.v1.tenant_pb2_grpc import TenantServiceStub

from metalctl import command, naming, values
from metalctl.output import Columns, show_many, show_row
from metalctl.session import run

COLUMNS: Columns = (("USER", lambda member: member.user), ("ROLE", lambda member: values.enum(Role, member.role)))


class RoleWord(StrEnum):
    """Roles on a tenant or a project."""

    VIEWER = "viewer"
    EDITOR = "editor"
    OWNER = "owner"


@dataclass(frozen=True, slots=True)
class Scope:
    """What has members: its messages are the ones whose names end alike for both."""

    name: str
    stub: Callable[..., Any]
    contract: Any

    def request(self, kind: str, **fields: Any) -> Message:
        """A request such as SetProjectMemberRequest."""
        made: Message = getattr(self.contract, f"{kind}Request".replace("Scope", self.name.capitalize()))(**fields)
        return made

    def method(self, peers: Peers, kind: str) -> Any:
        """A method such as SetProjectMember."""
        return getattr(peers.stub(self.stub, "tenancy"), kind.replace("Scope", self.name.capitalize()))


SCOPES = (Scope("tenant", TenantServiceStub, tenant_pb2), Scope("project", ProjectServiceStub, project_pb2))


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to the groups of both."""
    for scope in SCOPES:
        group, of = groups[scope.name], f"a {scope.name}"
        command.add(group, "members", _members(scope), f"list who has a role on {of}")
        command.add(group, "set-member", _set(scope), f"give a user a role on {of}, or change it")
        command.add(group, "remove-member", _remove(scope), f"take a user's role on {of} away")


Where = Annotated[str, typer.Argument(metavar="SCOPE", help="its id or name")]
User = Annotated[str, typer.Argument(help="name of the user, as `whoami` shows it")]


def _members(scope: Scope) -> Callable[..., None]:
    def members(ctx: typer.Context, where: Where) -> None:
        async def body(peers: Peers) -> list[Message]:
            id_ = await naming.RESOLVERS[scope.name](peers, where)
            request = scope.request("ListScopeMembers", **{scope.name: id_})
            return [each async for each in naming.pages(scope.method(peers, "ListScopeMembers"), request, "members")]

        show_many(run(ctx.obj, body), COLUMNS, ctx.obj.output)

    return members


def _set(scope: Scope) -> Callable[..., None]:
    def set_member(
        ctx: typer.Context, where: Where, user: User, role: Annotated[RoleWord, typer.Argument(help="the role")]
    ) -> None:
        member = tenant_pb2.Member(user=user, role=Role.Value(f"ROLE_{role.name}"))

        async def body(peers: Peers) -> Message:
            id_ = await naming.RESOLVERS[scope.name](peers, where)
            request = scope.request("SetScopeMember", member=member, **{scope.name: id_})
            answer: Message = await scope.method(peers, "SetScopeMember")(request)
            return answer

        show_row(run(ctx.obj, body), COLUMNS, ctx.obj.output)

    return set_member


def _remove(scope: Scope) -> Callable[..., None]:
    def remove_member(ctx: typer.Context, where: Where, user: User) -> None:
        async def body(peers: Peers) -> None:
            id_ = await naming.RESOLVERS[scope.name](peers, where)
            await scope.method(peers, "RemoveScopeMember")(
                scope.request("RemoveScopeMember", user=user, **{scope.name: id_})
            )

        run(ctx.obj, body)

    return remove_member
