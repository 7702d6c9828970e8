"""Prefixes that belong to no network, and what can be found out about addresses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Annotated, Any

import typer
from google.protobuf.message import Message
from metal_kit.client import Peers
from metal_kit.ids import uuid7
from metalplane.common.v1.condition_pb2 import AddressFamily
from metalplane.ipam.v1 import prefix_pb2 as pb
from metalplane.ipam.v1.ip_pb2 import OwnerKind
from metalplane.ipam.v1.prefix_pb2_grpc import PrefixServiceStub

from metalctl import command, naming
from metalctl.output import show_many, show_one
from metalctl.session import run
from metalctl.values import enum, instant, pairs

Cidr = Annotated[str, typer.Argument(metavar="CIDR", help="the prefix, as 10.0.0.0/24")]
Namespace = Annotated[str, typer.Option(help="its namespace; else `default`")]
Labels = Annotated[list[str], typer.Option("--label", help="KEY=VALUE; may be given several times")]
Description = Annotated[str, typer.Option(help="free text")]
Container = Annotated[bool, typer.Option(help="cut prefixes out of it instead of addresses")]
AllUsable = Annotated[bool, typer.Option(help="hand out network and broadcast address too")]
First = Annotated[str, typer.Argument(help="first address")]
Last = Annotated[str, typer.Argument(help="last address; else the first one alone")]


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to their group."""
    group = groups["prefix"]
    command.add(group, "get", get, "show one prefix, all of it")
    command.add(group, "create", create, "make a root prefix, of a network or of none")
    command.add(group, "child", child, "cut a child out of a container, by length or by CIDR")
    command.add(group, "grow", grow, "make a prefix larger by the free space beside it")
    command.add(group, "delete", delete, "delete a prefix that nothing uses; a child's space goes back to its parent")
    command.add(group, "reserve", reserve, "set free addresses aside")
    command.add(group, "unreserve", unreserve, "take a reservation back")
    command.add(group, "reserved", reserved, "list what is set aside in a prefix")
    command.add(group, "lookup", lookup, "where an address belongs and who has it, in each namespace")
    command.add(group, "history", history, "what happened to an address or a prefix, the newest first")
    command.add(group, "overlaps", overlaps, "list prefixes of different namespaces that overlap")


def get(ctx: typer.Context, cidr: Cidr, namespace: Namespace = "") -> None:
    """Show a prefix."""
    request = pb.GetPrefixRequest(namespace=namespace, cidr=cidr)
    show_one(_call(ctx, lambda stub: stub.GetPrefix(request)), ctx.obj.output)


def create(
    ctx: typer.Context,
    cidr: Cidr,
    namespace: Namespace = "",
    network: Annotated[str, typer.Option(help="network that it shall belong to (id or name)")] = "",
    container: Container = False,
    all_usable: AllUsable = False,
    label: Labels = [],  # noqa: B006
    description: Description = "",
) -> None:
    """Make a root prefix."""
    kind = pb.PREFIX_KIND_CONTAINER if container else pb.PREFIX_KIND_LEAF
    request = pb.CreatePrefixRequest(request_id=uuid7())
    request.prefix.CopyFrom(
        pb.Prefix(
            cidr=cidr,
            namespace=namespace,
            kind=kind,
            all_usable=all_usable,
            labels=pairs(label),
            description=description,
        )
    )

    async def body(peers: Peers) -> pb.Prefix:
        if network:
            request.prefix.network = await naming.network(peers, network)
        return await peers.stub(PrefixServiceStub, "ipam").CreatePrefix(request)

    show_one(run(ctx.obj, body), ctx.obj.output)


def child(
    ctx: typer.Context,
    parent: Annotated[str, typer.Option(help="container that it is cut from")] = "",
    select: Annotated[list[str], typer.Option(help="KEY=VALUE that the container has, instead of naming it")] = [],  # noqa: B006
    ipv6: Annotated[bool, typer.Option(help="with --select and --length: an IPv6 container")] = False,
    length: Annotated[int, typer.Option(help="length in bits", min=0, max=128)] = 0,
    cidr: Annotated[str, typer.Option(help="this very child, instead of a length")] = "",
    namespace: Namespace = "",
    container: Container = False,
    all_usable: AllUsable = False,
    label: Labels = [],  # noqa: B006
    description: Description = "",
) -> None:
    """Cut a child."""
    family = AddressFamily.ADDRESS_FAMILY_IPV6 if ipv6 else AddressFamily.ADDRESS_FAMILY_IPV4
    request = pb.AcquireChildPrefixRequest(
        request_id=uuid7(),
        namespace=namespace,
        parent=parent,
        selector=pairs(select),
        family=family if select and not cidr else AddressFamily.ADDRESS_FAMILY_UNSPECIFIED,
        length=length,
        cidr=cidr,
        kind=pb.PREFIX_KIND_CONTAINER if container else pb.PREFIX_KIND_LEAF,
        all_usable=all_usable,
        labels=pairs(label),
        description=description,
    )
    show_one(_call(ctx, lambda stub: stub.AcquireChildPrefix(request)), ctx.obj.output)


