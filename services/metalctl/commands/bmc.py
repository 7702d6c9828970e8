"""BMCs: the keys that seal their passwords."""

from __future__ import annotations

from collections.abc import Mapping

import typer
from metal_kit.client import Peers
from metalplane.bmc.v1 import bmc_pb2 as pb
from metalplane.bmc.v1.bmc_pb2_grpc import BmcServiceStub

from metalctl import command
from metalctl.failure import fail
from metalctl.output import Format, note, show_many, show_one
from metalctl.session import run


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


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to their group."""
    command.add(groups["bmc"], "keys", keys, "which key seals how many passwords, and which can go")
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


def _unusable(found: pb.CredentialKeys) -> list[str]:
    lines = [f"machine {each.machine}: {each.cause}" for each in found.unusable]
    more = found.unusable_count - len(found.unusable)
    return [*lines, f"and {more} more"] if more else lines
