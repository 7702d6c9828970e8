"""The provisioning state machine: what each event means in each state.

The table is the only place that says so; everything else asks :func:`receive`. It follows the rules that the field
has settled on (metal-stack's provisioning event container), with one change: a late phone-home of a machine that
PXE-boots never clears the failed-reclaim flag, because it is evidence that an old operating system still runs.

Deliberately not here: storing, ordering and publishing (the store does that, by a sequence number per machine) and
liveliness (see ``liveliness.py``), which follows from the time of the last event alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from types import MappingProxyType

PHONED_HOME_GRACE = timedelta(minutes=5)
"""Leaves buffer phone-home messages for a minute and LLDP rows live for 120 s, so a phone-home that arrives within
this time after another event may have been sent by what ran before."""

HISTORY_LIMIT = 100
"""How many of a machine's newest events are kept."""


class EventType(Enum):
    """What a sender reports."""

    ALIVE = "Alive"
    CRASHED = "Crashed"
    PXE_BOOTING = "PXE Booting"
    PLANNED_REBOOT = "Planned Reboot"
    PREPARING = "Preparing"
    REGISTERING = "Registering"
    WAITING = "Waiting"
    INSTALLING = "Installing"
    BOOTING_NEW_KERNEL = "Booting New Kernel"
    PHONED_HOME = "Phoned Home"
    MACHINE_RECLAIM = "Machine Reclaim"


class State(Enum):
    """Where a machine is: implied by its newest stored event; ``INITIAL`` when none is stored."""

    INITIAL = "Initial"
    PXE_BOOTING = "PXE Booting"
    PREPARING = "Preparing"
    REGISTERING = "Registering"
    WAITING = "Waiting"
    INSTALLING = "Installing"
    BOOTING_NEW_KERNEL = "Booting New Kernel"
    PHONED_HOME = "Phoned Home"
    PLANNED_REBOOT = "Planned Reboot"
    MACHINE_RECLAIM = "Machine Reclaim"
    CRASHING = "Crashing"


class Rule(Enum):
    """What one cell of the table says."""

    ACCEPT = "A"
    SWALLOW = "S"
    UNEXPECTED = "U"
    CRASH_LOOP = "U!"
    NOT_STORED = "Un"
    LATE_IN_PXE_BOOTING = "B1"
    LATE_IN_PREPARING = "B2"
    LATE = "B3"
    RECLAIM = "R"


class Verdict(Enum):
    """What became of an event, as told to its sender."""

    ACCEPTED = "accepted"
    SWALLOWED = "swallowed"
    DROPPED = "dropped"
    UNEXPECTED = "unexpected"


@dataclass(frozen=True, slots=True)
class Event:
    """One provisioning event.

    ``time`` is the receiving server's clock and decides everything that depends on time; ``reported_time`` is the
    sender's clock and only ever shown.
    """

    type: EventType
    time: datetime
    message: str = ""
    reported_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a machine has come: the part of a machine's record that events change."""

    state: State = State.INITIAL
    last_event_time: datetime | None = None
    last_error: Event | None = None
    crash_loop: bool = False
    failed_machine_reclaim: bool = False


@dataclass(frozen=True, slots=True)
class Reception:
    """The outcome of one event: the verdict, the new progress, and the event as it goes into the history, if any."""

    verdict: Verdict
    progress: Progress
    stored: Event | None = None


_COLUMNS = (
    EventType.PXE_BOOTING,
    EventType.PREPARING,
    EventType.REGISTERING,
    EventType.WAITING,
    EventType.INSTALLING,
    EventType.BOOTING_NEW_KERNEL,
    EventType.PHONED_HOME,
    EventType.PLANNED_REBOOT,
    EventType.MACHINE_RECLAIM,
    EventType.ALIVE,
    EventType.CRASHED,
)

# PXE Prep Reg Wait Inst BootNK Phoned PlanReb Reclaim Alive Crashed
_ROWS = {
    State.INITIAL: "A A A A A A A A A S A",
    State.PXE_BOOTING: "S A U U U U B1 A A S A",
    State.PREPARING: "U! U! A U U U B2 A A S A",
    State.REGISTERING: "U! U! U A A U B3 A A S A",
    State.WAITING: "U! U! U U A U B3 A A S A",
    State.INSTALLING: "U! U! U U U A U A A S A",
    State.BOOTING_NEW_KERNEL: "U! U! U U U U A A A S A",
    State.PHONED_HOME: "U! U! U U U U S A A Un U",
    State.PLANNED_REBOOT: "A A U U U U A A A Un U",
    State.MACHINE_RECLAIM: "A A U U U U R A A Un U",
    State.CRASHING: "A A U U U U U A A Un U",
}

