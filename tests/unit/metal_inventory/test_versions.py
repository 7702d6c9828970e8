from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_inventory.versions import parse_constraint, parse_version


@pytest.mark.parametrize(
    ("constraint", "inside", "outside"),
    [
        ("*", ["0", "12.4.20250101"], []),
        ("= 12", ["12", "12.9.20250101"], ["11.9", "13"]),
        ("= 12.4", ["12.4.20250101"], ["12.5", "12.3.20250101"]),
        ("= 12.4.20250101", ["12.4.20250101"], ["12.4.20250102"]),
        ("> 12", ["13"], ["12", "12.9.20250101"]),
        (">= 12", ["12", "13"], ["11.9.20250101"]),
        ("< 12", ["11.9.20250101"], ["12"]),
        ("<= 12", ["12.9.20250101"], ["13"]),
        ("~ 12.4", ["12.4.20250101"], ["12.5"]),
        ("~ 12.4.20250101", ["12.4.20250102"], ["12.4.20241231", "12.5"]),
        ("~ 12", ["12.9"], ["13"]),
        ("^ 12.4", ["12.4", "12.9"], ["12.3", "13"]),
        (">= 12, < 13", ["12.4"], ["13", "11"]),
    ],
)
def test_a_constraint_allows_its_range(constraint: str, inside: list[str], outside: list[str]) -> None:
    allowed = parse_constraint(constraint)
    assert [text for text in inside if parse_version(text)[0] not in allowed] == []
    assert [text for text in outside if parse_version(text)[0] in allowed] == []


@pytest.mark.parametrize("text", ["", ">=12", "12", "> ", "!= 12", ">= 12 < 13", ">= x", "> 13, < 12", "* 12", ">= 01"])
def test_a_malformed_or_empty_constraint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"version|operator"):
        parse_constraint(text)


versions = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(lambda parts: ".".join(map(str, parts)))
terms = st.builds(lambda op, v: f"{op} {v}", st.sampled_from(["=", ">", ">=", "<=", "~", "^"]), versions)


@given(terms, terms, st.tuples(*[st.integers(0, 4)] * 3))
def test_an_intersection_holds_exactly_what_both_ranges_hold(
    left: str, right: str, version: tuple[int, int, int]
) -> None:
    a, b = parse_constraint(left), parse_constraint(right)
    both = a.intersection(b)
    assert (version in both) == (version in a and version in b)
    if version in both:
        assert not both.empty
