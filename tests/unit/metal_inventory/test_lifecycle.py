"""The transition table, cell by cell, against the table as the reference writes it and an oracle of its own."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_inventory.lifecycle import (
    STATE_AFTER,
    TRANSITIONS,
    Event,
    EventType,
    Progress,
    Reception,
    State,
    Verdict,
    receive,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTES_5 = timedelta(minutes=5)
SECOND = timedelta(seconds=1)

# Written down a second time on purpose, in another shape than the code's: an edit of one alone fails here.
TABLE = """
state              | PXE | Prep | Reg | Wait | Inst | BootNK | Phoned | PlanReb | Reclaim | Alive | Crashed
Initial            | A   | A    | A   | A    | A    | A      | A      | A       | A       | S     | A
PXE Booting        | S   | A    | U   | U    | U    | U      | B1     | A       | A       | S     | A
Preparing          | U!  | U!   | A   | U    | U    | U      | B2     | A       | A       | S     | A
Registering        | U!  | U!   | U   | A    | A    | U      | B3     | A       | A       | S     | A
Waiting            | U!  | U!   | U   | U    | A    | U      | B3     | A       | A       | S     | A
Installing         | U!  | U!   | U   | U    | U    | A      | U      | A       | A       | S     | A
Booting New Kernel | U!  | U!   | U   | U    | U    | U      | A      | A       | A       | S     | A
Phoned Home        | U!  | U!   | U   | U    | U    | U      | S      | A       | A       | Un    | U
Planned Reboot     | A   | A    | U   | U    | U    | U      | A      | A       | A       | Un    | U
Machine Reclaim    | A   | A    | U   | U    | U    | U      | R      | A       | A       | Un    | U
Crashing           | A   | A    | U   | U    | U    | U      | U      | A       | A       | Un    | U
"""
HEADINGS = {
    "PXE": EventType.PXE_BOOTING,
    "Prep": EventType.PREPARING,
    "Reg": EventType.REGISTERING,
    "Wait": EventType.WAITING,
    "Inst": EventType.INSTALLING,
    "BootNK": EventType.BOOTING_NEW_KERNEL,
    "Phoned": EventType.PHONED_HOME,
    "PlanReb": EventType.PLANNED_REBOOT,
    "Reclaim": EventType.MACHINE_RECLAIM,
    "Alive": EventType.ALIVE,
    "Crashed": EventType.CRASHED,
}


def _cells() -> list[tuple[State, EventType, str]]:
    head, *rows = [[cell.strip() for cell in line.split("|")] for line in TABLE.strip().splitlines()]
    return [
        (State(row[0]), HEADINGS[heading], code)
        for row in rows
        for heading, code in zip(head[1:], row[1:], strict=True)
    ]


CELLS = _cells()
FLAGS = [(False, False), (False, True), (True, False), (True, True)]


def _name(value: object) -> str | None:
    return value.value if isinstance(value, State | EventType) else None


def _progress(state: State, *, crash_loop: bool, failed: bool, elapsed: timedelta = SECOND) -> Progress:
    last = None if state is State.INITIAL else NOW - elapsed
    return Progress(state, last, crash_loop=crash_loop, failed_machine_reclaim=failed)


def _implied(event: EventType) -> State:
    return State.CRASHING if event is EventType.CRASHED else State(event.value)


def test_the_table_is_total_and_has_no_cell_twice() -> None:
    assert {(state, event) for state, event, _ in CELLS} == set(TRANSITIONS)
    assert len(CELLS) == len(State) * len(EventType) == 121
    assert set(STATE_AFTER) == set(EventType) - {EventType.ALIVE}


@pytest.mark.parametrize(("crash_loop", "failed"), FLAGS)
@pytest.mark.parametrize(("state", "type_", "code"), [c for c in CELLS if c[2] == "A"], ids=_name)
def test_an_accepted_event_is_stored_and_becomes_the_state(
    state: State, type_: EventType, code: str, crash_loop: bool, failed: bool
) -> None:
    before = _progress(state, crash_loop=crash_loop, failed=failed)
    event = Event(type_, NOW, "hello")
    expected_crash = crash_loop
    if type_ in (EventType.PLANNED_REBOOT, EventType.MACHINE_RECLAIM):
        expected_crash = False
    if type_ is EventType.PHONED_HOME:  # accepted from Initial, Booting New Kernel and Planned Reboot only
        expected_crash = False
    if type_ is EventType.CRASHED:
        expected_crash = True
    expected_failed = failed and type_ not in (EventType.PXE_BOOTING, EventType.PREPARING)

    assert receive(before, event, allocated=True) == Reception(
        Verdict.ACCEPTED,
        Progress(_implied(type_), NOW, event if type_ is EventType.CRASHED else None, expected_crash, expected_failed),
        event,
    )


@pytest.mark.parametrize(("crash_loop", "failed"), FLAGS)
@pytest.mark.parametrize(("state", "type_", "code"), [c for c in CELLS if c[2] == "S"], ids=_name)
def test_a_swallowed_event_refreshes_the_time_and_leaves_the_state(
    state: State, type_: EventType, code: str, crash_loop: bool, failed: bool
) -> None:
    before = _progress(state, crash_loop=crash_loop, failed=failed)
    after = replace(before, last_event_time=NOW)
    if type_ is EventType.PXE_BOOTING:
        after = replace(after, failed_machine_reclaim=False)
    assert receive(before, Event(type_, NOW), allocated=False) == Reception(Verdict.SWALLOWED, after)


@pytest.mark.parametrize(("crash_loop", "failed"), FLAGS)
@pytest.mark.parametrize(("state", "type_", "code"), [c for c in CELLS if c[2] in ("U", "U!")], ids=_name)
def test_an_unexpected_event_is_stored_marked_and_moves_the_state(
    state: State, type_: EventType, code: str, crash_loop: bool, failed: bool
) -> None:
    before = _progress(state, crash_loop=crash_loop, failed=failed)
    stored = Event(type_, NOW, f"[unexpectedly received in {state.value}] hello")
    expected = Progress(_implied(type_), NOW, stored, crash_loop or code == "U!", failed)
    assert receive(before, Event(type_, NOW, "hello"), allocated=True) == Reception(
        Verdict.UNEXPECTED, expected, stored
    )


@pytest.mark.parametrize(("crash_loop", "failed"), FLAGS)
@pytest.mark.parametrize(("state", "type_", "code"), [c for c in CELLS if c[2] == "Un"], ids=_name)
def test_an_unexpected_sign_of_life_is_never_stored(
    state: State, type_: EventType, code: str, crash_loop: bool, failed: bool
) -> None:
    before = _progress(state, crash_loop=crash_loop, failed=failed)
    marked = Event(type_, NOW, f"[unexpectedly received in {state.value}]")
    got = receive(before, Event(type_, NOW), allocated=True)
    assert got == Reception(Verdict.UNEXPECTED, replace(before, last_event_time=NOW, last_error=marked))


BOUNDARY = [timedelta(minutes=4, seconds=59), MINUTES_5, timedelta(minutes=5, seconds=1)]
LATE_STATES = [(state, code) for state, _, code in CELLS if code in ("B1", "B2", "B3")]


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("elapsed", BOUNDARY, ids=str)
@pytest.mark.parametrize(("state", "code"), LATE_STATES, ids=_name)
def test_a_phone_home_of_what_ran_before_counts_only_after_five_minutes(
    state: State, code: str, elapsed: timedelta, flags: tuple[bool, bool, bool]
) -> None:
    crash_loop, failed, allocated = flags
    before = _progress(state, crash_loop=crash_loop, failed=failed, elapsed=elapsed)
    event = Event(EventType.PHONED_HOME, NOW)
    got = receive(before, event, allocated=allocated)
    if elapsed < MINUTES_5:
        assert got == Reception(Verdict.DROPPED, before)
    elif code == "B1":
        # Differs from the field on purpose: the flag stays, and is set when nobody should be running there.
        after = replace(before, last_event_time=NOW, failed_machine_reclaim=failed or not allocated)
        assert got == Reception(Verdict.SWALLOWED, after)
    else:
        after = Progress(State.PHONED_HOME, NOW, None, crash_loop, failed and code != "B2")
        assert got == Reception(Verdict.ACCEPTED, after, event)


@pytest.mark.parametrize("elapsed", BOUNDARY, ids=str)
@pytest.mark.parametrize("failed", [False, True])
def test_a_phone_home_long_after_the_reclaim_marks_it_as_failed(elapsed: timedelta, failed: bool) -> None:
    before = _progress(State.MACHINE_RECLAIM, crash_loop=False, failed=failed, elapsed=elapsed)
    got = receive(before, Event(EventType.PHONED_HOME, NOW), allocated=False)
    if elapsed <= MINUTES_5:
        assert got == Reception(Verdict.DROPPED, before)
    else:
        after = replace(before, last_event_time=NOW, failed_machine_reclaim=True)
        assert got == Reception(Verdict.SWALLOWED, after)


@pytest.mark.parametrize("state", [State.MACHINE_RECLAIM, State.PXE_BOOTING, State.PREPARING, State.WAITING])
def test_a_phone_home_is_dropped_when_no_earlier_time_is_known(state: State) -> None:
    before = Progress(state)
    got = receive(before, Event(EventType.PHONED_HOME, NOW), allocated=False)
    assert got == Reception(Verdict.DROPPED, before)


def test_a_late_phone_home_while_pxe_booting_never_clears_a_failed_reclaim() -> None:
    """L42."""
    before = _progress(State.PXE_BOOTING, crash_loop=False, failed=True, elapsed=timedelta(hours=1))
    for allocated in (False, True):
        got = receive(before, Event(EventType.PHONED_HOME, NOW), allocated=allocated)
        assert got.progress.failed_machine_reclaim


def test_a_healthy_run_after_an_unexpected_reboot_ends_the_crash_loop() -> None:
    """L08."""
    progress = Progress(State.PHONED_HOME, NOW)
    progress = receive(progress, Event(EventType.PXE_BOOTING, NOW), allocated=True).progress
    assert progress.crash_loop
    for type_ in (
        EventType.PREPARING,
        EventType.REGISTERING,
        EventType.WAITING,
        EventType.INSTALLING,
        EventType.BOOTING_NEW_KERNEL,
        EventType.PHONED_HOME,
    ):
        got = receive(progress, Event(type_, NOW), allocated=True)
        assert got.verdict is Verdict.ACCEPTED
        progress = got.progress
    assert progress.state is State.PHONED_HOME
    assert not progress.crash_loop


events = st.builds(
    Event,
    type=st.sampled_from(EventType),
    time=st.datetimes(datetime(2026, 1, 1), datetime(2026, 1, 2), timezones=st.just(UTC)),  # noqa: DTZ001
    message=st.text(max_size=10),
)


@given(st.lists(st.tuples(events, st.booleans()), max_size=40))
def test_any_sequence_of_events_from_skewed_clocks_keeps_the_invariants(
    sequence: list[tuple[Event, bool]],
) -> None:
    progress = Progress()
    history: list[Event] = []
    for event, allocated in sequence:
        before = progress
        got = receive(progress, event, allocated=allocated)
        progress = got.progress
        if got.verdict is Verdict.DROPPED:
            assert progress == before
            continue
        assert progress.last_event_time is not None
        assert before.last_event_time is None or progress.last_event_time >= before.last_event_time
        if got.stored is not None:
            assert got.stored.type is not EventType.ALIVE
            history.append(got.stored)
        else:
            assert progress.state is before.state
    # The state is the one that the newest stored event implies, and the history is in order of time.
    assert progress.state is (STATE_AFTER[history[-1].type] if history else State.INITIAL)
    assert history == sorted(history, key=lambda event: event.time)
