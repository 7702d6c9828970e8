"""The boot decision: every state, however the machine is recognised, with and without the control plane."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_boot.decision import HELD, Answer, Decision, decide, decide_without_plane
from metal_boot.orders import Order, Verdict, instruct, verdict
from metal_boot.situation import INSTALLED, Known, Situation, Wanted

MACHINE = "4c4c4544-0051-3510-8052-b4c04f4e3132"
INSTALLER, LOCAL, DISCOVER = Answer.INSTALLER, Answer.LOCAL_DISK, Answer.DISCOVER

SITUATIONS = st.builds(
    Situation,
    machine_id=st.just(MACHINE),
    known=st.sampled_from(Known),
    generation=st.integers(0, 3),
    locked=st.booleans(),
    bound_to=st.sampled_from(["", "a1", "a2"]),
    clean=st.booleans(),
    wipe_failed=st.booleans(),
    allocation_id=st.sampled_from(["", "a1"]),
    wanted=st.sampled_from(Wanted),
)

TABLE: dict[Wanted, Answer] = {
    Wanted.NOTHING: INSTALLER,
    Wanted.PREPARING: INSTALLER,
    Wanted.INSTALL: INSTALLER,
    Wanted.INSTALLED: LOCAL,
    Wanted.START: LOCAL,
    Wanted.RUNNING: LOCAL,
    Wanted.RECLAIMING: INSTALLER,
}


def held(wanted: Wanted, known: Known, **changes: object) -> Situation:
    allocation = "" if wanted is Wanted.NOTHING else "a1"
    values = {"bound_to": allocation, "allocation_id": allocation, "wanted": wanted, "known": known} | changes
    return Situation(MACHINE, **values)  # type: ignore[arg-type]


def test_every_state_has_its_place_in_both_tables() -> None:
    assert set(TABLE) == set(HELD) == set(Wanted)


@pytest.mark.parametrize(("wanted", "known"), list(itertools.product(Wanted, [Known.BY_UUID, Known.BY_MAC])))
def test_a_known_machine_boots_by_what_its_allocation_wants(wanted: Wanted, known: Known) -> None:
    decision = decide(held(wanted, known))
    assert decision.answer is TABLE[wanted]
    assert decision.unexpected == (wanted in INSTALLED)


@pytest.mark.parametrize("wanted", [Wanted.NOTHING, Wanted.PREPARING, Wanted.INSTALL, Wanted.RECLAIMING])
def test_a_locked_machine_never_gets_the_installer(wanted: Wanted) -> None:
    assert decide(held(wanted, Known.BY_UUID, locked=True)).answer is LOCAL


def test_an_unknown_machine_is_discovered() -> None:
    assert decide(Situation(MACHINE)) == Decision(DISCOVER, "unknown machine")


def test_a_machine_that_only_allocation_knows_is_not_taken_for_a_new_one() -> None:
    situation = Situation(MACHINE, known=Known.UNKNOWN, allocation_id="a1", wanted=Wanted.RUNNING)
    assert decide(situation).answer is LOCAL


@given(SITUATIONS)
def test_an_installed_machine_gets_its_local_disk_whatever_else_is_said(situation: Situation) -> None:
    if situation.wanted in INSTALLED:
        assert decide(situation).answer is LOCAL


@pytest.mark.parametrize("wanted", list(Wanted))
def test_without_the_plane_a_machine_boots_what_it_was_told_last(wanted: Wanted) -> None:
    last = decide(held(wanted, Known.BY_UUID))
    repeated = decide_without_plane(last)
    assert repeated.answer is last.answer
    assert "cannot be reached" in repeated.reason


def test_without_the_plane_a_machine_that_nothing_is_remembered_of_boots_its_local_disk() -> None:
    assert decide_without_plane(None).answer is LOCAL


@given(SITUATIONS)
def test_a_wipe_is_only_ordered_for_a_machine_that_nobody_says_is_held(situation: Situation) -> None:
    if instruct(situation).order is Order.WIPE:
        assert situation.wanted is Wanted.NOTHING
        assert situation.bound_to == situation.allocation_id == ""
        assert not situation.locked
        assert not situation.clean
        assert not situation.wipe_failed


@given(SITUATIONS)
def test_an_installation_is_only_ordered_when_both_services_name_the_same_allocation(situation: Situation) -> None:
    if instruct(situation).order in (Order.INSTALL, Order.START):
        assert situation.allocation_id == situation.bound_to == "a1"
    if instruct(situation).order is Order.INSTALL:
        assert situation.wanted is Wanted.INSTALL
        assert not situation.locked


@given(SITUATIONS)
def test_only_a_free_clean_machine_is_offered(situation: Situation) -> None:
    instruction = instruct(situation)
    free = not situation.held and not situation.locked and situation.clean
    assert instruction.offer == free
    if instruction.offer:
        assert instruction.order is Order.WAIT


@given(SITUATIONS)
def test_an_installed_machine_is_never_told_to_touch_its_disks(situation: Situation) -> None:
    if situation.wanted in INSTALLED:
        assert instruct(situation).order in (Order.WAIT, Order.START, Order.BOOT_EXISTING)
        assert verdict(situation) is Verdict.BOOT_EXISTING


@given(SITUATIONS)
def test_every_situation_has_an_order_with_a_reason_and_a_verdict(situation: Situation) -> None:
    assert instruct(situation).reason
    assert decide(situation).reason
    assert verdict(situation) in Verdict


def test_a_machine_with_a_disk_that_could_not_be_wiped_stays_in_quarantine() -> None:
    instruction = instruct(Situation(MACHINE, known=Known.BY_UUID, wipe_failed=True))
    assert (instruction.order, instruction.offer) == (Order.WAIT, False)
    assert "quarantined" in instruction.reason
