from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from metal_fabric.rollout import Progress, next_leaf, waits_for

OLD, NEW = 1, 2
A, B = Progress("leaf01", OLD, True, True), Progress("leaf02", OLD, True, True)
LEAVES = st.tuples(*(
    st.builds(Progress, st.just(name), st.sampled_from([OLD, NEW]), st.booleans(), st.booleans())
    for name in ("leaf01", "leaf02", "leaf03")
))  # fmt: skip


def given_to(leaf: Progress, *, settled: bool) -> Progress:
    return Progress(leaf.switch_id, NEW, settled, leaf.connected)


def test_the_second_leaf_waits_until_the_first_has_applied() -> None:
    assert next_leaf([A, B], NEW) == "leaf01"
    assert next_leaf([given_to(A, settled=False), B], NEW) is None
    assert waits_for([given_to(A, settled=False), B], NEW) == ("leaf01",)
    assert next_leaf([given_to(A, settled=True), B], NEW) == "leaf02"
    assert next_leaf([given_to(A, settled=True), given_to(B, settled=True)], NEW) is None


def test_a_leaf_that_settings_have_taken_down_keeps_them_from_the_other() -> None:
    dead = Progress("leaf01", NEW, False, False)
    assert next_leaf([dead, B], NEW) is None
    assert next_leaf([dead, B], NEW + 1) == "leaf02", "what is newer may be the remedy"


def test_the_leaf_in_trouble_gets_a_remedy_first_when_it_is_there() -> None:
    assert next_leaf([A, Progress("leaf02", OLD, False, True)], NEW) == "leaf02"
    assert next_leaf([A, Progress("leaf02", OLD, False, False)], NEW) == "leaf01"
    assert next_leaf([Progress("leaf01", OLD, True, False)], NEW) is None


@given(LEAVES)
def test_no_two_leaves_of_a_rack_apply_settings_at_once(rack: tuple[Progress, ...]) -> None:
    chosen = next_leaf(rack, NEW)
    if chosen is not None:
        assert not waits_for(rack, NEW)
        [leaf] = [leaf for leaf in rack if leaf.switch_id == chosen]
        assert leaf.connected
        assert leaf.version == OLD
