from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from metal_fabric.attachment import Attachment, Leaf, attach, detach
from metal_fabric.filters import UNPROVISIONED, PortRole, Wish
from metal_fabric.problems import Refused

WISH = Wish(PortRole.MACHINE, vrf=20)


def machine(wanted: int = 1, applied: int = 1) -> Attachment:
    leaves = tuple(Leaf(name, ("Ethernet0",), wanted, applied) for name in ("leaf01", "leaf02"))
    return Attachment("m", leaves=leaves)


def wanting(attachment: Attachment, generation: int, *applied: int) -> Attachment:
    pairs = zip(attachment.leaves, applied, strict=True)
    return replace(attachment, leaves=tuple(replace(leaf, wanted=generation, applied=each) for leaf, each in pairs))


def refusal(current: Attachment, allocation: str, *, ended: tuple[str, ...] = ()) -> Refused:
    with pytest.raises(Refused) as caught:
        attach(current, allocation, WISH, ended=ended)
    return caught.value


def test_an_attachment_is_confirmed_only_by_all_leaves() -> None:
    held = attach(machine(), "a", WISH, ended=())
    assert not wanting(held, 2, 2, 1).confirmed
    assert [leaf.switch_id for leaf in wanting(held, 2, 2, 1).outstanding] == ["leaf02"]
    assert wanting(held, 2, 2, 3).confirmed


def test_a_machine_without_leaves_is_confirmed_by_nobody() -> None:
    assert not Attachment("m").confirmed
    assert refusal(Attachment("m"), "a").reason == "MACHINE_NOT_CABLED"


def test_the_same_wish_again_changes_nothing() -> None:
    held = replace(attach(machine(), "a", WISH, ended=()), announced=True)
    assert attach(held, "a", WISH, ended=()) is held


def test_the_owner_may_change_his_wish() -> None:
    held = replace(attach(machine(), "a", WISH, ended=()), announced=True)
    changed = attach(held, "a", replace(WISH, allowed_prefixes=("10.0.0.0/8",)), ended=())
    assert changed.wish.allowed_prefixes == ("10.0.0.0/8",)
    assert not changed.announced


def test_another_allocation_never_replaces_an_attachment() -> None:
    held = attach(machine(), "a", WISH, ended=())
    assert refusal(held, "b").reason == "ATTACHED_TO_OTHER"


def test_the_next_allocation_waits_until_every_leaf_confirmed_the_detachment() -> None:
    leaving = detach(attach(machine(), "a", WISH, ended=()), "a")
    waiting = wanting(leaving, 3, 3, 2)
    refused = refusal(waiting, "b")
    assert refused.reason == "DETACHMENT_UNCONFIRMED"
    assert "leaf02" in refused.message
    assert waiting.held_by == "a"
    gone = wanting(leaving, 3, 3, 3)
    assert gone.held_by == ""
    assert attach(gone, "b", WISH, ended=("a",)).owner == "b"


def test_a_late_detach_of_the_last_owner_does_nothing_to_the_next() -> None:
    held = attach(machine(), "b", WISH, ended=("a",))
    assert detach(held, "a") is held


def test_a_late_attach_of_an_ended_allocation_is_refused() -> None:
    assert refusal(machine(), "a", ended=("a",)).reason == "ALLOCATION_ENDED"


def test_detaching_twice_is_detaching_once() -> None:
    leaving = detach(attach(machine(), "a", WISH, ended=()), "a")
    assert leaving.wish == UNPROVISIONED
    assert detach(leaving, "a") is leaving


class Replays(RuleBasedStateMachine):
    """Any interleaving of attach and detach of three allocations, with leaves that apply when they like."""

    def __init__(self) -> None:
        super().__init__()
        self.now = machine()
        self.generation = 1
        self.ended: set[str] = set()

    def move(self, after: Attachment) -> None:
        if after.wish != self.now.wish:
            self.generation += 1
            leaves = tuple(replace(leaf, wanted=self.generation) for leaf in after.leaves)
            after = replace(after, leaves=leaves)
        self.now = after

    @rule(who=st.sampled_from("abc"))
    def attach(self, who: str) -> None:
        before = self.now
        try:
            self.move(attach(before, who, WISH, ended=self.ended))
        except Refused:
            assert who in self.ended or before.held_by not in ("", who)
        else:
            assert who not in self.ended
            assert before.held_by in ("", who)

    @rule(who=st.sampled_from("abc"))
    def detach(self, who: str) -> None:
        before = self.now
        self.ended.add(who)
        self.move(detach(before, who))
        if before.owner != who:
            assert self.now is before

    @rule(index=st.sampled_from([0, 1]))
    def apply(self, index: int) -> None:
        leaves = list(self.now.leaves)
        leaves[index] = replace(leaves[index], applied=self.generation)
        self.now = replace(self.now, leaves=tuple(leaves))

    @invariant()
    def nobody_is_connected_without_a_live_owner(self) -> None:
        if self.now.wish == WISH:
            assert self.now.owner not in self.ended


TestReplays = Replays.TestCase