def grow(
    ctx: typer.Context,
    cidr: Cidr,
    length: Annotated[int, typer.Argument(help="length that it shall have", min=1, max=127)],
    namespace: Namespace = "",
) -> None:
    """Make a prefix larger."""
    request = pb.GrowPrefixRequest(namespace=namespace, cidr=cidr, length=length)
    show_one(_call(ctx, lambda stub: stub.GrowPrefix(request)), ctx.obj.output)


def delete(ctx: typer.Context, cidr: Cidr, namespace: Namespace = "") -> None:
    """Delete a prefix."""
    request = pb.DeletePrefixRequest(namespace=namespace, cidr=cidr)
    _call(ctx, lambda stub: stub.DeletePrefix(request))


def reserve(
    ctx: typer.Context,
    cidr: Cidr,
    first: First,
    last: Last = "",
    label: Annotated[str, typer.Option(help="what for")] = "reserved",
    namespace: Namespace = "",
) -> None:
    """Set a range aside."""
    request = pb.ReserveRangeRequest(namespace=namespace, cidr=cidr, first=first, last=last, label=label)
    show_one(_call(ctx, lambda stub: stub.ReserveRange(request)), ctx.obj.output)


def unreserve(ctx: typer.Context, cidr: Cidr, first: First, last: Last = "", namespace: Namespace = "") -> None:
    """Take a reservation back."""
    request = pb.UnreserveRangeRequest(namespace=namespace, cidr=cidr, first=first, last=last)
    _call(ctx, lambda stub: stub.UnreserveRange(request))


def reserved(ctx: typer.Context, cidr: Cidr, namespace: Namespace = "") -> None:
    """List reserved ranges."""
    request = pb.ListReservedRangesRequest(namespace=namespace, cidr=cidr)
    columns = (("FIRST", lambda r: r.first), ("LAST", lambda r: r.last), ("LABEL", lambda r: r.label))
    show_many(_all(ctx, "ListReservedRanges", request, "ranges"), columns, ctx.obj.output)


def lookup(
    ctx: typer.Context,
    address: Annotated[str, typer.Argument(help="IPv4 or IPv6 address")],
    namespace: Annotated[str, typer.Option(help="only in this namespace")] = "",
) -> None:
    """Look an address up."""
    request = pb.ListAddressPlacesRequest(address=address, namespace=namespace)
    columns = (
        ("NAMESPACE", lambda p: p.namespace),
        ("PREFIX", lambda p: p.prefix.cidr),
        ("NETWORK", lambda p: p.prefix.network or "-"),
        ("STATE", _standing),
        ("PROJECT", lambda p: p.ip.project or "-"),
        ("OWNER", lambda p: f"{enum(OwnerKind, p.ip.owner.kind)} {p.ip.owner.id}".strip() if p.ip.owner.id else "-"),
    )
    show_many(_all(ctx, "ListAddressPlaces", request, "places"), columns, ctx.obj.output)


def history(
    ctx: typer.Context,
    thing: Annotated[str, typer.Argument(metavar="ADDRESS|CIDR", help="address or prefix; it may be gone")],
    namespace: Namespace = "",
    at: Annotated[datetime | None, typer.Option(help="as it was then, in UTC: 2026-01-31T12:00:00")] = None,
) -> None:
    """Tell what happened."""
    request = pb.ListHistoryRequest(namespace=namespace, object=thing)
    if at is not None:
        request.as_of.FromDatetime(at)
    columns = (
        ("TIME", lambda e: instant(e.time)),
        ("WHAT", lambda e: e.operation),
        ("BY", lambda e: e.actor),
        ("PROJECT", lambda e: e.project or "-"),
        ("OWNER", lambda e: f"{enum(OwnerKind, e.owner.kind)} {e.owner.id}" if e.owner.id else "-"),
    )
    show_many(_all(ctx, "ListHistory", request, "entries"), columns, ctx.obj.output)


def overlaps(ctx: typer.Context) -> None:
    """List overlaps."""
    columns = (
        ("NAMESPACE", lambda o: o.left.namespace),
        ("PREFIX", lambda o: o.left.cidr),
        ("OVERLAPS", lambda o: o.right.cidr),
        ("OF", lambda o: o.right.namespace),
    )
    found = _all(ctx, "ListPrefixOverlaps", pb.ListPrefixOverlapsRequest(), "overlaps")
    show_many(found, columns, ctx.obj.output)


def _standing(place: pb.AddressPlace) -> str:
    if place.HasField("rests_until"):
        return f"rests until {instant(place.rests_until)}"
    words = ["in use"] if place.HasField("ip") else []
    if place.HasField("reserved"):
        words.append(f"reserved ({place.reserved.label})")
    return ", ".join(words) or ("no address" if place.prefix.kind == pb.PREFIX_KIND_CONTAINER else "free")


def _call(ctx: typer.Context, method: Callable[[Any], Awaitable[Any]]) -> Any:
    async def body(peers: Peers) -> Any:
        return await method(peers.stub(PrefixServiceStub, "ipam"))

    return run(ctx.obj, body)


def _all(ctx: typer.Context, method: str, request: Message, items: str) -> list[Message]:
    async def body(peers: Peers) -> list[Message]:
        stub = peers.stub(PrefixServiceStub, "ipam")
        return [each async for each in naming.pages(getattr(stub, method), request, items)]

    return run(ctx.obj, body)
