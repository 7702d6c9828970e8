"""The grant: the only thing that lets the installer change a byte on a disk.

A machine can reach the installer by accident, for instance when its boot override is lost while a tenant's system is
on its disks. So the installer destroys nothing on its own judgement: each wipe and each installation comes with a
grant that names the machine, the registration it answers (generation), the disks by serial, and a time limit. Pure; no
I/O.

The time limit is checked against the monotonic clock from the moment the grant arrived, and what is left of it then is
reckoned by boot's clock: the clock of a machine that has just been powered on can be years off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Refusal(StrEnum):
    """Why a grant does not allow what is about to be done."""

    MISSING = "there is no grant"
    OTHER_MACHINE = "the grant is for another machine"
    OTHER_GENERATION = "the grant answers an earlier registration"
    OTHER_ALLOCATION = "the grant is for another allocation"
    OTHER_DISKS = "the grant does not name all of the disks"
    NO_DISKS = "no disk is named"
    EXPIRED = "the grant has expired"


class GrantRefused(Exception):
    """The grant does not allow it; nothing was touched."""

    def __init__(self, refusal: Refusal, detail: str = "") -> None:
        super().__init__(f"{refusal.value}{': ' + detail if detail else ''}")
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Grant:
    """Permission to destroy data on some disks of one machine.

    `allocation_id` is empty for the wipe of an unallocated machine. `deadline` is in seconds of the monotonic clock;
    work that has begun in time may end after it.
    """

    machine_id: str
    generation: int
    allocation_id: str
    serials: frozenset[str]
    deadline: float


def ambiguous(serials: Iterable[str]) -> frozenset[str]:
    """Serials that more than one disk has. A grant that names one does not say which disk it means."""
    return frozenset(serial for serial, count in Counter(serials).items() if count > 1)


def require(
    grant: Grant | None, *, machine_id: str, generation: int, allocation_id: str, serials: Iterable[str], now: float
) -> Grant:
    """Return the grant if it covers all of it, else raise GrantRefused. `now` is the monotonic clock, in seconds."""
    wanted = frozenset(serials)
    if grant is None:
        raise GrantRefused(Refusal.MISSING)
    if not wanted or "" in wanted:
        raise GrantRefused(Refusal.NO_DISKS)
    if grant.machine_id != machine_id:
        raise GrantRefused(Refusal.OTHER_MACHINE)
    if grant.generation != generation:
        raise GrantRefused(Refusal.OTHER_GENERATION, f"{grant.generation}, registered {generation}")
    if grant.allocation_id != allocation_id:
        raise GrantRefused(Refusal.OTHER_ALLOCATION)
    if missing := sorted(wanted - grant.serials):
        raise GrantRefused(Refusal.OTHER_DISKS, ", ".join(missing))
    if now >= grant.deadline:
        raise GrantRefused(Refusal.EXPIRED)
    return grant
