"""Telling inventory before a machine's power is touched, and learning by that whose machine it is.

The event comes before the order, not after it: otherwise the PXE request of a fast machine arrives while inventory
still believes that a system runs, and counts as a crash loop. bmc tells of reboots that people order; those of an
allocation are told here, under inventory's guard, which drops what is said of a machine that it does not have.
"""

from __future__ import annotations

from enum import Enum, auto

from metal_kit.errors import NotFound
from metalplane.inventory.v1.machine_pb2 import (
    EventOutcome,
    GetMachineRequest,
    ProvisioningEventType,
    RecordEventsRequest,
    ReportedEvent,
)

from metal_allocation.clients import Clients, derived_request_id
from metal_allocation.record import Record

PLANNED_REBOOT = ProvisioningEventType.PROVISIONING_EVENT_TYPE_PLANNED_REBOOT
MACHINE_RECLAIM = ProvisioningEventType.PROVISIONING_EVENT_TYPE_MACHINE_RECLAIM


class Standing(Enum):
    """Whose the machine is, by inventory's binding."""

    OURS = auto()
    NOBODYS = auto()
    OTHERS = auto()
    GONE = auto()


FOREIGN = frozenset({Standing.OTHERS, Standing.GONE})
"""Nothing may be done to such a machine in the name of this allocation, and nothing is left to be done."""


async def tell(
    record: Record,
    clients: Clients,
    event: ProvisioningEventType.ValueType,
    step: str,
    message: str,
    *,
    attempt: int = 0,
) -> Standing:
    """Record the event of a step's attempt, once; answers whose the machine is.

    Only the machine of this allocation gets the event. Raises a Problem when inventory cannot be asked.
    """
    told = RecordEventsRequest(
        partition=record.partition,
        machine=record.machine,
        allocation=record.id,
        events=[ReportedEvent(id=derived_request_id(record.id, f"{step}-event", attempt), type=event, message=message)],
    )
    try:
        answer = await clients.machines.RecordEvents(told)
        # The events told here are accepted in every state: dropped means the guard.
        if EventOutcome.EVENT_OUTCOME_DROPPED not in answer.outcomes:
            return Standing.OURS
        machine = await clients.machines.GetMachine(GetMachineRequest(id=record.machine))
    except NotFound:
        return Standing.GONE
    if machine.binding.allocation == record.id:
        return Standing.OURS
    return Standing.OTHERS if machine.binding.allocation else Standing.NOBODYS
