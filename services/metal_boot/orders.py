"""What a registered installer is told to do. Pure: a situation in, an order out.

The only module that lets disks be touched, and it says so in two places: a wipe for a machine that neither inventory
nor allocation says is held, and an installation that allocation wants now. Everything in doubt waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from metal_boot.situation import INSTALLED, Situation, Wanted


class Order(Enum):
    """The kinds of work items."""

    WAIT = "wait"
    WIPE = "wipe"
    INSTALL = "install"
    START = "start"
    BOOT_EXISTING = "boot existing"


class Verdict(Enum):
    """What a registering machine is in for."""

    CLEAN = "clean"
    INSTALL = "install"
    BOOT_EXISTING = "boot existing"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Instruction:
    """An order and why. `offer` says that the machine may count as waiting for an allocation while it stands."""

    order: Order
    reason: str
    offer: bool = False


def instruct(situation: Situation) -> Instruction:
    """What the installer of this machine is to do now."""
    match situation.wanted:
        case Wanted.INSTALL if situation.agreed and not situation.locked:
            return Instruction(Order.INSTALL, situation.wanted.value)
        case Wanted.START if situation.agreed:
            return Instruction(Order.START, situation.wanted.value)
        case Wanted.RUNNING:
            return Instruction(Order.BOOT_EXISTING, situation.wanted.value)
        case Wanted.NOTHING:
            pass
        case _:
            return Instruction(Order.WAIT, situation.wanted.value)
    if situation.held:
        return Instruction(Order.WAIT, "held by an allocation that wants nothing yet")
    if situation.locked:
        return Instruction(Order.WAIT, "locked by an operator")
    if situation.clean:
        return Instruction(Order.WAIT, "waiting for an allocation", offer=True)
    if situation.wipe_failed:
        return Instruction(Order.WAIT, "quarantined: not every disk could be wiped")
    return Instruction(Order.WIPE, "free, and not wiped since its registration")


def verdict(situation: Situation) -> Verdict:
    """What a machine that has just registered is in for. It permits nothing."""
    if situation.wanted in INSTALLED:
        return Verdict.BOOT_EXISTING
    if situation.wanted is Wanted.INSTALL and not situation.locked:
        return Verdict.INSTALL
    if situation.held or situation.locked:
        return Verdict.HOLD
    return Verdict.CLEAN
