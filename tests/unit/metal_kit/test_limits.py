"""What one caller may: never more than his rate and his burst, with a delay that is true, and forgotten in order."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metal_kit.errors import ResourceExhausted
from metal_kit.limits import DEFAULTS, Account, Allowance, Limiter, kind_of, read_allowance
from metal_kit.settings import ServiceSettings
from pydantic import ValidationError

WIDE = {"calls": 1_000_000, "streams": 1_000_000}


def _refused(account: Account, now: float, *, stream: bool = False) -> ResourceExhausted | None:
    """The refusal of a call, or None; a call that was let in ends at once."""
    try:
        account.enter(now, stream=stream)
    except ResourceExhausted as problem:
        return problem
    account.leave(stream=stream)
    return None


@settings(max_examples=50)
@given(
    rate=st.floats(0.5, 1000),
    burst=st.integers(1, 50),
    steps=st.lists(st.floats(0, 0.2), min_size=1, max_size=100),
)
def test_no_span_of_time_sees_more_than_its_rate_and_one_burst(rate: float, burst: int, steps: list[float]) -> None:
    account = Account("a", "user", Allowance(rate=rate, burst=burst, **WIDE))
    now, entered = 1000.0, []
    for step in steps:
        now += step
        problem = _refused(account, now)
        if problem is None:
            entered.append(now)
            continue
        # The delay is true: a moment before it the caller is refused again, at its end he is let in.
        assert problem.retry_after is not None
        due = now + problem.retry_after.total_seconds()
        assert due > now - 1e-6
        if due - now > 1e-4:
            assert _refused(account, due - 5e-5) is not None
        assert _refused(account, due + 2e-6) is None
        now = due + 2e-6
        entered.append(now)
    for first in range(len(entered)):
        for last in range(first, len(entered)):
            assert last - first + 1 <= burst + (entered[last] - entered[first]) * rate + 1e-3


def test_a_silent_caller_has_his_burst_again_and_not_more() -> None:
    account = Account("a", "user", Allowance(rate=10, burst=3, **WIDE))
    assert [_refused(account, 0.0) is None for _ in range(5)] == [True, True, True, False, False]
    assert [_refused(account, 3600.0) is None for _ in range(5)] == [True, True, True, False, False]


def test_a_refusal_names_the_limit_and_who_is_limited() -> None:
    account = Account("user:anna", "user", Allowance(rate=10, burst=1, calls=2, streams=1))
    account.enter(0.0, stream=False)
    rate = _refused(account, 0.0)
    assert rate is not None
    assert (rate.reason, rate.retry_after) == ("RATE_LIMITED", timedelta(seconds=0.1))
    assert rate.message == "user:anna is limited to 10 calls a second and 1 at once after a pause here"
    account.enter(10.0, stream=False)
    calls = _refused(account, 20.0)
    assert calls is not None
    assert (calls.reason, calls.metadata) == ("TOO_MANY_CALLS", {"limit": "2 calls at once"})
    account.enter(20.0, stream=True)
    streams = _refused(account, 30.0, stream=True)
    assert streams is not None
    assert (streams.reason, streams.metadata) == ("TOO_MANY_STREAMS", {"limit": "1 open streams"})
    assert streams.retry_after is not None
    account.leave(stream=True)
    assert _refused(account, 30.0, stream=True) is None


def test_a_refused_call_takes_nothing_of_the_rate() -> None:
    account = Account("a", "user", Allowance(rate=1, burst=1, **WIDE))
    assert _refused(account, 0.0) is None
    for _ in range(100):
        assert _refused(account, 0.5) is not None
    assert _refused(account, 1.0) is None


def test_services_are_bounded_by_what_runs_and_not_by_rate() -> None:
    account = Account("service:ipam", "service", DEFAULTS["service"])
    assert all(_refused(account, 0.0) is None for _ in range(10_000))
    for _ in range(DEFAULTS["service"].calls):
        account.enter(0.0, stream=False)
    problem = _refused(account, 0.0)
    assert problem is not None
    assert problem.reason == "TOO_MANY_CALLS"


def test_a_refund_lets_one_more_call_in() -> None:
    account = Account("a", "stranger", Allowance(rate=1, burst=2, **WIDE))
    assert [_refused(account, 0.0) is None for _ in range(3)] == [True, True, False]
    account.refund()
    assert [_refused(account, 0.0) is None for _ in range(2)] == [True, False]


def test_one_refusal_in_a_second_is_told() -> None:
    account = Account("a", "user", DEFAULTS["user"])
    assert [account.silenced(now) for now in (0.0, 0.5, 0.9, 1.0, 1.5)] == [False, True, True, False, True]


def test_so_many_callers_are_remembered_and_the_silent_ones_go_first() -> None:
    limiter = Limiter(remembered=3)
    busy = limiter.account("busy", "user")
    busy.enter(0.0, stream=True)
    for name in ("a", "b", "c", "d"):
        limiter.account(name, "user")
        assert limiter.known <= 3
    assert limiter.account("busy", "user") is busy, "who has a stream open is not forgotten"
    d = limiter.account("d", "user")
    limiter.account("e", "user")
    assert limiter.account("d", "user") is d


def test_a_table_of_busy_callers_grows_rather_than_forgets() -> None:
    limiter = Limiter(remembered=2)
    accounts = [limiter.account(f"c{number}", "agent") for number in range(5)]
    for account in accounts:
        account.enter(0.0, stream=True)
    again = [limiter.account(f"c{number}", "agent") for number in range(5)]
    assert limiter.known <= 5
    kept = [one for one, other in zip(accounts, again, strict=True) if one is other]
    assert all(account.streams == 1 for account in kept)


@pytest.mark.parametrize(
    ("kind", "counted_as"),
    [("user", "user"), ("leaf", "agent"), ("machine", "agent"), ("service", "service"), ("bmc", "service"),
     ("boot", "service"), ("client", "stranger"), ("anonymous", "stranger")],
)  # fmt: skip
def test_every_kind_of_caller_has_an_allowance(kind: str, counted_as: str) -> None:
    assert kind_of(kind) == counted_as
    assert kind_of(kind) in DEFAULTS


def test_a_setting_changes_what_it_names_and_leaves_the_rest() -> None:
    allowances = ServiceSettings(limit_users="rate=5, burst=7", limit_agents="streams=3").allowances
    user = DEFAULTS["user"]
    assert allowances["user"] == Allowance(rate=5, burst=7, calls=user.calls, streams=user.streams)
    assert allowances["agent"].streams == 3
    assert allowances["service"] == DEFAULTS["service"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("speed=3", "'speed' is none of"), ("rate=fast", "rate: 'fast' is not a number"), ("calls=0", "calls: must be"),
     ("rate=-1", "rate: must be"), ("rate=nan", "rate: must be"), ("=3", "is none of")],
)  # fmt: skip
def test_a_setting_that_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_allowance(text, "user")
    with pytest.raises(ValidationError, match="limit_users"):
        ServiceSettings(limit_users=text)
