"""Rack spreading: the exact rule, by cases and by comparison with a naive reading of it."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from metal_allocation.placement import Held, best_racks, choose

RACKS = ["r1", "r2", "r3", "r4"]
LABELS = st.dictionaries(st.sampled_from(["app", "tier"]), st.sampled_from(["db", "web"]), max_size=2)
FREE = st.dictionaries(st.sampled_from(RACKS), st.integers(0, 5), max_size=4)
HELD = st.lists(st.builds(Held, st.sampled_from(RACKS), LABELS), max_size=12)


def held(*racks: str, **labels: str) -> list[Held]:
    return [Held(rack, labels) for rack in racks]


def test_a_project_without_machines_may_get_any_rack() -> None:
    assert best_racks({"r1": 1, "r2": 9}, [], {}) == {"r1", "r2"}


def test_the_rack_with_the_fewest_machines_of_the_project_is_best() -> None:
    assert best_racks({"r1": 5, "r2": 1, "r3": 5}, held("r1", "r1", "r2", "r3"), {}) == {"r2", "r3"}


def test_a_rack_without_candidates_is_not_considered() -> None:
    assert best_racks({"r1": 1, "r2": 0}, held("r1"), {}) == {"r1"}


def test_without_candidates_there_is_no_rack() -> None:
    assert best_racks({}, held("r1"), {}) == frozenset()
    assert choose({"r1": 0}, [], {}, random.Random(1)) is None


def test_a_rack_that_is_best_by_project_and_by_label_is_taken() -> None:
    # By project r2 and r3 tie; by label r1 and r2 do.
    mine = [*held("r1"), *held("r1", "r2"), *held("r3", app="db")]
    assert best_racks({"r1": 1, "r2": 1, "r3": 1}, mine, {"app": "db"}) == {"r2"}


def test_labels_win_over_the_project() -> None:
    # The project has the fewest in r2, yet each of those carries the label.
    mine = [*held("r1", "r1"), *held("r2", app="db")]
    assert best_racks({"r1": 1, "r2": 1}, mine, {"app": "db"}) == {"r1"}


def test_any_of_several_labels_counts_and_only_a_whole_pair_does() -> None:
    free = {"r1": 1, "r2": 1, "r3": 1}
    mine = [*held("r1", app="db"), *held("r2", tier="web"), *held("r3", app="web")]
    assert best_racks(free, mine, {"app": "db", "tier": "web"}) == {"r3"}


def test_a_machine_with_two_of_the_labels_counts_once() -> None:
    mine = [*held("r1", app="db", tier="web"), *held("r2", app="db"), *held("r2", tier="web")]
    assert best_racks({"r1": 1, "r2": 1}, mine, {"app": "db", "tier": "web"}) == {"r1"}


def test_claims_in_flight_count_so_parallel_requests_go_to_different_racks() -> None:
    """Each claim is visible to the next choice, which is made under the lock of the class."""
    free, mine, rng = {"r1": 10, "r2": 10, "r3": 10}, [], random.Random(7)
    for _ in range(6):
        choice = choose(free, mine, {}, rng)
        assert choice is not None
        position = choice.position
        for rack in sorted(choice.racks):
            if position < free[rack]:
                free[rack] -= 1
                mine.append(Held(rack))
                break
            position -= free[rack]
    assert Counter(each.rack for each in mine) == {"r1": 2, "r2": 2, "r3": 2}


def test_the_choice_is_uniform_among_machines_not_among_racks() -> None:
    rng, count = random.Random(3), Counter[int]()
    for _ in range(8000):
        choice = choose({"r1": 1, "r2": 3}, [], {}, rng)
        assert choice is not None
        count[choice.position] += 1
    assert set(count) == {0, 1, 2, 3}
    assert all(1800 < each < 2200 for each in count.values()), count


@given(FREE, HELD, LABELS)
def test_the_racks_are_those_of_the_rule(free: dict[str, int], mine: list[Held], labels: dict[str, str]) -> None:
    racks = [rack for rack in RACKS if free.get(rack, 0) > 0]

    def project(rack: str) -> int:
        return len([each for each in mine if each.rack == rack])

    def tagged(rack: str) -> int:
        wanted = [
            each for each in mine if each.rack == rack and any(each.labels.get(k) == v for k, v in labels.items())
        ]
        return len(wanted)

    p = {rack for rack in racks if project(rack) == min(map(project, racks))}
    t = {rack for rack in racks if tagged(rack) == min(map(tagged, racks))}
    assert best_racks(free, mine, labels) == ((p & t) or t)


@given(FREE, HELD, LABELS, st.integers(0, 2**32))
def test_a_choice_is_always_one_of_the_candidates_of_its_racks(
    free: dict[str, int], mine: list[Held], labels: dict[str, str], seed: int
) -> None:
    choice = choose(free, mine, labels, random.Random(seed))
    if not any(free.values()):
        assert choice is None
        return
    assert choice is not None
    assert all(free[rack] > 0 for rack in choice.racks)
    assert 0 <= choice.position < sum(free[rack] for rack in choice.racks)


@given(FREE, HELD, LABELS, st.randoms(use_true_random=False))
def test_the_order_of_what_is_held_does_not_matter(
    free: dict[str, int], mine: list[Held], labels: dict[str, str], rng: random.Random
) -> None:
    shuffled = list(mine)
    rng.shuffle(shuffled)
    assert best_racks(free, mine, labels) == best_racks(free, shuffled, labels)
