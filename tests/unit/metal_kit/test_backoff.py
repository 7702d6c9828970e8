"""Waiting times between attempts."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_kit.backoff import Backoff, pause

SPANS = st.timedeltas(min_value=timedelta(milliseconds=1), max_value=timedelta(days=1))


@given(first=SPANS, most=SPANS, attempt=st.integers(-1, 10_000))
def test_a_delay_lies_between_the_least_and_the_bound(first: timedelta, most: timedelta, attempt: int) -> None:
    least = timedelta(microseconds=500)
    backoff = Backoff(first, most, least)
    assert least <= backoff.delay(attempt) <= max(least, backoff.bound(attempt))
    assert backoff.bound(attempt) <= most


@given(first=SPANS, most=SPANS, attempt=st.integers(0, 200))
def test_the_bound_doubles_until_the_cap(first: timedelta, most: timedelta, attempt: int) -> None:
    backoff = Backoff(first, most)
    doubled = min(most.total_seconds(), 2 * backoff.bound(attempt).total_seconds())
    assert backoff.bound(attempt + 1).total_seconds() == pytest.approx(doubled)
    assert backoff.bound(0) == min(first, most)


def test_delays_are_spread_over_the_whole_bound() -> None:
    backoff = Backoff(timedelta(seconds=10), timedelta(seconds=10))
    delays = [backoff.delay(0).total_seconds() for _ in range(400)]
    assert min(delays) < 2
    assert max(delays) > 8


def test_what_the_peer_asked_for_is_waited_and_a_little_more() -> None:
    backoff = Backoff(timedelta(milliseconds=100), timedelta(milliseconds=200))
    delays = {backoff.delay(0, timedelta(seconds=4)).total_seconds() for _ in range(100)}
    assert min(delays) >= 4
    assert max(delays) <= 5
    assert len(delays) > 50, "those who were told the same at once do not come back at once"


def test_a_long_backoff_is_not_cut_short_by_what_the_peer_asked_for() -> None:
    backoff = Backoff(timedelta(seconds=60), timedelta(seconds=60), least=timedelta(seconds=60))
    assert backoff.delay(5, timedelta(milliseconds=1)) >= timedelta(seconds=60)


def test_a_peer_cannot_send_anybody_away_for_good() -> None:
    assert Backoff(timedelta(seconds=1), timedelta(seconds=1)).delay(0, timedelta(days=365)) < timedelta(minutes=7)


async def test_a_pause_ends_early_when_the_service_stops() -> None:
    stopping = asyncio.Event()
    stopping.set()
    async with asyncio.timeout(5):
        await pause(stopping, timedelta(hours=1))


async def test_a_pause_lasts_its_time() -> None:
    before = asyncio.get_running_loop().time()
    await pause(asyncio.Event(), timedelta(milliseconds=50))
    assert asyncio.get_running_loop().time() - before >= 0.045
