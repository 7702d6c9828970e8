"""Commands to BMCs: what each consists of, and what follows from the outcome of a step. Pure rules, no I/O.

A command is a plan of small steps. All but RESET may be repeated at any time, because they state a goal (be off, be on,
boot from the network); so a crash anywhere ends in the same state. A power cycle is "be off, seen off, be on, seen on"
for the same reason, and because a BMC that accepts and does nothing is found out by it. RESET is sent at most once.

Before a machine loses power or is reset, inventory hears of it: a machine that reboots unannounced counts as crashing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from metal_bmc.drivers.errors import BmcAuthFailed, BmcError, BmcSessionsFull, DriverBusy
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


class State(StrEnum):
    """Where a command is."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen."""
        return self not in (State.PENDING, State.RUNNING)


class Step(StrEnum):
    """One exchange with the BMC; ANNOUNCE also tells inventory what is about to happen."""

    SET_BOOT = "SET_BOOT"
    ANNOUNCE = "ANNOUNCE"
    TURN_OFF = "TURN_OFF"
    CONFIRM_OFF = "CONFIRM_OFF"
    REST = "REST"
    TURN_ON = "TURN_ON"
    CONFIRM_ON = "CONFIRM_ON"
    RESET = "RESET"
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
}

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
}

_LEAVES_ON = frozenset({Action.POWER_ON, Action.CYCLE, Action.PXE_CYCLE})


@dataclass(frozen=True, slots=True)
class Command:
    """An order to the BMC of a machine."""

    id: str
    machine: str
    partition: str
    action: Action
    state: State
    step: int
    tries: int
    step_at: datetime
    sent_at: datetime | None
    reason: str
    error: str
    allocation: str
    requester: str
    deadline: datetime
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    version: int

    @property
    def current_step(self) -> Step:
        """The step to carry out now."""
        return PLANS[self.action][self.step]

    @property
    def boot_wish(self) -> BootWish:
        """What SET_BOOT sets. KeyError for an action without that step."""
        return boot_wish(self.action)


def boot_wish(action: Action) -> BootWish:
    """The boot override that an action sets. KeyError for one that sets none.

    Setup is asked for once; PXE and disk stay until changed, because a lost override must not lead elsewhere.
    """
    target = _BOOT[action]
    return BootWish(target, persistent=target is not BootTarget.BIOS)


def needs(action: Action) -> tuple[Capability, ...]:
    """The capabilities without which an action cannot be carried out."""
    needed = _NEEDS.get(action, ())
    if action not in _BOOT:
        return needed
    wish = boot_wish(action)
    lasting = Capability.BOOT_PERSISTENT if wish.persistent else Capability.BOOT_ONCE
    return (*needed, lasting, Capability.BOOT_BIOS if wish.mode is BootMode.BIOS else Capability.BOOT_UEFI)


def holds(wish: BootWish, setting: BootSetting, quirks: Quirks) -> bool:
    """Whether what reads back is what was asked for."""
    lasting = setting.persistent or not wish.persistent
    once = not setting.persistent or wish.persistent or quirks.once_reads_persistent
    return setting.target is wish.target and lasting and once and wish.mode in (None, setting.mode)


def desired_after(action: Action, desired_on: bool | None) -> bool | None:
    """The wish for power after a command was given: one that exists follows the command, or the two would fight."""
    if desired_on is None:
        return None
    if action is Action.POWER_OFF:
        return False
    return True if action in _LEAVES_ON else desired_on