TRANSITIONS: Mapping[tuple[State, EventType], Rule] = MappingProxyType(
    {
        (state, event): Rule(code)
        for state, row in _ROWS.items()
        for event, code in zip(_COLUMNS, row.split(), strict=True)
    }
)
"""What each event means in each state; total over both."""

STATE_AFTER: Mapping[EventType, State] = MappingProxyType(
    {
        event: State.CRASHING if event is EventType.CRASHED else State(event.value)
        for event in EventType
        if event is not EventType.ALIVE
    }
)
"""The state that a stored event implies. Alive is never stored and implies none."""

_ENDS_CRASH_LOOP = {
    EventType.PHONED_HOME: frozenset({State.INITIAL, State.BOOTING_NEW_KERNEL, State.PLANNED_REBOOT}),
    EventType.PLANNED_REBOOT: frozenset(State),
    EventType.MACHINE_RECLAIM: frozenset(State),
}


def receive(progress: Progress, event: Event, *, allocated: bool) -> Reception:
    """What ``event`` does to a machine with this ``progress``.

    ``allocated`` says whether the machine is bound to an allocation; only the late phone-home of a PXE-booting
    machine depends on it. Time never runs backwards: an event stamped by a replica whose clock is behind takes the
    time of the last event, so it cannot get lost or reorder the history.
    """
    if progress.last_event_time is not None and event.time < progress.last_event_time:
        event = replace(event, time=progress.last_event_time)
    rule = TRANSITIONS[progress.state, event.type]
    match rule:
        case Rule.ACCEPT:
            return _accept(progress, event)
        case Rule.SWALLOW:
            return _swallow(progress, event)
        case Rule.UNEXPECTED | Rule.CRASH_LOOP | Rule.NOT_STORED:
            return _unexpected(progress, event, rule)
        case Rule.LATE_IN_PXE_BOOTING | Rule.LATE_IN_PREPARING | Rule.LATE:
            return _late_phone_home(progress, event, rule, allocated=allocated)
        case Rule.RECLAIM:
            return _phone_home_in_reclaim(progress, event)


def _store(progress: Progress, event: Event) -> Progress:
    return replace(progress, state=STATE_AFTER[event.type], last_event_time=event.time)


def _accept(progress: Progress, event: Event) -> Reception:
    after = _store(progress, event)
    if event.type in (EventType.PXE_BOOTING, EventType.PREPARING):
        after = replace(after, failed_machine_reclaim=False)
    elif progress.state in _ENDS_CRASH_LOOP.get(event.type, ()):
        after = replace(after, crash_loop=False)
    elif event.type is EventType.CRASHED:
        after = replace(after, crash_loop=True, last_error=event)
    return Reception(Verdict.ACCEPTED, after, event)


def _swallow(progress: Progress, event: Event) -> Reception:
    after = replace(progress, last_event_time=event.time)
    if event.type is EventType.PXE_BOOTING:
        after = replace(after, failed_machine_reclaim=False)
    return Reception(Verdict.SWALLOWED, after)


def _unexpected(progress: Progress, event: Event, rule: Rule) -> Reception:
    marked = replace(event, message=f"[unexpectedly received in {progress.state.value}] {event.message}".rstrip())
    if rule is Rule.NOT_STORED:
        # A stored Alive would become the state, from which every later event would be unexpected too.
        return Reception(Verdict.UNEXPECTED, replace(progress, last_event_time=event.time, last_error=marked))
    after = replace(_store(progress, marked), last_error=marked)
    if rule is Rule.CRASH_LOOP:
        after = replace(after, crash_loop=True)
    return Reception(Verdict.UNEXPECTED, after, marked)


def _late_phone_home(progress: Progress, event: Event, rule: Rule, *, allocated: bool) -> Reception:
    elapsed = _elapsed(progress, event)
    if elapsed is None or elapsed < PHONED_HOME_GRACE:
        return Reception(Verdict.DROPPED, progress)
    if rule is Rule.LATE_IN_PXE_BOOTING:
        # Clearing the flag here would hide an old operating system that still runs on a freed machine.
        failed = progress.failed_machine_reclaim or not allocated
        return Reception(
            Verdict.SWALLOWED, replace(progress, last_event_time=event.time, failed_machine_reclaim=failed)
        )
    after = _store(progress, event)
    if rule is Rule.LATE_IN_PREPARING:
        after = replace(after, failed_machine_reclaim=False)
    return Reception(Verdict.ACCEPTED, after, event)


def _phone_home_in_reclaim(progress: Progress, event: Event) -> Reception:
    elapsed = _elapsed(progress, event)
    if elapsed is None or elapsed <= PHONED_HOME_GRACE:
        return Reception(Verdict.DROPPED, progress)
    return Reception(Verdict.SWALLOWED, replace(progress, last_event_time=event.time, failed_machine_reclaim=True))


def _elapsed(progress: Progress, event: Event) -> timedelta | None:
    return None if progress.last_event_time is None else event.time - progress.last_event_time
