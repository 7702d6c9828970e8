from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_fabric.problems import Refused
from metal_fabric.vlans import FIRST_VLAN, LAST_VLAN, Vlan, assign, in_use


def test_new_vnis_get_the_lowest_numbers_in_their_order() -> None:
    assigned = assign([], {300, 20, 1000}, generation=1, applied=0)
    assert in_use(assigned) == {20: 1001, 300: 1002, 1000: 1003}


@pytest.mark.parametrize(
    ("taken", "new", "numbers"),
    [
        ({101001: 1001, 101003: 1003}, [101002], [1002]),
        ({}, [1], [1001]),
        ({}, [1, 2], [1001, 1002]),
        ({7: 1002}, [8], [1001]),
        ({7: 1001, 8: 1003, 9: 1005}, [1, 2], [1002, 1004]),
        ({7: 1001, 8: 1003, 9: 1005}, [1, 2, 3], [1002, 1004, 1006]),
    ],
)
def test_gaps_are_filled_first_and_what_is_used_stays(
    taken: dict[int, int], new: list[int], numbers: list[int]
) -> None:
    known = [Vlan(vni, number) for vni, number in taken.items()]
    assigned = in_use(assign(known, {*taken, *new}, generation=1, applied=0))
    assert assigned == taken | dict(zip(new, numbers, strict=True))


def test_a_vni_keeps_its_number_when_it_leaves_and_comes_back() -> None:
    first = assign([], {20, 30}, generation=1, applied=0)
    without = assign(first.values(), {30}, generation=2, applied=1)
    assert in_use(without) == {30: 1002}
    with_another = assign(without.values(), {30, 40}, generation=3, applied=2)
    assert in_use(with_another) == {30: 1002, 40: 1003}
    back = assign(with_another.values(), {20, 30, 40}, generation=4, applied=3)
    assert in_use(back) == {20: 1001, 30: 1002, 40: 1003}


def full(released: int) -> list[Vlan]:
    vlans = [Vlan(number, number) for number in range(FIRST_VLAN, LAST_VLAN + 1)]
    return [Vlan(vlan.vni, vlan.id, released if vlan.vni == 1500 else 0) for vlan in vlans]


def test_a_number_changes_its_vni_only_after_the_leaf_confirmed_that_it_is_gone() -> None:
    wanted = {number for number in range(FIRST_VLAN, LAST_VLAN + 1) if number != 1500} | {9999}
    with pytest.raises(Refused) as caught:
        assign(full(released=7), wanted, generation=8, applied=6)
    assert caught.value.reason == "VLANS_EXHAUSTED"
    assigned = assign(full(released=7), wanted, generation=8, applied=7)
    assert assigned[9999].id == 1500
    assert 1500 not in assigned


def test_more_vrfs_than_vlans_are_refused() -> None:
    with pytest.raises(Refused) as caught:
        assign([], range(1, 1002), generation=1, applied=0)
    assert caught.value.reason == "VLANS_EXHAUSTED"
    assert len(assign([], range(1, 1001), generation=1, applied=0)) == 1000


@given(st.lists(st.sets(st.integers(1, 40), max_size=12), max_size=20))
def test_numbers_are_unique_in_range_and_stable_over_any_history(history: list[set[int]]) -> None:
    vlans: dict[int, Vlan] = {}
    numbers: dict[int, int] = {}
    for generation, vnis in enumerate(history, start=1):
        again = assign(vlans.values(), vnis, generation=generation, applied=generation - 1)
        assert again == assign(reversed(list(vlans.values())), vnis, generation=generation, applied=generation - 1)
        vlans = again
        assert in_use(vlans).keys() == vnis
        assert len({vlan.id for vlan in vlans.values()}) == len(vlans)
        for vni, vlan in vlans.items():
            assert FIRST_VLAN <= vlan.id <= LAST_VLAN
            assert numbers.setdefault(vni, vlan.id) == vlan.id
