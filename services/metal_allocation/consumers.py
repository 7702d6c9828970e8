"""Events of other services: machines to choose from, and reasons to look at an allocation again."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message
from metal_kit.controller import enqueue
from metal_kit.db import Connection
from metal_kit.events import Consumer
from metalplane.bmc.v1.events_pb2 import CommandFinished
from metalplane.common.v1.event_pb2 import Event
from metalplane.fabric.v1.events_pb2 import AttachmentConfirmed
from metalplane.inventory.v1.events_pb2 import MachineChanged, MachineDeleted
from metalplane.inventory.v1.machine_pb2 import Liveliness, Machine, MachineState

from metal_allocation.controller import KIND
from metal_allocation.phase import SETTLED
from metal_allocation.store import AllocationStore, CandidateFacts, PlacementStore

M = TypeVar("M", bound=Message)


def consumers() -> list[Consumer]:
    """What allocation listens to."""
    return [
        Consumer("allocation-machines", ["metalplane.inventory.machine.*"], on_machine),
        Consumer("allocation-attachments", ["metalplane.fabric.attachment.confirmed"], on_attachment),
        Consumer("allocation-commands", ["metalplane.bmc.command.finished"], on_command),
    ]


async def on_machine(event: Event, conn: Connection) -> None:
    """Take over what inventory says of a machine, and wake the allocation that it is bound to."""
    if event.payload.Is(MachineDeleted.DESCRIPTOR):
        await PlacementStore().forget(conn, event.entity_id)
        return
    machine = _unpack(event, MachineChanged()).machine
    await PlacementStore().upsert(conn, facts_of(machine))
    if machine.binding.allocation:
        await _wake(conn, machine.binding.allocation)


async def on_attachment(event: Event, conn: Connection) -> None:
    """The leaves have confirmed: whoever asked can go on."""
    await _wake(conn, _unpack(event, AttachmentConfirmed()).allocation)


async def on_command(event: Event, conn: Connection) -> None:
    """A BMC command has ended: whoever gave it can go on."""
    await _wake(conn, _unpack(event, CommandFinished()).command.allocation)


def facts_of(machine: Machine) -> CandidateFacts:
    """What choosing needs to know of a machine."""
    return CandidateFacts(
        machine=machine.id,
        partition=machine.partition,
        size=machine.size,
        rack=machine.rack,
        state=MachineState.Name(machine.state).removeprefix("MACHINE_STATE_").lower(),
        waiting=machine.waiting,
        alive=machine.lifecycle.liveliness == Liveliness.LIVELINESS_ALIVE,
        clean=machine.disks_clean,
        cabled=bool(machine.links) and not machine.cabling_error,
        bound=bool(machine.binding.allocation),
        version=int(machine.etag or 0),
    )


async def _wake(conn: Connection, allocation: str) -> None:
    """Look at the allocation again, unless it is not ours or has nothing left to do."""
    if not allocation:
        return
    record = await AllocationStore().get(conn, allocation)
    if record is not None and record.phase not in SETTLED:
        await enqueue(conn, KIND, allocation)


def _unpack(event: Event, message: M) -> M:
    if not event.payload.Unpack(message):
        raise ValueError(f"event {event.id} on {event.subject} carries {event.payload.type_url}")
    return message
