"""Allocations: create, watch, free."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from metal_kit.client import Peers
from metal_kit.ids import uuid7
from metalplane.allocation.v1 import allocation_pb2 as pb
from metalplane.allocation.v1.allocation_pb2_grpc import AllocationServiceStub

from metalctl import command, following, naming
from metalctl.failure import USAGE, fail
from metalctl.following import Timeline, follow, released, settled
from metalctl.output import Format, note, show_one, show_row
from metalctl.resources import RESOURCES
from metalctl.session import run

ALLOCATION = "id or name of the allocation"
COLUMNS = next(each.listing.columns for each in RESOURCES if each.name == "allocation")
GOES_ON = "the plane goes on without you: `metalctl allocation watch` shows it"


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to their group."""
    group = groups["allocation"]
    command.add(group, "create", create, "give a machine to a project")
    command.add(group, "watch", watch, "follow an allocation until it runs or is gone")
    command.add(group, "free", free, "take a machine back")


def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="name, and the host name unless another is given")],
    project: Annotated[str, typer.Option(help="id or name of the project")],
    image: Annotated[str, typer.Option(help="image, exact or short: debian-13")],
    network: Annotated[list[str], typer.Option(help="network (id or name), or network=address,address; repeatable")],
    partition: Annotated[str, typer.Option(help="partition to choose a machine in")] = "",
    size: Annotated[str, typer.Option(help="size to choose a machine of")] = "",
    machine: Annotated[str, typer.Option(help="this very machine (UUID) instead; operators only")] = "",
    firewall: Annotated[bool, typer.Option("--firewall", help="as a firewall")] = False,
    hostname: Annotated[str, typer.Option(help="host name")] = "",
    ssh_key: Annotated[list[Path] | None, typer.Option(help="file with a public key; repeatable")] = None,
    userdata: Annotated[Path | None, typer.Option(help="file with user data, at most 32 KiB")] = None,
    description: Annotated[str, typer.Option(help="free text")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="follow it until it runs; progress goes to stderr")] = False,
) -> None:
    """Give a machine to a project."""
    role = pb.AllocationRole.ALLOCATION_ROLE_FIREWALL if firewall else pb.AllocationRole.ALLOCATION_ROLE_MACHINE
    spec = pb.AllocationSpec(
        name=name,
        description=description,
        role=role,
        partition=partition,
        size=size,
        machine=machine,
        image=image,
        networks=[_network(each) for each in network],
        hostname=hostname,
        ssh_keys=[_public_key(path) for path in ssh_key or []],
        userdata=_read(userdata) if userdata else b"",
    )

    async def body(peers: Peers) -> pb.Allocation:
        owner = await naming.project(peers, project)
        for each in spec.networks:
            each.network = await naming.network(peers, each.network, owner)
        stub = peers.stub(AllocationServiceStub, "allocation")
        made = await stub.CreateAllocation(pb.CreateAllocationRequest(request_id=uuid7(), project=owner, spec=spec))
        if not wait:
            return made
        note(f"allocation {made.id}")
        return await follow(peers, made.id, settled, Timeline(following.to_stderr))

    made = run(ctx.obj, body, interrupted=GOES_ON if wait else "")
    _show(made, ctx.obj.output, waited=wait)
    if wait and released(made):
        fail(f"allocation {made.id} was freed before it ran")


def watch(ctx: typer.Context, allocation: Annotated[str, typer.Argument(help=ALLOCATION)]) -> None:
    """Follow an allocation."""

    async def body(peers: Peers) -> pb.Allocation:
        id_ = await naming.allocation(peers, allocation)
        return await follow(peers, id_, settled, Timeline(following.to_stdout(ctx.obj.output)))

    run(ctx.obj, body, interrupted=GOES_ON)


def free(
    ctx: typer.Context,
    allocation: Annotated[str, typer.Argument(help=ALLOCATION)],
    wait: Annotated[bool, typer.Option("--wait", help="follow it until it is gone; progress goes to stderr")] = False,
) -> None:
    """Take a machine back."""

    async def body(peers: Peers) -> pb.Allocation:
        stub = peers.stub(AllocationServiceStub, "allocation")
        id_ = await naming.allocation(peers, allocation)
        freed = await stub.FreeAllocation(pb.FreeAllocationRequest(id=id_))
        if not wait:
            return freed
        note(f"allocation {freed.id}")
        timeline = Timeline(following.to_stderr)
        asked = freed.status.free_time.ToNanoseconds()
        timeline.skip(entry for entry in freed.status.timeline if entry.time.ToNanoseconds() < asked)
        return await follow(peers, freed.id, released, timeline)

    _show(run(ctx.obj, body, interrupted=GOES_ON if wait else ""), ctx.obj.output, waited=wait)


def _show(allocation: pb.Allocation, how: Format, *, waited: bool) -> None:
    """All of it, or, below the timeline that was told already, a line."""
    if waited:
        show_row(allocation, COLUMNS, how)
    else:
        show_one(allocation, how)


def _network(text: str) -> pb.AllocationNetwork:
    network, _, ips = text.partition("=")
    return pb.AllocationNetwork(network=network, ips=[ip for ip in ips.split(",") if ip])


def _public_key(path: Path) -> str:
    """A public key's text. A private one, named by mistake, does not leave this computer."""
    try:
        text = _read(path).decode().strip()
    except UnicodeDecodeError:
        text = ""
    if not text or "PRIVATE KEY" in text:
        fail(f"{path}: is not a public key; its name mostly ends with .pub", USAGE)
    return text


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        fail(f"{path}: {error.strerror}", USAGE)
