"""A chain of audit entries shows every edit, removal, swap and insertion; anchors show what a chain alone cannot."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metal_kit.audit.chain import Anchor, Broken, Verification, link_hash, origin
from metalplane.audit.v1.audit_pb2 import AuditEntry, AuditLink, AuditPhase, ChainEnds

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
FEW = settings(max_examples=60)


def entry(number: int, **changes: object) -> bytes:
    made = AuditEntry(call=f"call-{number}", phase=AuditPhase.AUDIT_PHASE_ENDED, caller="user:eve", **changes)
    made.time.FromDatetime(NOW + timedelta(seconds=number))
    return made.SerializeToString()


def chain(
    entries: Sequence[bytes], *, service: str = "ipam", floor: int = 0, before: bytes = b""
) -> tuple[list[AuditLink], ChainEnds]:
    """A chain as a service shows it; the hashes from the floor on are right."""
    start = before or origin(service)
    links, hash_ = [], start
    for sequence, body in enumerate(entries, start=floor + 1):
        hash_ = link_hash(hash_, sequence, body)
        links.append(AuditLink(sequence=sequence, entry=body, hash=hash_))
    ends = ChainEnds(floor_sequence=floor, floor_hash=start, head_sequence=floor + len(links), head_hash=hash_)
    return links, ends


def verify(
    links: Sequence[AuditLink], ends: ChainEnds, *, service: str = "ipam", anchor: Anchor | None = None
) -> Verification:
    """Raises Broken."""
    verification = Verification(service, ends, anchor, NOW)
    for link in links:
        verification.take(link)
    verification.finish()
    return verification


def anchor_at(links: Sequence[AuditLink], sequence: int, *, age: timedelta = timedelta(hours=1)) -> Anchor:
    return Anchor(sequence, links[sequence - 1].hash, NOW - age)


bodies = st.lists(st.integers(0, 50), min_size=1, max_size=8).map(
    lambda ids: [entry(number * 100 + id_) for number, id_ in enumerate(ids)]
)


@FEW
@given(bodies)
def test_a_chain_that_nobody_touched_is_whole(entries: list[bytes]) -> None:
    found = verify(*chain(entries))
    assert (found.entries, found.head.sequence) == (len(entries), len(entries))


@FEW
@given(bodies, st.data())
def test_any_bit_of_an_entry_or_a_hash_that_is_changed_is_found_where_it_is(
    entries: list[bytes], data: st.DataObject
) -> None:
    links, ends = chain(entries)
    place = data.draw(st.integers(0, len(links) - 1))
    name = data.draw(st.sampled_from(["entry", "hash"]))
    changed = bytearray(getattr(links[place], name))
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    setattr(links[place], name, bytes(changed))
    with pytest.raises(Broken) as found:
        verify(links, ends)
    assert found.value.sequence == place + 1


@FEW
@given(bodies, st.data())
def test_an_entry_that_was_taken_out_is_found_also_when_the_rest_is_numbered_anew(
    entries: list[bytes], data: st.DataObject
) -> None:
    links, ends = chain(entries)
    place = data.draw(st.integers(0, len(links) - 1))
    del links[place]
    if data.draw(st.booleans()):
        for sequence, link in enumerate(links, start=1):
            link.sequence = sequence
    with pytest.raises(Broken) as found:
        verify(links, ends)
    assert found.value.sequence == place + 1


@FEW
@given(bodies, st.data())
def test_an_entry_that_was_put_in_is_found(entries: list[bytes], data: st.DataObject) -> None:
    links, ends = chain(entries)
    place = data.draw(st.integers(0, len(links)))
    before = links[place - 1].hash if place else origin("ipam")
    body = entry(7)
    links.insert(place, AuditLink(entry=body, hash=link_hash(before, place + 1, body)))
    for sequence, link in enumerate(links, start=1):
        link.sequence = sequence
    with pytest.raises(Broken) as found:
        verify(links, ends)
    # It fits what stands before it; then what follows does not, or the head does not know it.
    assert found.value.sequence == min(place + 2, len(links))


@FEW
@given(bodies, st.data())
def test_two_entries_that_changed_places_are_found(entries: list[bytes], data: st.DataObject) -> None:
    if len(entries) < 2:
        entries = [*entries, entry(9999)]
    links, ends = chain(entries)
    one = data.draw(st.integers(0, len(links) - 2))
    other = data.draw(st.integers(one + 1, len(links) - 1))
    links[one].entry, links[other].entry = links[other].entry, links[one].entry
    with pytest.raises(Broken) as found:
        verify(links, ends)
    assert found.value.sequence == one + 1


@FEW
@given(bodies, st.data())
def test_a_rewritten_history_whose_hashes_all_fit_is_found_by_its_anchor(
    entries: list[bytes], data: st.DataObject
) -> None:
    links, _ = chain(entries)
    noted = data.draw(st.integers(1, len(links)))
    place = data.draw(st.integers(0, noted - 1))
    forged = [*entries[:place], entry(12345, reason="forged"), *entries[place + 1 :]]
    rewritten, ends = chain(forged)
    verify(rewritten, ends)
    with pytest.raises(Broken, match="rewritten"):
        verify(rewritten, ends, anchor=anchor_at(links, noted))


def test_a_tail_that_was_cut_off_together_with_the_head_is_found_by_its_anchor() -> None:
    links, _ = chain([entry(number) for number in range(5)])
    cut, ends = chain([entry(number) for number in range(3)])
    verify(cut, ends, anchor=anchor_at(links, 3))
    with pytest.raises(Broken, match="the chain ends at 3; when the anchor was noted it went to 5") as found:
        verify(cut, ends, anchor=anchor_at(links, 5))
    assert found.value.sequence == 4


def test_a_tail_that_was_cut_off_without_the_head_is_found_without_an_anchor() -> None:
    links, ends = chain([entry(number) for number in range(5)])
    with pytest.raises(Broken, match="ends at 3 and should at 5"):
        verify(links[:3], ends)


def test_the_chain_of_another_service_does_not_pass_for_this_one() -> None:
    links, ends = chain([entry(1)], service="tenancy")
    with pytest.raises(Broken, match="does not begin"):
        verify(links, ends)


def test_columns_that_say_something_else_than_the_entry_are_found() -> None:
    links, ends = chain([entry(1), entry(2)])
    links[1].misfiled = True
    with pytest.raises(Broken, match="columns") as found:
        verify(links, ends)
    assert found.value.sequence == 2


def pruned_entry(sequence: int, hash_: bytes) -> bytes:
    made = AuditEntry(call="retention", phase=AuditPhase.AUDIT_PHASE_PRUNED)
    made.pruned.sequence, made.pruned.hash = sequence, hash_
    made.time.FromDatetime(NOW)
    return made.SerializeToString()


def test_a_floor_holds_when_an_entry_of_the_chain_says_so() -> None:
    links, _ = chain([entry(1), entry(2), entry(3)])
    floor = links[1].hash
    told, ends = chain([entry(3), pruned_entry(2, floor)], floor=2, before=floor)
    assert verify(told, ends).entries == 2
    untold, ends = chain([entry(3)], floor=2, before=floor)
    with pytest.raises(Broken, match="no entry says that retention did it"):
        verify(untold, ends)
    false, ends = chain([entry(3), pruned_entry(2, b"x" * 32)], floor=2, before=floor)
    with pytest.raises(Broken, match="no entry says that retention did it"):
        verify(false, ends)


def test_retention_that_removes_what_was_noted_lately_is_no_retention() -> None:
    links, _ = chain([entry(1), entry(2), entry(3)])
    floor = links[1].hash
    told, ends = chain([entry(3), pruned_entry(2, floor)], floor=2, before=floor)
    verify(told, ends, anchor=anchor_at(links, 1, age=timedelta(days=31)))
    with pytest.raises(Broken, match="younger than anything retention removes"):
        verify(told, ends, anchor=anchor_at(links, 1, age=timedelta(days=29)))
    with pytest.raises(Broken, match="rewritten"):
        verify(told, ends, anchor=Anchor(2, b"x" * 32, NOW))


def test_calls_without_an_end_are_counted() -> None:
    def said(call: str, phase: AuditPhase.ValueType) -> bytes:
        return AuditEntry(call=call, phase=phase).SerializeToString()

    begun, ended, refused = AuditPhase.AUDIT_PHASE_BEGUN, AuditPhase.AUDIT_PHASE_ENDED, AuditPhase.AUDIT_PHASE_REFUSED
    entries = [said("a", begun), said("b", begun), said("a", ended), said("c", begun), said("c", refused)]
    assert verify(*chain(entries)).open == {"b"}
