"""Namespaces of addresses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer
from metal_kit.client import Peers
from metal_kit.ids import uuid7
from metalplane.ipam.v1 import namespace_pb2 as pb
from metalplane.ipam.v1.namespace_pb2_grpc import NamespaceServiceStub

from metalctl import command, naming
from metalctl.failure import USAGE, fail
from metalctl.output import show_one, write
from metalctl.session import run

# Lines of a dump are short; a part stays far below what a message may have.
_PART = 1000

Name = Annotated[str, typer.Argument(metavar="NAMESPACE", help="its name")]


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to their group."""
    command.add(groups["namespace"], "create", create, "make a space of addresses of its own")
    command.add(groups["namespace"], "delete", delete, "delete a namespace that has no prefixes")
    command.add(groups["namespace"], "dump", dump, "print all of a namespace, a JSON object a line")
    command.add(groups["namespace"], "load", load, "fill an empty namespace with a dump, all or nothing")


def create(
    ctx: typer.Context,
    namespace: Name,
    project: Annotated[str, typer.Option(help="project whose editors may acquire addresses there (id or name)")] = "",
    description: Annotated[str, typer.Option(help="free text")] = "",
) -> None:
    """Make a namespace."""
    wanted = pb.Namespace(id=namespace, description=description)

    async def body(peers: Peers) -> pb.Namespace:
        if project:
            wanted.project = await naming.project(peers, project)
        request = pb.CreateNamespaceRequest(request_id=uuid7(), namespace=wanted)
        return await peers.stub(NamespaceServiceStub, "ipam").CreateNamespace(request)

    show_one(run(ctx.obj, body), ctx.obj.output)


def delete(ctx: typer.Context, namespace: Name) -> None:
    """Delete a namespace."""

    async def body(peers: Peers) -> None:
        await peers.stub(NamespaceServiceStub, "ipam").DeleteNamespace(pb.DeleteNamespaceRequest(id=namespace))

    run(ctx.obj, body)


def dump(ctx: typer.Context, namespace: Name) -> None:
    """Print a dump."""

    async def body(peers: Peers) -> list[str]:
        call = peers.stub(NamespaceServiceStub, "ipam").DumpNamespace(pb.DumpNamespaceRequest(id=namespace))
        return [line async for part in call for line in part.lines]

    # Printed when it is whole: what was cut off half-way is no dump.
    write("\n".join(run(ctx.obj, body)))


def load(
    ctx: typer.Context,
    namespace: Name,
    file: Annotated[Path, typer.Argument(help="what `dump` printed")],
) -> None:
    """Load a dump."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        fail(f"{file} cannot be read: {error}", USAGE)

    async def body(peers: Peers) -> pb.LoadNamespaceResponse:
        return await peers.stub(NamespaceServiceStub, "ipam").LoadNamespace(_parts(namespace, lines))

    show_one(run(ctx.obj, body), ctx.obj.output)


async def _parts(namespace: str, lines: list[str]) -> AsyncIterator[pb.LoadNamespaceRequest]:
    yield pb.LoadNamespaceRequest(id=namespace)
    for part in _cut(lines):
        yield pb.LoadNamespaceRequest(lines=part)


def _cut(lines: list[str]) -> Iterable[list[str]]:
    return (lines[start : start + _PART] for start in range(0, len(lines), _PART))
