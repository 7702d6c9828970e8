"""Allocations: create, watch, free."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from metal_kit.client import Peers
from metal_kit.errors import Problem, Unavailable
from metal_kit.ids import uuid7
from metalplane.allocation.v1 import allocation_pb2 as pb
from metalplane.allocation.v1.allocation_pb2_grpc import AllocationServiceStub

from metalctl.output import Format, as_dict, print_json, show_one
from metalctl.session import fail, run

SETTLED = frozenset({pb.AllocationPhase.ALLOCATION_PHASE_RUNNING, pb.AllocationPhase.ALLOCATION_PHASE_RELEASED})
WATCH_SECONDS = 3600.0
RECONNECT = 0.5


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to their group."""
    groups["allocation"].command("create", help="give a machine to a project")(create)
    groups["allocation"].command("watch", help="follow an allocation until it runs or is gone")(watch)
    groups["allocation"].command("free", help="take a machine back")(free)


def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="name, and the host name unless another is given")],
    project: Annotated[str, typer.Option(help="id of the project")],
    image: Annotated[str, typer.Option(help="image, exact or short: debian-13")],
    network: Annotated[list[str], typer.Option(help="network, or network=address,address; repeatable")],
    partition: Annotated[str, typer.Option(help="partition to choose a machine in")] = "",
    size: Annotated[str, typer.Option(help="size to choose a machine of")] = "",
    machine: Annotated[str, typer.Option(help="this very machine (UUID) instead")] = "",
    firewall: Annotated[bool, typer.Option("--firewall", help="as a firewall")] = False,
    hostname: Annotated[str, typer.Option(help="host name")] = "",
    ssh_key: Annotated[list[Path] | None, typer.Option(help="file with a public key; repeatable")] = None,
    userdata: Annotated[Path | None, typer.Option(help="file with user data")] = None,
    description: Annotated[str, typer.Option(help="free text")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="follow it until it runs")] = False,
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
        ssh_keys=[_read(path).decode().strip() for path in ssh_key or []],
        userdata=_read(userdata) if userdata else b"",
    )

    async def body(peers: Peers) -> pb.Allocation:
        stub = peers.stub(AllocationServiceStub, "allocation")
        request = pb.CreateAllocationRequest(request_id=uuid7(), project=project, spec=spec)
        made = await stub.CreateAllocation(request)
        return await _follow(peers, made.id, ctx.obj.output) if wait else made

    made = run(ctx.obj, body)
    if not wait:
        show_one(made, ctx.obj.output)


def watch(ctx: typer.Context, allocation: Annotated[str, typer.Argument(help="id of the allocation")]) -> None:
    """Follow an allocation."""

    async def body(peers: Peers) -> pb.Allocation:
        return await _follow(peers, allocation, ctx.obj.output)

    run(ctx.obj, body)


def free(
    ctx: typer.Context,
    allocation: Annotated[str, typer.Argument(help="id of the allocation")],
    wait: Annotated[bool, typer.Option("--wait", help="follow it until it is gone")] = False,
) -> None:
    """Take a machine back."""

    async def body(peers: Peers) -> pb.Allocation:
        stub = peers.stub(AllocationServiceStub, "allocation")
        freed = await stub.FreeAllocation(pb.FreeAllocationRequest(id=allocation))
        return await _follow(peers, freed.id, ctx.obj.output, freeing=True) if wait else freed

    freed = run(ctx.obj, body)
    if not wait:
        show_one(freed, ctx.obj.output)


async def _follow(peers: Peers, allocation: str, how: Format, *, freeing: bool = False) -> pb.Allocation:
    """Print the timeline as it grows until the allocation settles; resumes where a broken stream ended."""
    stub = peers.stub(AllocationServiceStub, "allocation")
    released = pb.AllocationPhase.ALLOCATION_PHASE_RELEASED
    position, told = "", 0
    while True:
        try:
            request = pb.WatchAllocationsRequest(allocation=allocation, position=position)
            async for batch in stub.WatchAllocations(request, timeout=WATCH_SECONDS):
                position = batch.position
                for change in batch.changes:
                    told = _tell(change.allocation, told, how)
                    phase = change.allocation.status.phase
                    if phase == released or (phase in SETTLED and not freeing):
                        return change.allocation
        except Unavailable as problem:
            typer.echo(f"(interrupted: {problem.message}; going on)", err=True)
        except Problem:
            raise
        await asyncio.sleep(RECONNECT)


def _tell(allocation: pb.Allocation, told: int, how: Format) -> int:
    lines = list(allocation.status.timeline)
    for line in lines[told:]:
        if how is Format.JSON:
            print_json(as_dict(line))
        else:
            typer.echo(f"{line.time.ToDatetime():%H:%M:%S.%f}"[:-3] + f"  {line.phase:<11} {line.message}")
    return max(told, len(lines))


def _network(text: str) -> pb.AllocationNetwork:
    network, _, ips = text.partition("=")
    return pb.AllocationNetwork(network=network, ips=[ip for ip in ips.split(",") if ip])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        fail(f"{path}: {error.strerror}", 2)
