from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_bmc.pacing import BUSY, OPENS_AFTER, SILENCE, SLOTS_FULL, next_look, opens

chances = st.floats(0, 1, exclude_max=True)
intervals = st.floats(0.1, 3600).map(lambda seconds: timedelta(seconds=seconds))
MINUTE = timedelta(minutes=1)
REASONS = ["", SILENCE, SLOTS_FULL, BUSY, "REFUSED"]


@given(intervals, chances)
def test_a_bmc_that_answers_is_asked_at_its_interval_with_some_jitter(interval: timedelta, chance: float) -> None:
    assert interval * 0.79 <= next_look(interval, "", 0, chance) <= interval * 1.21


@given(intervals, st.sampled_from(REASONS), st.integers(0, 1000), chances)
def test_no_bmc_is_forgotten_or_asked_without_a_pause(
    interval: timedelta, reason: str, failures: int, chance: float
) -> None:
    after = next_look(interval, reason, failures, chance)
    assert min(interval * 0.79, timedelta(seconds=5)) <= after <= max(interval, timedelta(minutes=15)) * 1.21


@given(st.integers(OPENS_AFTER, 1000), chances)
def test_an_open_circuit_is_probed_after_five_seconds_to_a_quarter_of_an_hour(failures: int, chance: float) -> None:
    assert timedelta(seconds=5) <= next_look(MINUTE, SILENCE, failures, chance) <= timedelta(minutes=15)
    assert next_look(MINUTE, SILENCE, failures, chance) <= next_look(MINUTE, SILENCE, failures + 1, chance)


def test_the_probes_of_bmcs_that_died_together_are_spread_out() -> None:
    assert next_look(MINUTE, SILENCE, 10, 0.0) == timedelta(seconds=5)
    assert next_look(MINUTE, SILENCE, 10, 0.5) > timedelta(minutes=5)


@pytest.mark.parametrize(("reason", "failures"), [(SILENCE, 2), (SLOTS_FULL, 50), (BUSY, 50), ("AUTH_FAILED", 2)])
def test_only_three_silences_open_the_circuit(reason: str, failures: int) -> None:
    assert not opens(reason, failures)
    assert opens(SILENCE, OPENS_AFTER)


def test_a_bmc_is_given_the_time_it_asks_for() -> None:
    assert next_look(MINUTE, BUSY, 1, 0.0, told=timedelta(seconds=42)) == timedelta(seconds=42)
    assert next_look(MINUTE, BUSY, 1, 0.0, told=timedelta(days=42)) == timedelta(minutes=5)
    assert next_look(timedelta(seconds=1), SLOTS_FULL, 1, 0.0) == timedelta(seconds=60)