def reboots(action: Action, powered: bool) -> bool:
    """Whether a machine with this power will go down, or come up, because of the action."""
    return powered or action in _LEAVES_ON


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to insist. `confirm` is what a machine gets to show the power that was ordered, `announce` what
    inventory gets to hear of a reboot."""

    tries: int = 3
    confirm: timedelta = timedelta(seconds=30)
    rest: timedelta = timedelta(seconds=1)
    slots: timedelta = timedelta(seconds=15)
    announce: timedelta = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Advance:
    """The step is done; go on with the next."""


@dataclass(frozen=True, slots=True)
class Again:
    """Not there yet; the same step again after a while. `failed` counts it as a try that went wrong."""

    after: timedelta
    reason: str
    message: str
    failed: bool


@dataclass(frozen=True, slots=True)
class Finish:
    """The command has ended."""

    state: State
    reason: str = ""
    message: str = ""


Verdict = Advance | Again | Finish


NEVER_BEGUN = Finish(State.EXPIRED, "DEADLINE", "the deadline passed before it was begun")


def expired(command: Command, now: datetime) -> Finish | None:
    """The end of a command whose deadline has passed, None while it has time."""
    if now < command.deadline:
        return None
    if command.state is State.PENDING:
        return NEVER_BEGUN
    return Finish(State.EXPIRED, "DEADLINE", f"the deadline passed during {command.current_step}")


def done(command: Command) -> Verdict:
    """What follows a step that is proven done."""
    if command.step + 1 < len(PLANS[command.action]):
        return Advance()
    return Finish(State.SUCCEEDED)


def announce_within(command: Command, now: datetime, patience: Patience) -> timedelta:
    """How long inventory may take to hear of the reboot. Most of a short command's time is left to the BMC."""
    return min(patience.announce, (command.deadline - now) / 4)


def judge_power(command: Command, powered: bool, now: datetime, patience: Patience) -> Verdict:
    """What follows from the power that was read in a CONFIRM step."""
    wanted = command.current_step is Step.CONFIRM_ON
    if powered == wanted:
        return done(command)
    order, seen = ("on", "off") if wanted else ("off", "on")
    if now - command.step_at >= patience.confirm:
        waited = f"{patience.confirm.total_seconds():g} s"
        return Finish(
            State.FAILED, "NOT_REACHED", f"the BMC accepted power {order}, and the machine reads {seen} after {waited}"
        )
    return Again(_ladder(command.tries, ceiling=4), "WAITING_FOR_POWER", f"power still reads {seen}", failed=False)


def judge_setting(command: Command, what: str, holds: bool, patience: Patience) -> Verdict:
    """What follows from reading back something that was just set."""
    if holds:
        return done(command)
    message = f"the BMC accepted the {what}, and it reads back differently"
    if command.tries + 1 >= patience.tries:
        return Finish(State.FAILED, "NOT_REACHED", message)
    return Again(_ladder(command.tries, ceiling=4), "NOT_REACHED", message, failed=True)


def judge_error(command: Command, error: BmcError, now: datetime, patience: Patience) -> Verdict:
    """What follows from an exchange that failed: again, or the end, with the error's own reason in both cases."""
    if command.current_step is Step.RESET and command.sent_at is not None:
        # It may be sent once only, whatever became of it.
        return unknown_outcome(error.message) if error.outcome_unknown else _failed(error)
    if not error.retryable or command.tries + 1 >= _tries(error, patience):
        return _failed(error)
    after = patience.slots if isinstance(error, BmcSessionsFull) else _ladder(command.tries, ceiling=8)
    if now + after >= command.deadline:
        # Waiting would end as "expired", which says less than what is known now.
        return Finish(State.FAILED, error.reason, f"{error.message}; no time is left to try again")
    return Again(after, error.reason, error.message, failed=True)


def unknown_outcome(message: str) -> Finish:
    """The end of a reset that was sent, or may have been, and was not confirmed: it is never sent again."""
    return Finish(State.FAILED, "OUTCOME_UNKNOWN", f"the reset was sent once and not confirmed: {message}")


def _failed(error: BmcError) -> Finish:
    return Finish(State.FAILED, error.reason, error.message)


def _tries(error: BmcError, patience: Patience) -> int:
    if isinstance(error, BmcSessionsFull | DriverBusy):
        # Asking for a slot, or waiting for a process, harms nothing, so the deadline alone decides.
        return 1000
    return 2 if isinstance(error, BmcAuthFailed) else patience.tries


def _ladder(tries: int, *, ceiling: int) -> timedelta:
    """1, 2, 4 … seconds up to `ceiling`."""
    return timedelta(seconds=min(ceiling, 1 << min(tries, 10)))
