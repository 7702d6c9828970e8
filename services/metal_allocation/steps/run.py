"""A running allocation: whether its machine's ports still are in its network on every leaf."""

from __future__ import annotations

from datetime import timedelta

from metal_kit.clock import Clock
from metal_kit.controller import Done, Outcome, Wait
from metal_kit.errors import FailedPrecondition, NotFound
from metalplane.fabric.v1.switch_pb2 import Attachment, GetAttachmentRequest

from metal_allocation.clients import Clients
from metal_allocation.record import Record
from metal_allocation.steps.addressing import say_owners
from metal_allocation.steps.leaves import confirmations, outstanding
from metal_allocation.steps.start import ATTACHED, attach_request

# What changes is an event; this is for the one that gets lost.
LOOK_AGAIN = timedelta(seconds=30)


async def look(record: Record, clients: Clients, clock: Clock) -> Outcome:
    """Say in the condition `Attached` whether every leaf has the machine in its network, and look on while one has not.

    A leaf may go back to an older state, be held at one, or be relieved by another. What is seen counts, not the event
    that led here: events may come late or twice.
    """
    try:
        attachment = await _attachment(record, clients)
    except (FailedPrecondition, NotFound) as refused:
        return _lost(record, clock, refused.reason, refused.message)
    if attachment.allocation != record.id:
        return _lost(record, clock, "NOT_ATTACHED", "the machine's ports are not this allocation's")
    if not attachment.confirmed:
        return _lost(record, clock, "LEAVES_OUTSTANDING", outstanding(attachment))
    leaves = f"confirmed by {confirmations(attachment)}"
    if _was_lost(record):
        record.note("ATTACHED_AGAIN", leaves)
    record.set_condition(ATTACHED, True, "CONFIRMED", leaves, clock.now())
    return Done()


async def _attachment(record: Record, clients: Clients) -> Attachment:
    if await say_owners(record, clients):
        # Attached before anybody said whose its VNIs are: said now, so that no other network gets them meanwhile.
        return await clients.switches.AttachMachine(attach_request(record))
    return await clients.switches.GetAttachment(GetAttachmentRequest(machine=record.machine))


def _lost(record: Record, clock: Clock, reason: str, message: str) -> Wait:
    if record.set_condition(ATTACHED, False, reason, message, clock.now()):
        record.note(reason, f"the machine is not in its network everywhere: {message}")
    return Wait(reason, message, LOOK_AGAIN)


def _was_lost(record: Record) -> bool:
    return any(each.type == ATTACHED and not each.status for each in record.conditions)
