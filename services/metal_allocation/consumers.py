"""Events of other services: machines to choose from, and reasons to look at an allocation again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import Message
from metal_kit.controller import enqueue
from metal_kit.db import Connection
from metal_kit.events import Consumer
from metalplane.bmc.v1.events_pb2 import CommandFinished
from metalplane.common.v1.event_pb2 import Event
from metalplane.fabric.v1.events_pb2 import AttachmentConfirmed, AttachmentRetracted
from metalplane.inventory.v1.events_pb2 import MachineChanged, MachineDeleted
from metalplane.inventory.v1.machine_pb2 import Liveliness, Machine, MachineState

from metal_allocation.controller import KIND
from metal_allocation.phase import Phase
from metal_allocation.store import AllocationStore, CandidateFacts, PlacementStore

M = TypeVar("M", bound=Message)
MACHINE_FACTS = ("changed", "deleted")
WORDS = ("confirmed", "retracted")
STATES = {number: name.removeprefix("MACHINE_STATE_").lower() for name, number in MachineState.items()}


def consumers() -> list[Consumer]:
    """What allocation listens to."""
    return [
        Consumer("allocation-machines", [f"metalplane.inventory.machine.{fact}" for fact in MACHINE_FACTS], on_machine),
        Consumer("allocation-attachments", [f"metalplane.fabric.attachment.{fact}" for fact in WORDS], on_attachment),
        Consumer("allocation-commands", ["metalplane.bmc.command.finished"], on_command),
    ]


async def on_machine(event: Event, conn: Connection) -> None:
    """Take over what inventory says of a machine, and wake the allocation that it is bound to."""
    if event.payload.Is(MachineDeleted.DESCRIPTOR):
        await PlacementStore().forget(conn, event.entity_id)
        return
    machine = _unpack(event, MachineChanged()).machine
    await PlacementStore().upsert(conn, [facts_of(machine)])
    await wake(conn, [machine.binding.allocation])


async def on_attachment(event: Event, conn: Connection) -> None:
    """The leaves have confirmed, and whoever asked can go on; or one has taken back what it confirmed."""
    if event.payload.Is(AttachmentRetracted.DESCRIPTOR):
        allocation = _unpack(event, AttachmentRetracted()).allocation
    else:
        allocation = _unpack(event, AttachmentConfirmed()).allocation
    # Also one that runs: it looks at what its leaves have by now.
    await wake(conn, [allocation], running=True)


async def on_command(event: Event, conn: Connection) -> None:
    """A BMC command has ended: whoever gave it can go on."""
    await wake(conn, [_unpack(event, CommandFinished()).command.allocation])


def facts_of(machine: Machine) -> CandidateFacts:
    """What choosing needs to know of a machine. A state that this release does not know is not available."""
    return CandidateFacts(
        machine=machine.id,
        partition=machine.partition,
        size=machine.size,
        rack=machine.rack,
        state=STATES.get(machine.state, "unknown"),
        waiting=machine.waiting,
        alive=machine.lifecycle.liveliness == Liveliness.LIVELINESS_ALIVE,
        clean=machine.disks_clean,
        cabled=bool(machine.links) and not machine.cabling_error,
        reclaim_failed=machine.lifecycle.failed_reclaim,
        bound=bool(machine.binding.allocation),
        version=int(machine.etag) if machine.etag.isdecimal() else 0,
    )


async def wake(conn: Connection, allocations: Iterable[str], *, running: bool = False) -> set[str]:
    """Look at allocations again, those that run only when it is about them; answers those that do not exist.

    One that was released is looked at too: a machine that is said to be bound to it has to be let go of.
    """
    named = {each for each in allocations if each}
    if not named:
        return set()
    phases = await AllocationStore().phases(conn, named)
    await enqueue(conn, KIND, [each for each, phase in phases.items() if running or phase is not Phase.RUNNING])
    return named - set(phases)


def _unpack(event: Event, message: M) -> M:
    if not event.payload.Unpack(message):
        raise ValueError(f"event {event.id} on {event.subject} carries {event.payload.type_url}")
    return message
