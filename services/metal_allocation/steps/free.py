"""Freeing, the fence first: off the tenant's network, back to the installer, addresses released."""

from __future__ import annotations

from datetime import timedelta

from metal_kit.clock import Clock
from metal_kit.controller import Go, Outcome, Wait
from metal_kit.errors import NotFound
from metalplane.bmc.v1.bmc_pb2 import CommandAction
from metalplane.fabric.v1.switch_pb2 import Attachment, DetachMachineRequest, GetAttachmentRequest
from metalplane.inventory.v1.machine_pb2 import ProvisioningEventType, RecordEventsRequest, ReportedEvent
from metalplane.ipam.v1.ip_pb2 import Owner, OwnerKind, ReleaseOwnedRequest

from metal_allocation.clients import Clients, derived_request_id
from metal_allocation.phase import Phase
from metal_allocation.record import Record
from metal_allocation.steps.commands import POLL, command
from metal_allocation.steps.start import outstanding

FENCED = "Fenced"
# A leaf that has been silent this long is taken for dead: its heartbeat comes every 5 s.
DEAD_LEAF = timedelta(seconds=20)
MAX_BACKOFF = timedelta(minutes=2)


async def fence(record: Record, clients: Clients, clock: Clock) -> Outcome:
    """Take the ports out of the tenant's VRF and have every leaf confirm it.

    When an outstanding leaf is dead, the machine is powered off and seen off instead: an old system that does not run
    cannot reach the tenant's network, whatever the leaf's ports still say.
    """
    try:
        attachment = await clients.switches.DetachMachine(
            DetachMachineRequest(machine=record.machine, allocation=record.id)
        )
        if not attachment.confirmed:
            attachment = await clients.switches.GetAttachment(GetAttachmentRequest(machine=record.machine))
    except NotFound:
        record.set_condition(FENCED, True, "NO_CABLING", "the machine hangs on no leaf", clock.now())
        return Go(Phase.RECLAIMING, "FENCED", "the machine hangs on no leaf")
    if attachment.confirmed:
        leaves = ", ".join(f"{leaf.switch_id} {leaf.port}" for leaf in attachment.leaves)
        record.set_condition(FENCED, True, "CONFIRMED", f"confirmed by {leaves}", clock.now())
        return Go(Phase.RECLAIMING, "FENCED", f"confirmed by {leaves}")
    waiting = outstanding(attachment)
    record.set_condition(FENCED, False, "LEAVES_OUTSTANDING", waiting, clock.now())
    if dead_leaves(attachment, clock):
        return await _power_off(record, clients, clock, waiting)
    return Wait("LEAVES_OUTSTANDING", waiting, POLL)


def dead_leaves(attachment: Attachment, clock: Clock) -> list[str]:
    """Outstanding leaves that have not been heard of for too long."""
    limit = clock.now() - DEAD_LEAF
    return [
        leaf.switch_id
        for leaf in attachment.leaves
        if not leaf.confirmed and not leaf.connected and leaf.seen_time.ToDatetime(tzinfo=limit.tzinfo) < limit
    ]


async def _power_off(record: Record, clients: Clients, clock: Clock, waiting: str) -> Outcome:
    result = await command(record, clients, CommandAction.COMMAND_ACTION_POWER_OFF, "fence-off")
    if result.succeeded:
        record.set_condition(FENCED, True, "POWERED_OFF", f"off instead of fenced: {waiting}", clock.now())
        return Go(Phase.RECLAIMING, "FENCED_BY_POWER_OFF", f"the machine is off; {waiting}")
    return Wait(result.reason, f"{waiting}; power off: {result.error}", POLL)


async def reclaim(record: Record, clients: Clients, clock: Clock) -> Outcome:
    """Send the machine back to the installer.

    The event comes before the power cycle, not after it: otherwise the PXE request of a fast machine arrives while
    inventory still believes that the tenant's system runs, and counts as a crash loop. A failed power action is tried
    again for as long as it takes; nothing goes on as if it had worked.
    """
    await clients.machines.RecordEvents(
        RecordEventsRequest(
            partition=record.partition,
            machine=record.machine,
            allocation=record.id,
            events=[
                ReportedEvent(
                    id=derived_request_id(record.id, "reclaim-event"),
                    type=ProvisioningEventType.PROVISIONING_EVENT_TYPE_MACHINE_RECLAIM,
                    message=f"allocation {record.id} is freed",
                )
            ],
        )
    )
    result = await command(record, clients, CommandAction.COMMAND_ACTION_PXE_CYCLE, "reclaim")
    if result.succeeded:
        return Go(Phase.RELEASING, "RECLAIMED", "the machine boots into the installer")
    after = min(POLL * 2 ** min(record.command_attempts, 6), MAX_BACKOFF) if result.done else POLL
    return Wait(result.reason, result.error, after)


async def release(record: Record, clients: Clients, clock: Clock) -> Outcome:
    """Release everything that the allocation owns, keyed by its id: never by the machine's."""
    answer = await clients.ips.ReleaseOwned(
        ReleaseOwnedRequest(owner=Owner(kind=OwnerKind.OWNER_KIND_ALLOCATION, id=record.id))
    )
    message = (
        f"released {answer.released_ips} addresses and {answer.released_numbers} numbers, "
        f"detached {answer.detached_ips} static addresses"
    )
    return Go(Phase.UNBINDING, "RELEASED_ADDRESSES", message)
