from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_boot.tokens import LIFETIME, RamdiskTokens, TokenRefusal, TokenRefused

KEY = b"0123456789abcdef"
MACHINE = "4c4c4544-0051-3510-8052-b4c04f4e3132"


class Time:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def refusal(tokens: RamdiskTokens, token: str, machine: str = MACHINE) -> TokenRefusal | None:
    try:
        tokens.redeem(token, machine)
    except TokenRefused as refused:
        return refused.refusal
    return None


def test_a_token_opens_once_and_says_for_whom() -> None:
    tokens = RamdiskTokens(KEY, Time())
    token = tokens.issue(MACHINE, "s-1")
    redeemed = tokens.redeem(token, MACHINE)
    assert (redeemed.machine_id, redeemed.session) == (MACHINE, "s-1")
    assert refusal(tokens, token) is TokenRefusal.USED


def test_any_replica_with_the_key_takes_the_token_and_another_does_not() -> None:
    clock = Time()
    token = RamdiskTokens(KEY, clock).issue(MACHINE, "s-1")
    assert refusal(RamdiskTokens(KEY, clock), token) is None
    assert refusal(RamdiskTokens(b"another key, as long", clock), token) is TokenRefusal.SIGNATURE


def test_the_token_of_one_machine_is_not_good_for_another() -> None:
    tokens = RamdiskTokens(KEY, Time())
    token = tokens.issue(MACHINE, "s-1")
    assert refusal(tokens, token, MACHINE.replace("4", "5")) is TokenRefusal.OTHER_MACHINE
    assert refusal(tokens, token) is None, "a try with a wrong name must not use the token up"


def test_a_token_ends_after_its_lifetime() -> None:
    clock = Time()
    tokens = RamdiskTokens(KEY, clock)
    early, late = tokens.issue(MACHINE, "s-1"), tokens.issue(MACHINE, "s-2")
    clock.now += LIFETIME - 1
    assert refusal(tokens, early) is None
    clock.now += 1
    assert refusal(tokens, late) is TokenRefusal.EXPIRED
    assert refusal(tokens, early) is TokenRefusal.EXPIRED


def test_a_token_from_the_far_future_is_refused() -> None:
    clock = Time()
    clock.now += 10 * LIFETIME
    token = RamdiskTokens(KEY, clock).issue(MACHINE, "s-1")
    assert refusal(RamdiskTokens(KEY, Time()), token) is TokenRefusal.EXPIRED


@given(st.data())
def test_a_changed_token_is_refused(data: st.DataObject) -> None:
    tokens = RamdiskTokens(KEY, Time())
    token = tokens.issue(MACHINE, "s-1")
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda char: char != token[at]))
    assert refusal(tokens, token[:at] + other + token[at + 1 :]) in (TokenRefusal.SIGNATURE, TokenRefusal.MALFORMED)


@given(st.text(st.characters(), max_size=200) | st.text(st.characters(categories=["Cs"]), max_size=5).map("a.".__add__))
def test_garbage_is_refused_and_nothing_else_happens(garbage: str) -> None:
    assert refusal(RamdiskTokens(KEY, Time()), garbage) in (TokenRefusal.SIGNATURE, TokenRefusal.MALFORMED)


def test_what_is_remembered_of_used_tokens_does_not_grow_for_ever() -> None:
    clock = Time()
    tokens = RamdiskTokens(KEY, clock)
    for _ in range(50):
        tokens.redeem(tokens.issue(MACHINE, "s"), MACHINE)
        clock.now += LIFETIME / 4
    assert len(tokens._used) <= 5


def test_a_key_that_can_be_guessed_and_a_lifetime_without_end_are_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        RamdiskTokens(b"short", Time())
    with pytest.raises(ValueError, match="600 s"):
        RamdiskTokens(KEY, Time(), lifetime=LIFETIME + 1)
