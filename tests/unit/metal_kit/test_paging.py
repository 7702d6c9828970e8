"""Page sizes and page tokens."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_kit.errors import InvalidArgument
from metal_kit.paging import Key, Paging

PART = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**62), 2**62), st.text(max_size=40),
    st.datetimes(timezones=st.just(UTC)), st.floats(allow_nan=False),
)  # fmt: skip
KEYS = st.lists(PART, max_size=4).map(tuple)


@given(KEYS, st.text(max_size=40))
def test_a_token_brings_back_its_key(key: Key, filter_key: str) -> None:
    paging = Paging(b"secret")
    token = paging.token(key, filter_key=filter_key)
    assert paging.parse(token, filter_key=filter_key) == key
    assert token.isascii()
    assert "=" not in token


def test_times_keep_their_microseconds() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    paging = Paging(b"s")
    assert paging.parse(paging.token((moment, "id"), filter_key=""), filter_key="") == (moment, "id")


def test_the_first_page_has_no_token() -> None:
    assert Paging(b"s").parse("", filter_key="x") is None


@given(st.text(max_size=120))
def test_no_text_but_a_token_is_taken_for_one(text: str) -> None:
    paging = Paging(b"s")
    if text:
        with pytest.raises(InvalidArgument) as caught:
            paging.parse(text, filter_key="x")
        assert caught.value.field == "page_token"


@given(KEYS, st.data())
def test_a_token_that_was_changed_is_refused(key: Key, data: st.DataObject) -> None:
    paging = Paging(b"s")
    token = paging.token(key, filter_key="x")
    position = data.draw(st.integers(0, len(token) - 1))
    sign = data.draw(st.sampled_from("ABCxyz019-_"))
    changed = token[:position] + sign + token[position + 1 :]
    try:
        result = paging.parse(changed, filter_key="x")
    except InvalidArgument:
        return
    # Base64 without padding has spare bits in its last character: another spelling of the same bytes.
    assert result == key


def test_a_token_of_another_query_or_service_is_refused() -> None:
    paging = Paging(b"s")
    token = paging.token(("k",), filter_key="project=a")
    for other in (Paging(b"s"), Paging(b"t")):
        with pytest.raises(InvalidArgument):
            other.parse(token, filter_key="project=b")
    with pytest.raises(InvalidArgument):
        Paging(b"t").parse(token, filter_key="project=a")
    assert Paging(b"s").parse(token, filter_key="project=a") == ("k",)


@pytest.mark.parametrize(("asked", "given_"), [(0, 50), (1, 1), (50, 50), (500, 500), (501, 500), (2**31 - 1, 500)])
def test_page_sizes_are_clamped(asked: int, given_: int) -> None:
    assert Paging.page_size(asked) == given_


def test_a_negative_page_size_is_refused() -> None:
    with pytest.raises(InvalidArgument) as caught:
        Paging.page_size(-1)
    assert caught.value.field == "page_size"


@given(st.lists(st.integers(), unique=True, max_size=60), st.integers(0, 20))
def test_walking_through_the_pages_shows_every_row_once_in_order(rows: list[int], size: int) -> None:
    paging = Paging(b"secret")
    rows.sort()
    seen: list[int] = []
    token = ""
    for _ in range(len(rows) + 1):
        page = paging.page(size, token, filter_key="rows", default=7)
        after = page.after[0] if page.after else None
        fetched = [row for row in rows if after is None or row > after][: page.limit]
        shown, token = page.cut(fetched, lambda row: (row,))
        assert len(shown) <= (size or 7)
        seen += shown
        if not token:
            break
    assert seen == rows
    assert not token
