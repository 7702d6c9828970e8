"""Tables that people copy from and programs read."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st
from metalctl.table import plain, render, render_pairs, width

CELLS = st.lists(st.lists(st.text(max_size=12), min_size=3, max_size=3), max_size=6)


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert render(["ID", "NAME", "AGE"], [["1", "a long name", "3m"], ["22", "b", ""]]).splitlines() == [
        "ID  NAME         AGE",
        "1   a long name  3m",
        "22  b            -",
    ]


def test_an_empty_list_is_its_header() -> None:
    assert render(["ID", "NAME"], []) == "ID  NAME"


def test_long_values_are_neither_cut_nor_folded() -> None:
    value = "x" * 5000
    assert render(["A", "B"], [[value, "y"]]).splitlines()[1] == f"{value}  y"


def test_wide_and_combining_characters_keep_columns_aligned() -> None:
    lines = render(["A", "B"], [["日本", "x"], ["cafe\N{COMBINING ACUTE ACCENT}", "y"]]).splitlines()
    assert lines == ["A     B", "日本  x", "cafe\N{COMBINING ACUTE ACCENT}  y"]


def test_control_characters_are_shown_and_not_sent_to_the_terminal() -> None:
    assert plain("a\x1b[2Jb\nc\td\x7f\x9b") == r"a\x1b[2Jb\nc\td\x7f\x9b"
    assert plain("user\N{RIGHT-TO-LEFT OVERRIDE}nimda\N{LINE SEPARATOR}") == r"user\u202enimda\u2028"
    assert plain("Zoë 日本 ok") == "Zoë 日本 ok"


def test_pairs_are_aligned_by_their_names() -> None:
    assert render_pairs([("id", "7"), ("create_time", "now"), ("x", "a\nb")]).splitlines() == [
        "id           7",
        "create_time  now",
        r"x            a\nb",
    ]
    assert render_pairs([]) == ""


@given(CELLS)
def test_a_row_is_a_line_whatever_is_in_it(cells: list[list[str]]) -> None:
    lines = render(["A", "B", "C"], cells).split("\n")
    assert len(lines) == 1 + len(cells)
    for line in lines:
        assert len(line.splitlines()) == 1
        assert not any(unicodedata.category(char) in {"Cc", "Cf"} for char in line)


@given(CELLS)
def test_the_last_column_begins_at_one_place(cells: list[list[str]]) -> None:
    lines = render(["A", "B", "C"], [[a, b, "|"] for a, b, _ in cells]).split("\n")
    starts = {width(line[: line.rindex("|")]) for line in lines[1:]}
    assert len(starts) <= 1
    if cells:
        assert starts == {width(lines[0][: lines[0].rindex("C")])}
