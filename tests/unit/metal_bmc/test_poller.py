from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st
from metal_bmc.poller import PollPlan, next_poll

chances = st.floats(0, 1, exclude_max=True)


@given(st.floats(0.1, 3600), st.integers(0, 1000), chances)
def test_a_poll_comes_within_its_jitter_and_never_later_than_a_quarter_of_an_hour(
    seconds: float, failures: int, chance: float
) -> None:
    interval = timedelta(seconds=seconds)
    after = next_poll(PollPlan(interval=interval), failures, chance)
    slowest = max(interval, timedelta(minutes=15))
    assert interval * 0.79 <= after <= slowest * 1.21


@given(st.integers(0, 30), chances)
def test_more_failures_never_mean_more_polls(failures: int, chance: float) -> None:
    plan = PollPlan()
    assert next_poll(plan, failures, chance) <= next_poll(plan, failures + 1, chance)


def test_a_healthy_bmc_is_polled_at_its_interval() -> None:
    assert next_poll(PollPlan(), 0, 0.5) == timedelta(seconds=60)
