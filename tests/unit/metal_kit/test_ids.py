"""Identifiers."""

from __future__ import annotations

import re
import time
import uuid
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_kit import ids
from metal_kit.errors import InvalidArgument
from metal_kit.ids import made_before, parse_uuid, uuid7


def test_ids_are_version_7_and_carry_the_time() -> None:
    before = time.time_ns() // 1_000_000
    made = uuid.UUID(uuid7())
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert before - 1 <= made.int >> 80 <= time.time_ns() // 1_000_000 + 1


def test_ids_sort_in_the_order_of_their_creation() -> None:
    made = [uuid7() for _ in range(5000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_a_clock_that_steps_back_does_not_disorder_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    first = uuid7()
    monkeypatch.setattr(ids, "time", SimpleNamespace(time_ns=lambda: 1_000_000_000))
    later = [uuid7() for _ in range(10)]
    assert [first, *later] == sorted([first, *later])


@given(st.uuids())
def test_any_spelling_in_case_is_one_id(made: uuid.UUID) -> None:
    assert parse_uuid(str(made).upper(), field="id") == str(made)


@given(st.text(max_size=60))
def test_other_text_is_refused_with_the_field(text: str) -> None:
    if re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text, re.ASCII):
        return
    with pytest.raises(InvalidArgument) as caught:
        parse_uuid(text, field="machine")
    assert caught.value.field == "machine"


@pytest.mark.parametrize("form", ["{{{}}}", "urn:uuid:{}", " {}", "{}\n"])
def test_other_forms_of_a_uuid_are_refused(form: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_uuid(form.format(uuid.uuid4()), field="id")
    with pytest.raises(InvalidArgument):
        parse_uuid(uuid.uuid4().hex, field="id")


def test_only_ids_that_carry_a_time_have_an_order() -> None:
    later = uuid7()
    earlier = str(uuid.UUID(int=uuid.UUID(later).int - (1 << 80)))
    assert made_before(earlier, later)
    assert not made_before(later, earlier)
    assert not made_before(later, later)
    lowest = str(uuid.UUID(int=0, version=4))
    assert not made_before(lowest, later)
