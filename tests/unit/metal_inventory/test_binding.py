from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from metal_inventory.binding import EXPLANATIONS, Bindable, Refusal, refuse_bind, refuse_unbind
from metal_inventory.liveliness import Liveliness, liveliness
from metal_inventory.state import AdminState, StateRefusal, refuse_change

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
FREE = Bindable(waiting_expires=NOW + SECOND, last_event_time=NOW)
AVAILABLE, TAINTED, LOCKED = AdminState


@pytest.mark.parametrize(
    ("machine", "refusal"),
    [
        (FREE, None),
        (replace(FREE, admin_state=TAINTED), Refusal.TAINTED),
        (replace(FREE, admin_state=LOCKED), Refusal.LOCKED),
        (replace(FREE, allocation_id="other"), Refusal.BOUND_TO_OTHER),
        (replace(FREE, allocation_id="mine", admin_state=LOCKED), None),
        (replace(FREE, waiting_expires=NOW), Refusal.NOT_WAITING),
        (replace(FREE, waiting_expires=None), Refusal.NOT_WAITING),
        (replace(FREE, disks_clean=False), Refusal.DISKS_NOT_CLEAN),
        (replace(FREE, cabled=False), Refusal.NOT_CABLED),
        (replace(FREE, failed_machine_reclaim=True), Refusal.RECLAIM_FAILED),
        (replace(FREE, last_event_time=NOW - timedelta(minutes=5)), None),
        (replace(FREE, last_event_time=NOW - timedelta(minutes=5, seconds=1)), Refusal.NOT_ALIVE),
        (replace(FREE, last_event_time=None), Refusal.NOT_ALIVE),
    ],
)
def test_a_machine_is_bound_only_when_nothing_speaks_against_it(machine: Bindable, refusal: Refusal | None) -> None:
    assert refuse_bind(machine, now=NOW, allocation_id="mine") is refusal


def test_naming_a_machine_overrides_the_taint_and_nothing_else() -> None:
    assert refuse_bind(replace(FREE, admin_state=TAINTED), now=NOW, allow_tainted=True) is None
    assert refuse_bind(replace(FREE, admin_state=LOCKED), now=NOW, allow_tainted=True) is Refusal.LOCKED
    assert refuse_bind(replace(FREE, waiting_expires=None), now=NOW, allow_tainted=True) is Refusal.NOT_WAITING


@pytest.mark.parametrize(
    ("machine", "refusal"),
    [
        (replace(FREE, allocation_id="mine"), None),
        (FREE, None),
        (replace(FREE, allocation_id="other", admin_state=LOCKED), None),
        (replace(FREE, allocation_id="mine", admin_state=LOCKED), Refusal.LOCKED),
        (replace(FREE, allocation_id="mine", admin_state=TAINTED), None),
    ],
)
def test_only_the_holder_unbinds_and_not_while_the_machine_is_locked(
    machine: Bindable, refusal: Refusal | None
) -> None:
    assert refuse_unbind(machine, allocation_id="mine") is refusal


def test_every_refusal_has_an_explanation() -> None:
    assert set(EXPLANATIONS) == set(Refusal)


@pytest.mark.parametrize(
    ("current", "wanted", "description", "refusal"),
    [
        (AVAILABLE, TAINTED, "odd noises", None),
        (AVAILABLE, LOCKED, "evidence", None),
        (AVAILABLE, TAINTED, " ", StateRefusal.DESCRIPTION_MISSING),
        (TAINTED, LOCKED, "evidence", StateRefusal.NOT_FROM_THIS_STATE),
        (LOCKED, TAINTED, "odd noises", StateRefusal.NOT_FROM_THIS_STATE),
        (LOCKED, AVAILABLE, "", None),
        (LOCKED, AVAILABLE, "done", StateRefusal.DESCRIPTION_NOT_ALLOWED),
        (LOCKED, LOCKED, "still evidence", None),
        (AVAILABLE, AVAILABLE, "", None),
    ],
)
def test_a_state_is_left_through_available_and_needs_a_reason(
    current: AdminState, wanted: AdminState, description: str, refusal: StateRefusal | None
) -> None:
    assert refuse_change(current, wanted, description) is refusal


@pytest.mark.parametrize(
    ("silence", "allocated", "expected"),
    [
        (None, False, Liveliness.NOT_AVAILABLE),
        (timedelta(0), False, Liveliness.ALIVE),
        (timedelta(minutes=5), False, Liveliness.ALIVE),
        (timedelta(minutes=5), True, Liveliness.ALIVE),
        (timedelta(minutes=5, microseconds=1), False, Liveliness.DEAD),
        (timedelta(minutes=5, microseconds=1), True, Liveliness.UNKNOWN),
    ],
)
def test_silence_means_dead_only_for_a_machine_that_nobody_uses(
    silence: timedelta | None, allocated: bool, expected: Liveliness
) -> None:
    last = None if silence is None else NOW - silence
    assert liveliness(last, allocated=allocated, now=NOW) is expected
