"""Tasks for people: what is ordered of a machine without a BMC. Pure rules, no I/O.

A task is opened for the command whose turn it is, or for the power that is wanted, and ends by what a person says, or
when nobody wants it any more. What a person has confirmed is what is known of the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from metal_kit.issues import Issue, Severity

from metal_bmc.command import Again, Command, Finish, State, Verdict, done
from metal_bmc.drivers.interface import BootMode, BootTarget, BootWish, Capability
from metal_bmc.plan import Action, sets_boot

CAPABILITIES = frozenset(
    {
        Capability.POWER_ON,
        Capability.POWER_OFF,
        Capability.POWER_CYCLE,
        Capability.POWER_RESET,
        Capability.POWER_SOFT_OFF,
        Capability.BOOT_ONCE,
        Capability.BOOT_PERSISTENT,
        Capability.BOOT_UEFI,
        Capability.BOOT_BIOS,
    }
)
"""What a person at a machine can do. Machines without a BMC have no identify light and no NMI button."""

# A word that gets lost costs no more than this; a confirmation wakes the command at once.
LOOK_AGAIN = timedelta(minutes=5)
_LONGEST_REMINDER = timedelta(hours=24)

_POWER = {
    Action.POWER_ON: "switch the machine on",
    Action.POWER_OFF: "switch the machine off",
    Action.SOFT_OFF: "shut the machine down",
    Action.RESET: "reset the machine",
    Action.CYCLE: "switch the machine off and on again",
    Action.PXE_CYCLE: "switch the machine off and on again",
}
_BOOT = {
    BootTarget.PXE: "boot from the network",
    BootTarget.DISK: "boot from its disk",
    BootTarget.BIOS: "enter the firmware's setup",
}
_POWER_AFTER = {
    Action.POWER_ON: True,
    Action.POWER_OFF: False,
    Action.SOFT_OFF: False,
    Action.RESET: True,
    Action.CYCLE: True,
    Action.PXE_CYCLE: True,
}


class TaskState(StrEnum):
    """Where a task is. All but OPEN are final."""

    OPEN = "open"
    CONFIRMED = "confirmed"
    DECLINED = "declined"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Task:
    """Something that a person is to do. `command` is empty when it is the wanted power that is not reached; `revision`
    is then the endpoint's that wants it."""

    id: str
    machine: str
    partition: str
    command: str
    action: Action
    instruction: str
    state: TaskState
    revision: int
    note: str
    person: str
    deadline: datetime | None
    reminders: int
    created_at: datetime
    ended_at: datetime | None
    version: int


def instruction(action: Action, boot: BootWish | None, hard_after: timedelta | None = None) -> str:
    """What to do, for a person; `boot` is the override of an action that sets one."""
    parts: list[str] = []
    if boot is not None:
        how = "" if boot.mode is None else f" by {'UEFI' if boot.mode is BootMode.UEFI else 'legacy BIOS'}"
        lasting = "from now on" if boot.persistent else "at the next boot only"
        parts.append(f"let the machine {_BOOT[boot.target]}{how} {lasting}")
    if action in _POWER:
        parts.append(_POWER[action])
    if hard_after is not None:
        parts.append(f"or switch it off hard after {hard_after.total_seconds() / 60:g} min")
    return ", then ".join(parts) if hard_after is None else " ".join(parts)


def instruction_of(command: Command) -> str:
    """What a person has to do for a command."""
    boot = command.boot_wish if sets_boot(command.action) else None
    return instruction(command.action, boot, command.hard_after)


def power_after(action: Action) -> bool | None:
    """The power of the machine once a person has done it; None for what leaves it as it is."""
    return _POWER_AFTER.get(action)


def judge_task(command: Command, task: Task, now: datetime) -> Verdict:
    """What follows for the command from its task."""
    if task.state is TaskState.OPEN:
        # A moment after the deadline, so that the look finds it passed.
        after = min(LOOK_AGAIN, max(command.deadline - now, timedelta(0)) + timedelta(milliseconds=50))
        return Again(after, "WAITING_FOR_PERSON", task.instruction, failed=False)
    if task.state is TaskState.CONFIRMED:
        return done(command)
    said = f"{task.person}: {task.note}" if task.person else task.note
    return Finish(State.FAILED, "DECLINED", said)


def next_reminder(first: timedelta, reminders: int) -> timedelta:
    """The time until the reminder that follows after `reminders` of them: doubling, at most a day."""
    return min(first * (1 << min(reminders, 10)), max(first, _LONGEST_REMINDER))


def issue_of(task: Task) -> Issue:
    """The issue that a task is while it is open, or a declined one while its power is still wanted."""
    said = f"; {task.person} declined: {task.note}" if task.state is TaskState.DECLINED else ""
    hint = f"metalctl bmc confirm {task.id}" if task.state is TaskState.OPEN else "change desired_power of its BMC"
    severity = Severity.MAJOR if task.reminders or task.state is TaskState.DECLINED else Severity.MINOR
    details = f"a person has to {task.instruction}{said}; {hint}"
    return Issue(f"manual-task/{task.id}", severity, f"machine {task.machine}", details, task.created_at)
