"""Leaf switches: their ports, and what becomes of the boxes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

import typer
from metal_kit.client import Peers
from metalplane.fabric.v1 import switch_pb2 as pb
from metalplane.fabric.v1.switch_pb2_grpc import SwitchServiceStub

from metalctl import command
from metalctl.output import show_many, show_row
from metalctl.session import run
from metalctl.values import enum

Switch = Annotated[str, typer.Argument(help="host name of the switch")]
PortName = Annotated[str, typer.Argument(metavar="PORT", help="name of the port")]

ROW = (
    ("ID", lambda s: s.id),
    ("RACK", lambda s: s.rack or "-"),
    ("KIND", lambda s: enum(pb.SwitchKind, s.kind)),
    ("MODE", lambda s: enum(pb.SwitchMode, s.mode)),
    ("DESIRED", lambda s: str(s.sync.desired_generation)),
    ("APPLIED", lambda s: str(s.sync.applied_generation)),
    ("PIN", lambda s: str(s.pin.generation or "-")),
)


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to their group."""
    group = groups["switch"]
    command.add(group, "ports", ports, "the ports of a switch: wanted and reported")
    port = command.group("switch a port on or off")
    command.add(port, "up", up, "want a port up")
    command.add(port, "down", down, "want a port down; one that nothing hangs on is out of use then")
    group.add_typer(port, name="port")


def ports(ctx: typer.Context, switch: Switch) -> None:
    """Show a switch's ports."""
    columns = (
        ("PORT", lambda p: p.name),
        ("ROLE", lambda p: enum(pb.PortRole, p.role)),
        ("VRF", lambda p: p.vrf or "-"),
        ("WANTED", lambda p: enum(pb.PortState, p.desired_state)),
        ("REPORTED", lambda p: enum(pb.PortState, p.reported_state)),
        ("MACHINE", lambda p: p.machine or "-"),
        ("NIC", lambda p: p.nic_mac or "-"),
    )
    found = call(ctx, lambda stub: stub.GetSwitch(pb.GetSwitchRequest(id=switch)))
    show_many(list(found.ports), columns, ctx.obj.output)


def up(ctx: typer.Context, switch: Switch, port: PortName) -> None:
    """Want a port up."""
    _want(ctx, switch, port, pb.PORT_STATE_UP)


def down(ctx: typer.Context, switch: Switch, port: PortName) -> None:
    """Want a port down."""
    _want(ctx, switch, port, pb.PORT_STATE_DOWN)


def _want(ctx: typer.Context, switch: str, port: str, state: pb.PortState.ValueType) -> None:
    request = pb.SetPortStateRequest(id=switch, port=port, state=state)
    show_row(call(ctx, lambda stub: stub.SetPortState(request)), ROW, ctx.obj.output)


def call(ctx: typer.Context, method: Callable[[Any], Awaitable[Any]]) -> Any:
    """Ask the service of switches."""

    async def body(peers: Peers) -> Any:
        return await method(peers.stub(SwitchServiceStub, "fabric"))

    return run(ctx.obj, body)
