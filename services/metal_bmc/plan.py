"""What commands consist of, what they need of a BMC, and what they leave behind. Pure rules, no I/O.

A command is a plan of small steps. All but RESET and INTERRUPT may be repeated at any time, because they state a goal
(be off, be on, boot from the network); so a crash anywhere ends in the same state. A power cycle is "be off, seen off,
be on, seen on" for the same reason, and because a BMC that accepts and does nothing is found out by it. The others are
sent at most once.

Before a machine loses power or is reset, inventory hears of it: a machine that reboots unannounced counts as crashing.
"""

from __future__ import annotations

from enum import StrEnum

from metal_bmc.drivers.interface import BootMode, BootSetting, BootTarget, BootWish, Capability
from metal_bmc.drivers.quirks import Quirks


class Action(StrEnum):
    """What a command does."""

    POWER_ON = "power_on"
    POWER_OFF = "power_off"
    RESET = "reset"
    CYCLE = "cycle"
    BOOT_PXE = "boot_pxe"
    BOOT_DISK = "boot_disk"
    BOOT_BIOS = "boot_bios"
    IDENTIFY_ON = "identify_on"
    IDENTIFY_OFF = "identify_off"
    PXE_CYCLE = "pxe_cycle"
    SOFT_OFF = "soft_off"
    NMI = "nmi"


class Step(StrEnum):
    """One exchange with the BMC, or one task of a person; ANNOUNCE also tells inventory what is about to happen."""

    SET_BOOT = "SET_BOOT"
    ANNOUNCE = "ANNOUNCE"
    TURN_OFF = "TURN_OFF"
    CONFIRM_OFF = "CONFIRM_OFF"
    REST = "REST"
    TURN_ON = "TURN_ON"
    CONFIRM_ON = "CONFIRM_ON"
    RESET = "RESET"
    INTERRUPT = "INTERRUPT"
    ASK_OFF = "ASK_OFF"
    AWAIT_OFF = "AWAIT_OFF"
    # A person does it, at a machine without a BMC.
    PERSON = "PERSON"
    SET_IDENTIFY = "SET_IDENTIFY"


_OFF_AND_ON = (Step.TURN_OFF, Step.CONFIRM_OFF, Step.REST, Step.TURN_ON, Step.CONFIRM_ON)

PLANS: dict[Action, tuple[Step, ...]] = {
    Action.POWER_ON: (Step.TURN_ON, Step.CONFIRM_ON),
    Action.POWER_OFF: (Step.ANNOUNCE, Step.TURN_OFF, Step.CONFIRM_OFF),
    Action.RESET: (Step.ANNOUNCE, Step.RESET),
    Action.CYCLE: (Step.ANNOUNCE, *_OFF_AND_ON),
    Action.BOOT_PXE: (Step.SET_BOOT,),
    Action.BOOT_DISK: (Step.SET_BOOT,),
    Action.BOOT_BIOS: (Step.SET_BOOT,),
    Action.IDENTIFY_ON: (Step.SET_IDENTIFY,),
    Action.IDENTIFY_OFF: (Step.SET_IDENTIFY,),
    Action.PXE_CYCLE: (Step.SET_BOOT, Step.ANNOUNCE, *_OFF_AND_ON),
    # Ends as soon as the machine is seen off; the hard way is for callers who asked for it.
    Action.SOFT_OFF: (Step.ANNOUNCE, Step.ASK_OFF, Step.AWAIT_OFF, Step.TURN_OFF, Step.CONFIRM_OFF),
    Action.NMI: (Step.ANNOUNCE, Step.INTERRUPT),
}

ONE_SHOT = frozenset({Step.RESET, Step.INTERRUPT})
"""Steps whose order is sent at most once, whatever becomes of it."""


def plan_of(action: Action, *, by_hand: bool) -> tuple[Step, ...]:
    """The steps of an action. What a person does is one step, announced as far as the action is."""
    plan = PLANS[action]
    if not by_hand:
        return plan
    return (Step.ANNOUNCE, Step.PERSON) if Step.ANNOUNCE in plan else (Step.PERSON,)


_BOOT: dict[Action, BootTarget] = {
    Action.BOOT_PXE: BootTarget.PXE,
    Action.PXE_CYCLE: BootTarget.PXE,
    Action.BOOT_DISK: BootTarget.DISK,
    Action.BOOT_BIOS: BootTarget.BIOS,
}

_POWER = (Capability.POWER_OFF, Capability.POWER_ON)
_NEEDS: dict[Action, tuple[Capability, ...]] = {
    Action.POWER_ON: (Capability.POWER_ON,),
    Action.POWER_OFF: (Capability.POWER_OFF,),
    Action.RESET: (Capability.POWER_RESET,),
    Action.CYCLE: _POWER,
    Action.PXE_CYCLE: _POWER,
    Action.IDENTIFY_ON: (Capability.IDENTIFY,),
    Action.IDENTIFY_OFF: (Capability.IDENTIFY,),
    Action.SOFT_OFF: (Capability.POWER_SOFT_OFF,),
    Action.NMI: (Capability.NMI,),
}

_LEAVES_ON = frozenset({Action.POWER_ON, Action.CYCLE, Action.PXE_CYCLE})


def sets_boot(action: Action) -> bool:
    """Whether an action sets a boot override."""
    return action in _BOOT


def boot_wish(action: Action, persistent: bool | None, mode: BootMode | None) -> BootWish:
    """The boot override that an action sets; None leaves it to the action. KeyError for one that sets none.

    Setup is asked for once; PXE and disk stay until changed, because a lost override must not lead elsewhere.
    """
    target = _BOOT[action]
    lasts = target is not BootTarget.BIOS if persistent is None else persistent
    return BootWish(target, lasts, mode)


def needs(action: Action, persistent: bool | None = None, mode: BootMode | None = None) -> tuple[Capability, ...]:
    """The capabilities without which an action cannot be carried out."""
    needed = _NEEDS.get(action, ())
    if action not in _BOOT:
        return needed
    wish = boot_wish(action, persistent, mode)
    lasting = Capability.BOOT_PERSISTENT if wish.persistent else Capability.BOOT_ONCE
    return (*needed, lasting, Capability.BOOT_BIOS if wish.mode is BootMode.BIOS else Capability.BOOT_UEFI)


def holds(wish: BootWish, setting: BootSetting, quirks: Quirks) -> bool:
    """Whether what reads back is what was asked for."""
    lasting = setting.persistent or not wish.persistent
    once = not setting.persistent or wish.persistent or quirks.once_reads_persistent
    return setting.target is wish.target and lasting and once and wish.mode in (None, setting.mode)


def desired_after(action: Action, desired_on: bool | None) -> bool | None:
    """The wish for power after a command was given: one that exists follows the command, or the two would fight.

    A soft off may fail, and must then not be followed by a hard one that nobody asked for: see `desired_at_end`.
    """
    if desired_on is None:
        return None
    if action is Action.POWER_OFF:
        return False
    return True if action in _LEAVES_ON else desired_on


def desired_at_end(action: Action, desired_on: bool | None, *, by_hand: bool = False) -> bool | None:
    """The wish for power once a command has succeeded. A person may decline, so there it follows only now."""
    if by_hand:
        desired_on = desired_after(action, desired_on)
    return False if action is Action.SOFT_OFF and desired_on is not None else desired_on


def reboots(action: Action, powered: bool) -> bool:
    """Whether a machine with this power will go down, or come up, because of the action."""
    return powered or action in _LEAVES_ON
