"""Networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer
from metal_kit.client import Peers
from metal_kit.ids import uuid7
from metalplane.ipam.v1.network_pb2 import (
    CreateNetworkRequest,
    DeleteNetworkRequest,
    Network,
    NetworkType,
    PrefixLengths,
)
from metalplane.ipam.v1.network_pb2_grpc import NetworkServiceStub

from metalctl import command, naming
from metalctl.output import show_one
from metalctl.session import run


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to their group."""
    command.add(groups["network"], "create", create, "make a project's private network")
    command.add(groups["network"], "delete", delete, "delete a network that nothing uses")


def create(
    ctx: typer.Context,
    project: Annotated[str, typer.Option(help="id or name of the project")],
    partition: Annotated[str, typer.Option(help="partition whose super network it is cut from")] = "",
    parent: Annotated[str, typer.Option(help="super network that it is cut from, instead of a partition")] = "",
    name: Annotated[str, typer.Option(help="name within the project")] = "",
    shared: Annotated[bool, typer.Option(help="let other projects use it")] = False,
    ipv4_length: Annotated[int, typer.Option(help="IPv4 prefix length in bits; 0 for the default", min=0, max=32)] = 0,
    ipv6_length: Annotated[int, typer.Option(help="IPv6 prefix length in bits; 0 for the default", min=0, max=128)] = 0,
) -> None:
    """Make a private network."""
    kind = NetworkType.NETWORK_TYPE_CHILD_SHARED if shared else NetworkType.NETWORK_TYPE_CHILD
    request = CreateNetworkRequest(
        request_id=uuid7(),
        network=Network(type=kind, partition=partition, parent=parent, name=name),
        length=PrefixLengths(ipv4=ipv4_length, ipv6=ipv6_length),
    )

    async def body(peers: Peers) -> Network:
        request.network.project = await naming.project(peers, project)
        return await peers.stub(NetworkServiceStub, "ipam").CreateNetwork(request)

    show_one(run(ctx.obj, body), ctx.obj.output)


def delete(ctx: typer.Context, network: Annotated[str, typer.Argument(help="id or name of the network")]) -> None:
    """Delete a network."""

    async def body(peers: Peers) -> None:
        id_ = await naming.network(peers, network)
        await peers.stub(NetworkServiceStub, "ipam").DeleteNetwork(DeleteNetworkRequest(id=id_))

    run(ctx.obj, body)
