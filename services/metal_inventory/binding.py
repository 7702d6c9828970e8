"""Whether a machine may be bound to an allocation, let go of, or forgotten.

These are the last words: the allocation service chooses by events that may be a moment old, and the compare-and-set
here asks again with the machine's row locked.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from metal_inventory.liveliness import Liveliness, liveliness
from metal_inventory.state import AdminState


class Refusal(Enum):
    """Why a machine cannot be bound, unbound or deleted, in the order in which reasons are reported."""

    BOUND_TO_OTHER = "MACHINE_BOUND_TO_OTHER"
    LOCKED = "MACHINE_LOCKED"
    TAINTED = "MACHINE_TAINTED"
    RECLAIM_FAILED = "MACHINE_RECLAIM_FAILED"
    DISKS_NOT_CLEAN = "MACHINE_DISKS_NOT_CLEAN"
    NOT_CABLED = "MACHINE_NOT_CABLED"
    NOT_WAITING = "MACHINE_NOT_WAITING"
    NOT_ALIVE = "MACHINE_NOT_ALIVE"
    BOUND = "MACHINE_BOUND"
    STILL_ALIVE = "MACHINE_STILL_ALIVE"


EXPLANATIONS = {
    Refusal.BOUND_TO_OTHER: "is bound to another allocation",
    Refusal.LOCKED: "is locked by an operator",
    Refusal.TAINTED: "is tainted by an operator and may only be used when named explicitly",
    Refusal.RECLAIM_FAILED: "still runs the operating system of its last tenant",
    Refusal.DISKS_NOT_CLEAN: "has disks that could not be wiped",
    Refusal.NOT_CABLED: "is not cabled to two leaves of one rack",
    Refusal.NOT_WAITING: "does not wait for an allocation: its installer holds no live lease",
    Refusal.NOT_ALIVE: "has not been heard of lately",
    Refusal.BOUND: "is bound to an allocation: free it first",
    Refusal.STILL_ALIVE: "is still heard of: switch it off and wait until it counts as dead",
}
"""The same for people; each continues `machine <id> …`."""


@dataclass(frozen=True, slots=True)
class Bindable:
    """The part of a machine's record that decides whether it can be bound."""

    admin_state: AdminState = AdminState.AVAILABLE
    allocation_id: str = ""
    waiting_expires: datetime | None = None
    last_event_time: datetime | None = None
    disks_clean: bool = True
    cabled: bool = True
    failed_machine_reclaim: bool = False


def refuse_bind(
    machine: Bindable, *, now: datetime, allocation_id: str = "", allow_tainted: bool = False
) -> Refusal | None:
    """Why the machine cannot be bound at ``now``; None when it can, or when this allocation already has it."""
    if machine.allocation_id:
        return None if machine.allocation_id == allocation_id else Refusal.BOUND_TO_OTHER
    alive = liveliness(machine.last_event_time, allocated=False, now=now) is Liveliness.ALIVE
    refusals = {
        Refusal.LOCKED: machine.admin_state is AdminState.LOCKED,
        Refusal.TAINTED: machine.admin_state is AdminState.TAINTED and not allow_tainted,
        Refusal.RECLAIM_FAILED: machine.failed_machine_reclaim,
        Refusal.DISKS_NOT_CLEAN: not machine.disks_clean,
        Refusal.NOT_CABLED: not machine.cabled,
        Refusal.NOT_WAITING: machine.waiting_expires is None or machine.waiting_expires <= now,
        Refusal.NOT_ALIVE: not alive,
    }
    return next((refusal for refusal, holds in refusals.items() if holds), None)


def refuse_unbind(machine: Bindable, *, allocation_id: str) -> Refusal | None:
    """Why the machine cannot be unbound from ``allocation_id``; None when it can, or when there is nothing to do.

    A machine that another allocation holds, or none, needs nothing: an unbind can be repeated, and one that comes
    late never hits the next holder.
    """
    if machine.allocation_id != allocation_id:
        return None
    return Refusal.LOCKED if machine.admin_state is AdminState.LOCKED else None


def refuse_delete(machine: Bindable, *, now: datetime) -> Refusal | None:
    """Why the machine cannot be forgotten at ``now``; None when it can: free, not locked, and silent or never heard."""
    if machine.allocation_id:
        return Refusal.BOUND
    if machine.admin_state is AdminState.LOCKED:
        return Refusal.LOCKED
    alive = liveliness(machine.last_event_time, allocated=False, now=now) is Liveliness.ALIVE
    return Refusal.STILL_ALIVE if alive else None
