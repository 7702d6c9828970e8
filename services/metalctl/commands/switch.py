"""Leaf switches: their ports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer
from metal_kit.client import Peers
from metalplane.fabric.v1 import switch_pb2 as pb
from metalplane.fabric.v1.switch_pb2_grpc import SwitchServiceStub

from metalctl import command
from metalctl.output import show_many
from metalctl.session import run
from metalctl.values import enum


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to their group."""
    command.add(groups["switch"], "ports", ports, "the ports of a switch: wanted and reported")


def ports(ctx: typer.Context, switch: Annotated[str, typer.Argument(help="host name of the switch")]) -> None:
    """Show a switch's ports."""

    async def body(peers: Peers) -> pb.Switch:
        return await peers.stub(SwitchServiceStub, "fabric").GetSwitch(pb.GetSwitchRequest(id=switch))

    columns = (
        ("PORT", lambda p: p.name),
        ("ROLE", lambda p: enum(pb.PortRole, p.role)),
        ("VRF", lambda p: p.vrf or "-"),
        ("WANTED", lambda p: enum(pb.PortState, p.desired_state)),
        ("REPORTED", lambda p: enum(pb.PortState, p.reported_state)),
        ("MACHINE", lambda p: p.machine or "-"),
        ("NIC", lambda p: p.nic_mac or "-"),
    )
    show_many(list(run(ctx.obj, body).ports), columns, ctx.obj.output)
