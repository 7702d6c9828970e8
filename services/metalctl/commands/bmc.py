"""BMCs: the keys that seal their passwords, and what people do at machines that have none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer
from metal_kit.client import Peers
from metalplane.bmc.v1 import bmc_pb2 as pb
from metalplane.bmc.v1.bmc_pb2_grpc import BmcServiceStub

from metalctl import command, naming
from metalctl.failure import USAGE, fail
from metalctl.output import Format, note, show_many, show_one
from metalctl.session import run
from metalctl.values import age, enum


def _use(key: pb.CredentialKey) -> str:
    if key.current:
        return "seals"
    if not key.in_ring:
        return "not in the ring"
    return "opens" if key.passwords else "can go"


COLUMNS = (
    ("KEY", lambda key: key.id),
    ("PASSWORDS", lambda key: str(key.passwords)),
    ("USE", _use),
)
TASKS = (
    ("ID", lambda task: task.id),
    ("MACHINE", lambda task: task.machine),
    ("STATE", lambda task: enum(pb.ManualTaskState, task.state)),
    ("AGE", lambda task: age(task.create_time)),
    ("DO", lambda task: task.instruction),
    ("NOTE", lambda task: task.note),
)


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to their group."""
    command.add(groups["bmc"], "keys", keys, "which key seals how many passwords, and which can go")
    command.add(groups["bmc"], "tasks", tasks, "what people are to do at machines without a BMC, oldest first")
    command.add(groups["bmc"], "confirm", confirm, "say that a task is done, or that it will not be")
    command.add(groups["bmc"], "reseal", reseal, "seal all passwords with the newest key, and tell what is left")


def keys(ctx: typer.Context) -> None:
    """Show the keys of the ring."""

    async def body(peers: Peers) -> pb.CredentialKeys:
        return await peers.stub(BmcServiceStub, "bmc").GetCredentialKeys(pb.GetCredentialKeysRequest())

    found = run(ctx.obj, body)
    if ctx.obj.output is Format.JSON:
        show_one(found, ctx.obj.output)
        return
    show_many(list(found.keys), COLUMNS, ctx.obj.output)
    for line in _unusable(found):
        note(line)


def reseal(ctx: typer.Context) -> None:
    """Seal all passwords anew."""

    async def body(peers: Peers) -> pb.ResealCredentialsResponse:
        return await peers.stub(BmcServiceStub, "bmc").ResealCredentials(pb.ResealCredentialsRequest(), timeout=60)

    done = run(ctx.obj, body, interrupted="what is sealed anew stays so; call it again for the rest")
    if ctx.obj.output is Format.JSON:
        show_one(done, ctx.obj.output)
    else:
        show_many(list(done.keys.keys), COLUMNS, ctx.obj.output)
        note(f"{done.resealed} of partition {done.keys.partition} sealed anew")
    if done.keys.unusable_count:
        for line in _unusable(done.keys):
            note(line)
        fail(f"{done.keys.unusable_count} passwords do not open; they stay as they are: register those BMCs again")


def tasks(
    ctx: typer.Context,
    machine: Annotated[str, typer.Option(help="only of this machine; its UUID")] = "",
    partition: Annotated[str, typer.Option(help="only of this partition")] = "",
    ended: Annotated[bool, typer.Option("--all", help="those that have ended, too")] = False,
) -> None:
    """Show tasks of people."""
    request = pb.ListManualTasksRequest(machine=machine, partition=partition, include_ended=ended)

    async def body(peers: Peers) -> list[pb.ManualTask]:
        stub = peers.stub(BmcServiceStub, "bmc")
        return [each async for each in naming.pages(stub.ListManualTasks, request, "tasks")]

    show_many(run(ctx.obj, body), TASKS, ctx.obj.output)


def confirm(
    ctx: typer.Context,
    task: Annotated[str, typer.Argument(help="id of the task")],
    decline: Annotated[bool, typer.Option("--decline", help="it is not done and will not be; needs --note")] = False,
    note: Annotated[str, typer.Option(help="what there is to say")] = "",
) -> None:
    """Say that a task is done."""
    if decline and not note:
        fail("--decline needs --note: say why", USAGE)
    request = pb.ConfirmManualTaskRequest(id=task, decline=decline, note=note)

    async def body(peers: Peers) -> pb.ManualTask:
        return await peers.stub(BmcServiceStub, "bmc").ConfirmManualTask(request)

    show_one(run(ctx.obj, body), ctx.obj.output)


def _unusable(found: pb.CredentialKeys) -> list[str]:
    lines = [f"machine {each.machine}: {each.cause}" for each in found.unusable]
    more = found.unusable_count - len(found.unusable)
    return [*lines, f"and {more} more"] if more else lines
