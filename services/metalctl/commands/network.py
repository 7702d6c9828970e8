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
    command.add(groups["network"], "create-super", create_super, "make a network that private networks are cut from")
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


def create_super(
    ctx: typer.Context,
    id_: Annotated[str, typer.Argument(metavar="ID", help="its id, of your choosing")],
    prefix: Annotated[list[str], typer.Option(help="CIDR; may be given several times")],
    namespaced: Annotated[
        bool, typer.Option("--namespaced", help="let children of different projects have the same addresses")
    ] = False,
    partition: Annotated[str, typer.Option(help="partition that it is for; not with --namespaced")] = "",
    project: Annotated[str, typer.Option(help="id or name of the only project that it serves; else all")] = "",
    ipv4_length: Annotated[int, typer.Option(help="bits of a child's IPv4 prefix unless it asks", min=0, max=32)] = 0,
    ipv6_length: Annotated[int, typer.Option(help="bits of a child's IPv6 prefix unless it asks", min=0, max=128)] = 0,
    vrf: Annotated[int, typer.Option(help="VRF that all children share; not with --namespaced", min=0)] = 0,
) -> None:
    """Make a super network."""
    kind = NetworkType.NETWORK_TYPE_SUPER_NAMESPACED if namespaced else NetworkType.NETWORK_TYPE_SUPER
    network = Network(
        id=id_,
        type=kind,
        prefixes=prefix,
        partition=partition,
        vrf=vrf,
        default_child_prefix_length=PrefixLengths(ipv4=ipv4_length, ipv6=ipv6_length),
    )

    async def body(peers: Peers) -> Network:
        if project:
            network.project = await naming.project(peers, project)
        request = CreateNetworkRequest(request_id=uuid7(), network=network)
        return await peers.stub(NetworkServiceStub, "ipam").CreateNetwork(request)

    show_one(run(ctx.obj, body), ctx.obj.output)


def delete(ctx: typer.Context, network: Annotated[str, typer.Argument(help="id or name of the network")]) -> None:
    """Delete a network."""

    async def body(peers: Peers) -> None:
        id_ = await naming.network(peers, network)
        await peers.stub(NetworkServiceStub, "ipam").DeleteNetwork(DeleteNetworkRequest(id=id_))

    run(ctx.obj, body)
