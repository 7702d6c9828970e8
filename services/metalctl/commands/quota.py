"""Quotas of addresses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer
from metal_kit.client import Peers
from metalplane.ipam.v1.quota_pb2 import Quota, SetQuotaRequest
from metalplane.ipam.v1.quota_pb2_grpc import QuotaServiceStub

from metalctl import command, naming
from metalctl.output import show_one
from metalctl.session import run


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to their group."""
    command.add(groups["quota"], "set", set_, "set all limits of a project; those that are left out do not limit")


def set_(
    ctx: typer.Context,
    project: Annotated[str, typer.Argument(help="id or name of the project")],
    ipv4: Annotated[int | None, typer.Option(help="most IPv4 addresses at once; 0 allows none", min=0)] = None,
    ipv6: Annotated[int | None, typer.Option(help="most IPv6 addresses at once; 0 allows none", min=0)] = None,
    prefixes: Annotated[int | None, typer.Option(help="most prefixes of child networks; 0 allows none", min=0)] = None,
) -> None:
    """Set the limits of a project."""
    quota = Quota(ipv4_addresses=ipv4, ipv6_addresses=ipv6, prefixes=prefixes)

    async def body(peers: Peers) -> Quota:
        quota.project = await naming.project(peers, project)
        return await peers.stub(QuotaServiceStub, "ipam").SetQuota(SetQuotaRequest(quota=quota))

    show_one(run(ctx.obj, body), ctx.obj.output)
