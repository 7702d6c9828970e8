"""Machines: power, state, history, issues."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Annotated

import typer
from metal_kit.client import Peers
from metal_kit.ids import uuid7
from metalplane.bmc.v1 import bmc_pb2
from metalplane.bmc.v1.bmc_pb2_grpc import BmcServiceStub
from metalplane.inventory.v1 import machine_pb2 as pb
from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceStub

from metalctl import command, naming
from metalctl.failure import USAGE, fail
from metalctl.output import show_many, show_one
from metalctl.session import run
from metalctl.values import enum, instant, span

POLL = 0.3
RUNNING = frozenset({bmc_pb2.CommandState.COMMAND_STATE_PENDING, bmc_pb2.CommandState.COMMAND_STATE_RUNNING})


class Power(StrEnum):
    """What `machine power` can do."""

    ON = "on"
    OFF = "off"
    RESET = "reset"
    CYCLE = "cycle"
    PXE = "pxe"
    DISK = "disk"
    BIOS = "bios"
    IDENTIFY_ON = "identify-on"
    IDENTIFY_OFF = "identify-off"
    SOFT_OFF = "soft-off"
    NMI = "nmi"


class BootMode(StrEnum):
    """How the machine boots."""

    UEFI = "uefi"
    BIOS = "bios"


ACTIONS = {
    Power.ON: "POWER_ON",
    Power.OFF: "POWER_OFF",
    Power.RESET: "RESET",
    Power.CYCLE: "CYCLE",
    Power.PXE: "BOOT_PXE",
    Power.DISK: "BOOT_DISK",
    Power.BIOS: "BOOT_BIOS",
    Power.IDENTIFY_ON: "IDENTIFY_ON",
    Power.IDENTIFY_OFF: "IDENTIFY_OFF",
    Power.SOFT_OFF: "SOFT_OFF",
    Power.NMI: "NMI",
}


class State(StrEnum):
    """What `machine state` can set."""

    AVAILABLE = "available"
    TAINTED = "tainted"
    LOCKED = "locked"


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to their group."""
    group = groups["machine"]
    command.add(group, "power", power, "power, boot device and identify LED, through the BMC; waits for the result")
    command.add(group, "state", state, "make a machine available, tainted or locked")
    command.add(group, "events", events, "a machine's provisioning events, newest first")
    command.add(group, "issues", issues, "what is wrong with machines")


def power(
    ctx: typer.Context,
    machine: Annotated[str, typer.Argument(help="UUID of the machine")],
    action: Annotated[Power, typer.Argument(help="what to do; identify is the LED, pxe, disk and bios the next boot")],
    once: Annotated[
        bool | None, typer.Option("--once/--persistent", help="how long a boot device holds; else as usual for it")
    ] = None,
    mode: Annotated[BootMode | None, typer.Option(help="how a boot device is booted; else UEFI where it goes")] = None,
    hard_after: Annotated[
        str, typer.Option(help="soft-off: switch off hard after this time (30s, 5m, 1h); else never")
    ] = "",
    timeout: Annotated[str, typer.Option(help="how long it may take (30s, 5m, 24h); else as usual for it")] = "",
) -> None:
    """Give the BMC a command and wait for its result."""
    request = bmc_pb2.CreateCommandRequest(
        request_id=uuid7(), machine=machine, action=bmc_pb2.CommandAction.Value(f"COMMAND_ACTION_{ACTIONS[action]}")
    )
    if once is not None:
        request.boot_lasting = bmc_pb2.BOOT_LASTING_ONCE if once else bmc_pb2.BOOT_LASTING_PERSISTENT
    if mode is not None:
        request.boot_mode = bmc_pb2.BootMode.Value(f"BOOT_MODE_{mode.name}")
    if hard_after:
        request.hard_after.FromTimedelta(_span("--hard-after", hard_after))
    if timeout:
        request.timeout.FromTimedelta(_span("--timeout", timeout))

    async def body(peers: Peers) -> bmc_pb2.Command:
        stub = peers.stub(BmcServiceStub, "bmc")
        given = await stub.CreateCommand(request)
        while given.state in RUNNING:
            await asyncio.sleep(POLL)
            given = await stub.GetCommand(bmc_pb2.GetCommandRequest(id=given.id))
        return given

    given = run(ctx.obj, body, interrupted="the command goes on: `metalctl command list` shows it")
    show_one(given, ctx.obj.output)
    if given.state != bmc_pb2.CommandState.COMMAND_STATE_SUCCEEDED:
        fail(f"{action} {enum(bmc_pb2.CommandState, given.state)}: {given.error} [{given.reason}]")


def _span(option: str, text: str) -> timedelta:
    found = span(text)
    if found is None:
        fail(f"{option} {text}: write a length of time such as 30s, 5m or 24h", USAGE)
    return found


def state(
    ctx: typer.Context,
    machine: Annotated[str, typer.Argument(help="UUID of the machine")],
    wanted: Annotated[State, typer.Argument(help="the state")],
    reason: Annotated[str, typer.Option(help="why; needed for tainted and locked")] = "",
) -> None:
    """Set the state of a machine."""
    request = pb.SetMachineStateRequest(
        id=machine, state=pb.MachineState.Value(f"MACHINE_STATE_{wanted.upper()}"), description=reason
    )

    async def body(peers: Peers) -> pb.Machine:
        return await peers.stub(MachineServiceStub, "inventory").SetMachineState(request)

    show_one(run(ctx.obj, body), ctx.obj.output)


def events(ctx: typer.Context, machine: Annotated[str, typer.Argument(help="UUID of the machine")]) -> None:
    """Show a machine's history."""

    async def body(peers: Peers) -> list[pb.ProvisioningEvent]:
        stub = peers.stub(MachineServiceStub, "inventory")
        request = pb.ListMachineEventsRequest(machine=machine)
        return [each async for each in naming.pages(stub.ListMachineEvents, request, "events")]

    columns = (
        ("SEQ", lambda e: str(e.sequence)),
        ("TIME", lambda e: instant(e.time)),
        ("TYPE", lambda e: enum(pb.ProvisioningEventType, e.type)),
        ("MESSAGE", lambda e: e.message),
    )
    show_many(run(ctx.obj, body), columns, ctx.obj.output)


def issues(
    ctx: typer.Context,
    partition: Annotated[str, typer.Option(help="only of this partition")] = "",
) -> None:
    """Show what is wrong."""

    async def body(peers: Peers) -> list[pb.MachineIssue]:
        stub = peers.stub(MachineServiceStub, "inventory")
        request = pb.ListMachineIssuesRequest(filter=pb.MachineFilter(partition=partition))
        return [each async for each in naming.pages(stub.ListMachineIssues, request, "issues")]

    columns = (
        ("MACHINE", lambda i: i.machine),
        ("SEVERITY", lambda i: enum(pb.IssueSeverity, i.severity)),
        ("RULE", lambda i: i.rule),
        ("MESSAGE", lambda i: i.message),
    )
    show_many(run(ctx.obj, body), columns, ctx.obj.output)
