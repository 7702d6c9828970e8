from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_hammer.grant import Grant, GrantRefused, Refusal, require

SERIALS = st.frozensets(st.sampled_from("ABCDEF"), min_size=1)
GOOD = Grant("m1", 7, "a1", frozenset({"A", "B"}), deadline=100.0)
ASKED = {"machine_id": "m1", "generation": 7, "allocation_id": "a1", "serials": ["A"], "now": 99.9}


def refusal(grant: Grant | None, **changes: object) -> Refusal | None:
    try:
        require(grant, **(ASKED | changes))  # type: ignore[arg-type]
    except GrantRefused as refused:
        return refused.refusal
    return None


def test_a_grant_that_covers_everything_is_returned() -> None:
    assert require(GOOD, **ASKED) is GOOD  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"machine_id": "m2"}, Refusal.OTHER_MACHINE),
        ({"generation": 8}, Refusal.OTHER_GENERATION),
        ({"generation": 6}, Refusal.OTHER_GENERATION),
        ({"allocation_id": ""}, Refusal.OTHER_ALLOCATION),
        ({"allocation_id": "a2"}, Refusal.OTHER_ALLOCATION),
        ({"serials": ["A", "C"]}, Refusal.OTHER_DISKS),
        ({"serials": []}, Refusal.NO_DISKS),
        ({"serials": ["A", ""]}, Refusal.NO_DISKS),
        ({"now": 100.0}, Refusal.EXPIRED),
        ({"now": 1e9}, Refusal.EXPIRED),
    ],
)
def test_a_grant_for_something_else_is_refused(changes: dict[str, object], expected: Refusal) -> None:
    assert refusal(GOOD, **changes) is expected


def test_without_a_grant_nothing_is_allowed() -> None:
    assert refusal(None) is Refusal.MISSING


def test_a_grant_without_disks_allows_no_disk() -> None:
    assert refusal(dataclasses.replace(GOOD, serials=frozenset())) is Refusal.OTHER_DISKS


def test_the_wipe_grant_of_a_free_machine_does_not_install() -> None:
    free = dataclasses.replace(GOOD, allocation_id="")
    assert refusal(free, allocation_id="") is None
    assert refusal(free, allocation_id="a1") is Refusal.OTHER_ALLOCATION


@given(granted=SERIALS, wanted=SERIALS, now=st.floats(0, 200))
def test_exactly_the_named_disks_in_time_are_allowed(
    granted: frozenset[str], wanted: frozenset[str], now: float
) -> None:
    grant = dataclasses.replace(GOOD, serials=granted)
    allowed = refusal(grant, serials=wanted, now=now) is None
    assert allowed == (wanted <= granted and now < 100.0)
