"""Freeing, the fence first: off the tenant's network, back to the installer, addresses released."""

from __future__ import annotations

from datetime import datetime, timedelta

from metal_kit.clock import Clock
from metal_kit.controller import Done, Go, Outcome, Wait
from metal_kit.errors import DeadlineExceeded, NotFound, Unavailable
from metal_kit.logs import get_logger
from metalplane.bmc.v1.bmc_pb2 import CommandAction
from metalplane.fabric.v1.switch_pb2 import Attachment, DetachMachineRequest
from metalplane.inventory.v1.machine_pb2 import UnbindMachineRequest
from metalplane.ipam.v1.ip_pb2 import Owner, OwnerKind, ReleaseOwnedRequest, ReleaseOwnedResponse

from metal_allocation.clients import Clients
from metal_allocation.phase import Phase
from metal_allocation.record import Record
from metal_allocation.steps.commands import POLL, again, command, due
from metal_allocation.steps.leaves import confirmations, outstanding
from metal_allocation.steps.telling import FOREIGN, MACHINE_RECLAIM, PLANNED_REBOOT, Standing, tell

log = get_logger(__name__)

FENCED = "Fenced"
# A leaf that has been silent this long is taken for dead: its heartbeat comes every 5 s.
DEAD_LEAF = timedelta(seconds=20)
# Longer than a call of a worker that was given up can be under way.
SETTLING = timedelta(seconds=90)


async def fence(record: Record, clients: Clients, clock: Clock) -> Outcome:
    """Take the ports out of the tenant's VRF and have every leaf confirm it.

    When an outstanding leaf is dead, the machine is powered off and seen off instead: an old system that does not run
    cannot reach the tenant's network, whatever the leaf's ports still say.
    """
    wanted = DetachMachineRequest(machine=record.machine, allocation=record.id)
    try:
        attachment = await clients.switches.DetachMachine(wanted)
    except NotFound:
        return _fenced(record, clock, "NO_CABLING", "the machine hangs on no leaf")
    if attachment.confirmed and not attachment.allocation:
        return _fenced(record, clock, "CONFIRMED", f"confirmed by {confirmations(attachment)}")
    if attachment.allocation != record.id:
        # Fabric has forgotten us, or never knew: what the ports are wanted to be now is not for us.
        return _fenced(record, clock, "NOT_ATTACHED", "the machine's ports are not this allocation's")
    waiting = outstanding(attachment)
    record.set_condition(FENCED, False, "LEAVES_OUTSTANDING", waiting, clock.now())
    if not dead_leaves(attachment, clock.now()):
        return Wait("LEAVES_OUTSTANDING", waiting, POLL)
    if due(record, clock) and await _foreign(record, clients):
        return _fenced(record, clock, "NOT_BOUND", "inventory says that the machine is not this allocation's")
    result = await command(record, clients, clock, CommandAction.COMMAND_ACTION_POWER_OFF, "fence-off")
    if not result.succeeded:
        return again(result, before=waiting)
    return _fenced(record, clock, "POWERED_OFF", f"the machine is off; {waiting}")


async def _foreign(record: Record, clients: Clients) -> bool:
    """Tell inventory that the machine goes off; answers whether that must not be.

    When inventory cannot be asked the machine goes off all the same: it was ours when the free was asked for, it is
    ours for fabric now, and a false alarm is better than a machine that stays on the tenant's network.
    """
    message = f"allocation {record.id} is freed while a leaf is dead"
    try:
        standing = await tell(record, clients, PLANNED_REBOOT, "fence-off", message, attempt=record.command_attempts)
    except (Unavailable, DeadlineExceeded) as problem:
        log.warning("fence.unannounced", allocation=record.id, machine=record.machine, cause=problem.reason)
        return False
    return standing in FOREIGN


def _fenced(record: Record, clock: Clock, reason: str, message: str) -> Go:
    record.set_condition(FENCED, True, reason, message, clock.now())
    return Go(Phase.RECLAIMING, "FENCED", message)


def dead_leaves(attachment: Attachment, now: datetime) -> list[str]:
    """Outstanding leaves that have not been heard of for too long."""
    return [
        leaf.switch_id
        for leaf in attachment.leaves
        if not leaf.confirmed and not leaf.connected and leaf.seen_time.ToDatetime(tzinfo=now.tzinfo) < now - DEAD_LEAF
    ]


async def reclaim(record: Record, clients: Clients, clock: Clock) -> Outcome:
    """Send the machine back to the installer.

    A failed power action is tried again for as long as it takes; nothing goes on as if it had worked. A machine that
    somebody else has by now, or that inventory does not know, is left alone. One that nobody has is sent back: its
    binding got lost, and what runs on it is ours.
    """
    if due(record, clock):
        message = f"allocation {record.id} is freed"
        standing = await tell(record, clients, MACHINE_RECLAIM, "reclaim", message)
        if standing in FOREIGN:
            gone = standing is Standing.GONE
            text = "inventory no longer knows the machine" if gone else "the machine is another allocation's by now"
            return Go(Phase.RELEASING, "MACHINE_GONE" if gone else "NOT_BOUND", text)
    result = await command(record, clients, clock, CommandAction.COMMAND_ACTION_PXE_CYCLE, "reclaim")
    if not result.succeeded:
        return again(result)
    return Go(Phase.RELEASING, "RECLAIMED", "the machine boots into the installer")


async def release(record: Record, clients: Clients, clock: Clock) -> Outcome:
    """Release everything that the allocation owns, keyed by its id: never by the machine's."""
    answer = await _release_owned(record, clients)
    message = (
        f"released {answer.released_ips} addresses and {answer.released_numbers} numbers, "
        f"detached {answer.detached_ips} static addresses"
    )
    return Go(Phase.UNBINDING, "RELEASED_ADDRESSES", message)


async def unbind(record: Record, clients: Clients, clock: Clock) -> Outcome:
    """End the binding. A machine that inventory no longer knows has none."""
    if not await _unbind(record, clients):
        record.note("MACHINE_GONE", "inventory no longer knows the machine")
    return Go(Phase.RELEASED)


async def settle(record: Record, clients: Clients, clock: Clock) -> Outcome:
    """Once more, when nothing can be under way any more.

    A worker that was stopped in the middle of a call and taken for dead may have acquired or bound something after it
    had been let go of. Both are keyed by the allocation's id, so that the next holder of the machine is not touched.
    """
    left = record.phase_time + SETTLING - clock.now()
    if left > timedelta(0):
        return Wait("SETTLING", "", left)
    await _release_owned(record, clients)
    await _unbind(record, clients)
    return Done()


async def _release_owned(record: Record, clients: Clients) -> ReleaseOwnedResponse:
    owner = Owner(kind=OwnerKind.OWNER_KIND_ALLOCATION, id=record.id)
    return await clients.ips.ReleaseOwned(ReleaseOwnedRequest(owner=owner))


async def _unbind(record: Record, clients: Clients) -> bool:
    try:
        await clients.machines.UnbindMachine(UnbindMachineRequest(machine=record.machine, allocation=record.id))
    except NotFound:
        return False
    return True
