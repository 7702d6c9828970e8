"""Settings of a partition's fabric: what all of its leaves have in common."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer
from google.protobuf.field_mask_pb2 import FieldMask
from metal_kit.client import Peers
from metalplane.fabric.v1 import settings_pb2 as pb
from metalplane.fabric.v1.settings_pb2_grpc import FabricSettingsServiceStub

from metalctl import command
from metalctl.failure import USAGE, fail
from metalctl.output import show_one
from metalctl.session import run

Partition = Annotated[str, typer.Argument(help="the partition")]
# Mbit/s, by the contract.
_LAST_SPEED = 1_600_000
_NEVER = ("id", "etag", "update_time")
_NAMES = {field.name.replace("_", "-"): field.name for field in pb.FabricSettings.DESCRIPTOR.fields}


class Drift(StrEnum):
    """What a leaf does about changes that others made."""

    REPAIR = "repair"
    REPORT = "report"


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to their group."""
    group = groups["switch"]
    command.add(group, "settings", settings, "what all leaves of a partition have in common")
    command.add(group, "set", set_, "change what leaves of a partition have in common; one leaf of a rack at a time")


def settings(ctx: typer.Context, partition: Partition) -> None:
    """Show a partition's settings."""

    async def body(peers: Peers) -> pb.FabricSettings:
        stub = peers.stub(FabricSettingsServiceStub, "fabric")
        return await stub.GetFabricSettings(pb.GetFabricSettingsRequest(id=partition))

    show_one(run(ctx.obj, body), ctx.obj.output)


def set_(
    ctx: typer.Context,
    partition: Partition,
    pxe_vlan: Annotated[int | None, typer.Option(help="VLAN that machines boot in", min=1, max=4094)] = None,
    management_gateway: Annotated[str | None, typer.Option(help="gateway of the management network")] = None,
    management_routes: Annotated[
        list[str], typer.Option("--management-route", help="prefix behind it; may be given several times")
    ] = [],  # noqa: B006
    additional_bridge_ports: Annotated[
        list[str], typer.Option("--additional-port", help="the operator's own port; may be given several times")
    ] = [],  # noqa: B006
    source_loopback: Annotated[
        bool | None, typer.Option(help="whether packets along BGP routes have the loopback as their source")
    ] = None,
    bgp_keepalive: Annotated[int | None, typer.Option(help="seconds between two BGP keepalives", min=1)] = None,
    bgp_hold: Annotated[int | None, typer.Option(help="seconds until a silent BGP neighbour is down", min=3)] = None,
    drift_policy: Annotated[Drift | None, typer.Option(help="about changes that others made on a leaf")] = None,
    confirm_seconds: Annotated[
        int | None, typer.Option(help="seconds in which a leaf has to reach the plane after a change", min=10)
    ] = None,
    ports: Annotated[
        list[str],
        typer.Option(
            "--port",
            help="speed (Mbit/s) and error correction of a port, such as Ethernet4:speed=25000,fec=rs; all those that "
            "shall be set, may be given several times",
        ),
    ] = [],  # noqa: B006
    clear: Annotated[list[str], typer.Option(help="a setting that leaves shall have by themselves again")] = [],  # noqa: B006
) -> None:
    """Change a partition's settings."""
    chosen = {
        "pxe_vlan": pxe_vlan,
        "management_gateway": management_gateway,
        "management_routes": management_routes or None,
        "additional_bridge_ports": additional_bridge_ports or None,
        "source_loopback": source_loopback,
        "bgp_keepalive": bgp_keepalive,
        "bgp_hold": bgp_hold,
        "drift_policy": pb.DriftPolicy.Value(f"DRIFT_POLICY_{drift_policy.upper()}") if drift_policy else None,
        "confirm_seconds": confirm_seconds,
        "ports": [_port(text) for text in ports] or None,
    }
    values: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    paths = [*values, *(_cleared(name) for name in clear)]
    if not paths:
        fail("name a setting to change", USAGE)
    if len(set(paths)) < len(paths):
        fail("a setting is either set or cleared, once", USAGE)
    request = pb.UpdateFabricSettingsRequest(
        settings=pb.FabricSettings(id=partition, **values), update_mask=FieldMask(paths=paths)
    )

    async def body(peers: Peers) -> pb.FabricSettings:
        return await peers.stub(FabricSettingsServiceStub, "fabric").UpdateFabricSettings(request)

    show_one(run(ctx.obj, body), ctx.obj.output)


def _port(text: str) -> pb.PortSettings:
    """`NAME:speed=N,fec=KIND`, either of the two or both."""
    name, _, rest = text.rpartition(":")
    wanted = dict(part.partition("=")[::2] for part in rest.split(","))
    speed, fec = wanted.pop("speed", "0"), wanted.pop("fec", "")
    known = {each.removeprefix("PORT_FEC_").lower(): number for each, number in pb.PortFec.items() if number}
    if not name or wanted or not (speed.isascii() and speed.isdigit()) or (fec and fec not in known):
        fail(f"--port {text!r}: write it as NAME:speed=25000,fec=rs; fec is one of {', '.join(known)}", USAGE)
    if int(speed) > _LAST_SPEED or (int(speed) % 1000 and int(speed) not in {10, 100}):
        # As fabric says it, which would refuse it too.
        fail(
            f"speed {speed} of port {name} must be in Mbit/s: 10, 100 or a multiple of 1000, "
            "such as 25000 for 25 Gbit/s",
            USAGE,
        )
    return pb.PortSettings(name=name, speed=int(speed), fec=known.get(fec, pb.PORT_FEC_UNSPECIFIED))


def _cleared(name: str) -> str:
    field = _NAMES.get(name, name)
    if field not in _NAMES.values() or field in _NEVER:
        known = ", ".join(sorted(each for each, of in _NAMES.items() if of not in _NEVER))
        fail(f"there is no setting {name!r}; there are {known}", USAGE)
    return field
