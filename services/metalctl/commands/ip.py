"""Addresses: acquired for a project, and given back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer
from metal_kit.client import Peers
from metal_kit.ids import uuid7
from metalplane.common.v1.condition_pb2 import AddressFamily
from metalplane.ipam.v1 import ip_pb2 as pb
from metalplane.ipam.v1.ip_pb2_grpc import IpServiceStub

from metalctl import command, naming
from metalctl.output import show_many
from metalctl.session import run
from metalctl.values import pairs

_COLUMNS = (("ADDRESS", lambda i: i.address), ("NETWORK", lambda i: i.network or "-"), ("PREFIX", lambda i: i.prefix))
_FAMILIES = {
    0: AddressFamily.ADDRESS_FAMILY_UNSPECIFIED,
    4: AddressFamily.ADDRESS_FAMILY_IPV4,
    6: AddressFamily.ADDRESS_FAMILY_IPV6,
}


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to their group."""
    command.add(groups["ip"], "acquire", acquire, "take addresses of a network for a project")
    command.add(groups["ip"], "release", release, "give an address back that nobody uses")


def acquire(
    ctx: typer.Context,
    project: Annotated[str, typer.Option(help="id or name of the project that gets them")],
    network: Annotated[str, typer.Option(help="network (id or name); or else --prefix")] = "",
    prefix: Annotated[str, typer.Option(help="CIDR of a prefix that belongs to no network")] = "",
    namespace: Annotated[str, typer.Option(help="with --prefix: its namespace; else `default`")] = "",
    address: Annotated[str, typer.Option(help="this very address, instead of the next free ones")] = "",
    family: Annotated[int, typer.Option(help="4 or 6; else one in each family that the network has")] = 0,
    count: Annotated[int, typer.Option(help="how many in each family", min=1, max=1024)] = 1,
    static: Annotated[bool, typer.Option("--static", help="stays when whoever uses it lets it go")] = False,
    name: Annotated[str, typer.Option(help="name for people")] = "",
    dns_name: Annotated[str, typer.Option(help="host name")] = "",
    label: Annotated[list[str], typer.Option("--label", help="KEY=VALUE; may be given several times")] = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only tell what would be had")] = False,
) -> None:
    """Take addresses."""
    if family not in _FAMILIES:
        raise typer.BadParameter("is not one of 4, 6", param_hint="--family")
    wish = pb.IpWish(prefix=prefix, namespace=namespace, address=address, family=_FAMILIES[family])
    if not address:
        wish.count = count
    request = pb.AcquireIpsRequest(
        request_id=uuid7(),
        wishes=[wish],
        type=pb.IP_TYPE_STATIC if static else pb.IP_TYPE_EPHEMERAL,
        name=name,
        dns_name=dns_name,
        labels=pairs(label),
        validate_only=dry_run,
    )

    async def body(peers: Peers) -> pb.AcquireIpsResponse:
        request.project = await naming.project(peers, project)
        if network:
            request.wishes[0].network = await naming.network(peers, network, request.project)
        return await peers.stub(IpServiceStub, "ipam").AcquireIps(request)

    show_many(run(ctx.obj, body).ips, _COLUMNS, ctx.obj.output)


def release(
    ctx: typer.Context,
    address: Annotated[str, typer.Argument(help="the address")],
    network: Annotated[str, typer.Option(help="its network (id or name), where it exists more than once")] = "",
    namespace: Annotated[str, typer.Option(help="its namespace, where it exists more than once")] = "",
) -> None:
    """Give an address back."""

    async def body(peers: Peers) -> None:
        stub = peers.stub(IpServiceStub, "ipam")
        wanted = pb.GetIpRequest(address=address, namespace=namespace)
        if network:
            wanted.network = await naming.network(peers, network)
        # The holding that there is now, so that a retry by whoever carries the request releases no later one.
        held = await stub.GetIp(wanted)
        await stub.ReleaseIp(
            pb.ReleaseIpRequest(
                address=address, network=wanted.network, namespace=namespace, create_time=held.create_time
            )
        )

    run(ctx.obj, body)
