"""Leaf switches: their ports, and what becomes of the boxes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer
from metal_kit.client import Peers
from metalplane.fabric.v1 import switch_pb2 as pb
from metalplane.fabric.v1.switch_pb2_grpc import SwitchServiceStub

from metalctl import command
from metalctl.output import note, show_many, show_row
from metalctl.session import run
from metalctl.values import enum

Switch = Annotated[str, typer.Argument(help="host name of the switch")]
# Of what can be many, how many are named.
_SHOWN = 5
PortName = Annotated[str, typer.Argument(metavar="PORT", help="name of the port")]


class Device(StrEnum):
    """What a switch is that is no leaf."""

    SPINE = "spine"
    EXIT = "exit"


_DEVICES = {Device.SPINE: pb.SWITCH_KIND_SPINE, Device.EXIT: pb.SWITCH_KIND_EXIT}

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
    command.add(group, "replace", replace, "let another box take a leaf's place under its name")
    command.add(group, "migrate", migrate, "have another leaf of the rack take over everything of a leaf")
    command.add(group, "record", record, "record a spine or an exit, or change what is recorded of it")
    command.add(group, "delete", delete, "forget a switch that no machine hangs on")


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


def replace(
    ctx: typer.Context,
    switch: Switch,
    cancel: Annotated[bool, typer.Option("--cancel", help="the box stays after all")] = False,
) -> None:
    """Prepare a replacement."""
    request = pb.ReplaceSwitchRequest(id=switch, cancel=cancel)
    show_row(call(ctx, lambda stub: stub.ReplaceSwitch(request)), ROW, ctx.obj.output)


def migrate(
    ctx: typer.Context,
    switch: Switch,
    target: Annotated[str, typer.Argument(help="host name of the leaf that takes over; no machine hangs on it yet")],
) -> None:
    """Move everything to another leaf."""
    request = pb.MigrateSwitchRequest(id=switch, target=target)
    show_row(call(ctx, lambda stub: stub.MigrateSwitch(request)), ROW, ctx.obj.output)
    _tell_held(call(ctx, lambda stub: stub.GetSwitch(pb.GetSwitchRequest(id=switch))))


def record(
    ctx: typer.Context,
    switch: Switch,
    kind: Annotated[Device, typer.Option(help="what it is")],
    partition: Annotated[str, typer.Option(help="its partition")],
    rack: Annotated[str, typer.Option(help="its rack")] = "",
    management_address: Annotated[str, typer.Option(help="its management address")] = "",
    loopback: Annotated[str, typer.Option(help="its loopback address")] = "",
    asn: Annotated[int, typer.Option(help="ASN of its BGP router", min=0, max=4294967295)] = 0,
    description: Annotated[str, typer.Option(help="free text")] = "",
) -> None:
    """Record a device."""
    request = pb.RecordDeviceRequest(
        id=switch,
        kind=_DEVICES[kind],
        partition=partition,
        rack=rack,
        management_address=management_address,
        loopback=loopback,
        asn=asn,
        description=description,
    )
    show_row(call(ctx, lambda stub: stub.RecordDevice(request)), ROW, ctx.obj.output)


def delete(ctx: typer.Context, switch: Switch) -> None:
    """Forget a switch."""
    call(ctx, lambda stub: stub.DeleteSwitch(pb.DeleteSwitchRequest(id=switch)))


def _tell_held(old: pb.Switch) -> None:
    """Say what a leaf that was relieved has yet to let go of; the machines' attachments wait for that."""
    if not old.held_ports:
        note(f"{old.id} has nothing to let go of")
        return
    ports = ", ".join(f"{each.port} (machine {each.machine})" for each in old.held_ports[:_SHOWN])
    more = f" and {len(old.held_ports) - _SHOWN} more" if len(old.held_ports) > _SHOWN else ""
    generation = max(each.wanted_generation for each in old.held_ports)
    way_out = "" if old.sync.connected else f"; it is not connected: if it is gone, `metalctl switch delete {old.id}`"
    note(
        f"{old.id} has to let go of {ports}{more} by applying generation {generation}, and their attachments are "
        f"confirmed only then; `metalctl switch describe {old.id}` shows what is left{way_out}"
    )


def _want(ctx: typer.Context, switch: str, port: str, state: pb.PortState.ValueType) -> None:
    request = pb.SetPortStateRequest(id=switch, port=port, state=state)
    show_row(call(ctx, lambda stub: stub.SetPortState(request)), ROW, ctx.obj.output)


def call(ctx: typer.Context, method: Callable[[Any], Awaitable[Any]]) -> Any:
    """Ask the service of switches."""

    async def body(peers: Peers) -> Any:
        return await method(peers.stub(SwitchServiceStub, "fabric"))

    return run(ctx.obj, body)
