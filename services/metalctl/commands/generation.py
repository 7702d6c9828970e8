"""Generations of a switch's desired state: what it was, what differs, and the way back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

import typer
from google.protobuf.message import Message
from metal_kit.client import Peers
from metalplane.fabric.v1 import generation_pb2 as pb
from metalplane.fabric.v1.generation_pb2_grpc import GenerationServiceStub

from metalctl import command, naming
from metalctl.commands.switch import ROW, Switch
from metalctl.output import Format, note, show_many, show_one, show_row
from metalctl.session import run
from metalctl.values import instant

_CHANGES = (
    ("WHAT", lambda c: c.object),
    ("FIELD", lambda c: c.field or "-"),
    ("BEFORE", lambda c: c.before or "-"),
    ("AFTER", lambda c: c.after or "-"),
)
Generation = Annotated[int, typer.Argument(metavar="GENERATION", help="whose content is wanted", min=1)]


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to their group."""
    group = groups["switch"]
    command.add(group, "history", history, "list what a switch was wanted to be, the newest first")
    command.add(group, "diff", diff, "what differs between two generations of a switch")
    command.add(group, "plan", plan, "what a leaf would have to change; nothing is done")
    command.add(group, "rollback", rollback, "hold a switch at an older generation's content, as a new generation")
    command.add(group, "unpin", unpin, "have a switch follow the plane again after a rollback")
    command.add(group, "retry", retry, "have a leaf try again what it has set aside, as a new generation")


def history(ctx: typer.Context, switch: Switch) -> None:
    """List generations."""

    async def body(peers: Peers) -> list[Message]:
        method = peers.stub(GenerationServiceStub, "fabric").ListGenerations
        request = pb.ListGenerationsRequest(switch_id=switch)
        return [each async for each in naming.pages(method, request, "generations")]

    columns = (
        ("GENERATION", lambda g: str(g.number)),
        ("TIME", lambda g: instant(g.create_time)),
        ("STATE", _standing),
        ("PINNED TO", lambda g: str(g.pinned_to or "-")),
        ("VRFS", lambda g: str(g.vrfs)),
        ("PORTS", lambda g: ", ".join(f"{role} {count}" for role, count in sorted(g.ports.items())) or "-"),
        ("HASH", lambda g: g.hash[:12]),
    )
    show_many(run(ctx.obj, body), columns, ctx.obj.output)


def diff(
    ctx: typer.Context,
    switch: Switch,
    before: Annotated[int, typer.Option("--from", help="generation to start from; else what the leaf has", min=0)] = 0,
    after: Annotated[int, typer.Option("--to", help="generation to go to; else the newest", min=0)] = 0,
) -> None:
    """Compare generations."""
    request = pb.DiffGenerationsRequest(switch_id=switch, before=before, after=after)
    answer = _call(ctx, lambda stub: stub.DiffGenerations(request))
    _show(ctx, answer, f"generation {answer.before or 'none'} to {answer.after}")


def plan(
    ctx: typer.Context,
    switch: Switch,
    rollback_to: Annotated[int, typer.Option(help="generation to return to; else what the plane wants", min=0)] = 0,
) -> None:
    """Show what would be changed."""
    request = pb.PlanSwitchRequest(switch_id=switch, rollback_to=rollback_to)
    answer = _call(ctx, lambda stub: stub.PlanSwitch(request))
    target = f"content of generation {rollback_to}" if rollback_to else "what the plane wants"
    _show(ctx, answer, f"generation {answer.applied_generation or 'none'} to {target}")


def rollback(
    ctx: typer.Context,
    switch: Switch,
    generation: Generation,
    reason: Annotated[str, typer.Option(help="why, for whoever finds it pinned")] = "",
) -> None:
    """Return to a generation."""
    request = pb.RollbackSwitchRequest(switch_id=switch, generation=generation, reason=reason)
    show_row(_call(ctx, lambda stub: stub.RollbackSwitch(request)), ROW, ctx.obj.output)


def unpin(ctx: typer.Context, switch: Switch) -> None:
    """Follow the plane again."""
    request = pb.UnpinSwitchRequest(switch_id=switch)
    show_row(_call(ctx, lambda stub: stub.UnpinSwitch(request)), ROW, ctx.obj.output)


def retry(ctx: typer.Context, switch: Switch) -> None:
    """Insist on what was set aside."""
    request = pb.RetrySwitchRequest(switch_id=switch)
    answer = _call(ctx, lambda stub: stub.RetrySwitch(request))
    if ctx.obj.output is Format.JSON:
        show_one(answer, ctx.obj.output)
        return
    wanted = answer.switch.sync.desired_generation
    told = f"set aside generation {answer.set_aside}; it is wanted again as {wanted}"
    note(f"{switch} has {told if answer.set_aside else f'set nothing aside; wanted is generation {wanted}'}")
    show_row(answer.switch, ROW, ctx.obj.output)


def _standing(generation: pb.Generation) -> str:
    words = ["applied"] if generation.applied else []
    return ", ".join([*words, "wanted"] if generation.wanted else words) or "-"


def _show(ctx: typer.Context, answer: Any, title: str) -> None:
    if ctx.obj.output is Format.JSON:
        show_one(answer, ctx.obj.output)
        return
    note(title if answer.changes else f"{title}: nothing differs")
    if answer.changes:
        show_many(list(answer.changes), _CHANGES, ctx.obj.output)


def _call(ctx: typer.Context, method: Callable[[Any], Awaitable[Any]]) -> Any:
    async def body(peers: Peers) -> Any:
        return await method(peers.stub(GenerationServiceStub, "fabric"))

    return run(ctx.obj, body)
