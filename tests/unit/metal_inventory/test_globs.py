from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_inventory.globs import glob

patterns = st.lists(st.sampled_from(["a", "b", "-", "*", "?", "[ab]", "[!a]", "[a-c]", "[!b-c]"]), max_size=6).map(
    "".join
)
names = st.text("abc-", max_size=7)


@given(patterns.filter(bool), names)
def test_a_glob_matches_what_the_shell_would_match(pattern: str, name: str) -> None:
    assert glob(pattern).matches(name) == fnmatch.fnmatchcase(name, pattern)


@given(patterns, patterns, names)
def test_two_globs_that_match_one_name_intersect(left: str, right: str, name: str) -> None:
    if glob(left).matches(name) and glob(right).matches(name):
        assert glob(left).intersects(glob(right))


@given(patterns, patterns)
def test_intersection_is_symmetric(left: str, right: str) -> None:
    assert glob(left).intersects(glob(right)) == glob(right).intersects(glob(left))


@pytest.mark.parametrize(
    ("left", "right", "meet"),
    [
        ("/dev/sd*", "/dev/nvme*", False),
        ("/dev/*", "/dev/nvme*", True),
        ("*a", "b*", True),
        ("[a-m]*", "[n-z]*", False),
        ("[!a]*", "a*", False),
        ("?", "??", False),
        ("", "anything", True),
        ("H100*", "*H100", True),
    ],
)
def test_intersection_of_known_pairs(left: str, right: str, meet: bool) -> None:
    assert glob(left).intersects(glob(right)) is meet


@pytest.mark.parametrize("text", ["[", "sd[a", "[]", "[!]", "[z-a]"])
def test_a_malformed_glob_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="glob"):
        glob(text)
