"""Commands to BMCs, and what follows from the outcome of a step. Pure rules, no I/O; the steps are in `plan`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from metal_bmc.drivers.errors import BmcAuthFailed, BmcBusy, BmcError, BmcSessionsFull, DriverBusy
from metal_bmc.drivers.interface import BootMode, BootWish
from metal_bmc.plan import ONE_SHOT, Action, Step, boot_wish, plan_of


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
    # None leaves these to the action.
    boot_persistent: bool | None = None
    boot_mode: BootMode | None = None
    # What the system has for a soft off until it is switched off hard; None: never.
    hard_after: timedelta | None = None
    # Carried out by a person.
    by_hand: bool = False

    @property
    def plan(self) -> tuple[Step, ...]:
        """Its steps."""
        return plan_of(self.action, by_hand=self.by_hand)

    @property
    def current_step(self) -> Step:
        """The step to carry out now."""
        return self.plan[self.step]

    @property
    def boot_wish(self) -> BootWish:
        """What SET_BOOT sets. KeyError for an action without that step."""
        return boot_wish(self.action, self.boot_persistent, self.boot_mode)


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
    if command.step + 1 < len(command.plan):
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


def judge_soft_off(command: Command, powered: bool, now: datetime) -> Verdict:
    """What follows from the power that was read after the system was asked to shut down."""
    if not powered:
        return Finish(State.SUCCEEDED)
    waited = now - command.step_at
    if command.hard_after is not None and waited >= command.hard_after:
        return Advance()
    look = _ladder(command.tries + int(waited.total_seconds()), ceiling=5)
    if command.hard_after is None and now + look >= command.deadline:
        text = f"the system was asked to shut down and still runs after {waited.total_seconds():.0f} s"
        return Finish(State.FAILED, "NOT_REACHED", text)
    if command.hard_after is not None:
        look = min(look, command.hard_after - waited)
    return Again(look, "SHUTTING_DOWN", "the system was asked to shut down", failed=False)


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
    if command.current_step in ONE_SHOT and command.sent_at is not None:
        # It may be sent once only, whatever became of it.
        return unknown_outcome(command, error.message) if error.outcome_unknown else _failed(error)
    if not error.retryable or command.tries + 1 >= _tries(error, patience):
        return _failed(error)
    after = _pause(command, error, patience)
    if now + after >= command.deadline:
        # Waiting would end as "expired", which says less than what is known now.
        return Finish(State.FAILED, error.reason, f"{error.message}; no time is left to try again")
    return Again(after, error.reason, error.message, failed=True)


def unknown_outcome(command: Command, message: str) -> Finish:
    """The end of a one-shot order that was sent, or may have been, and was not confirmed: it is never sent again."""
    order = command.current_step.lower()
    return Finish(State.FAILED, "OUTCOME_UNKNOWN", f"the {order} was sent once and not confirmed: {message}")


def _failed(error: BmcError) -> Finish:
    return Finish(State.FAILED, error.reason, error.message)


def _tries(error: BmcError, patience: Patience) -> int:
    if isinstance(error, BmcSessionsFull | BmcBusy | DriverBusy):
        # Asking for a slot or another time, or waiting for a process, harms nothing, so the deadline alone decides.
        return 1000
    return 2 if isinstance(error, BmcAuthFailed) else patience.tries


def _pause(command: Command, error: BmcError, patience: Patience) -> timedelta:
    if isinstance(error, BmcSessionsFull):
        return patience.slots
    if isinstance(error, BmcBusy) and error.retry_after > 0:
        return timedelta(seconds=error.retry_after)
    return _ladder(command.tries, ceiling=8)


def _ladder(tries: int, *, ceiling: int) -> timedelta:
    """1, 2, 4 … seconds up to `ceiling`."""
    return timedelta(seconds=min(ceiling, 1 << min(tries, 10)))
