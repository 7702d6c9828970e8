"""The search for leaked secrets finds one however it is spelt: otherwise that it finds none would prove nothing."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from leaks import SHORTEST, Haystack, Secrets

WAYS = {
    "plain": lambda text: text,
    "hex": lambda text: text.hex().encode(),
    "hex in capitals": lambda text: text.hex().upper().encode(),
    "base64": base64.b64encode,
    "base64 for URLs": base64.urlsafe_b64encode,
    "base64 without its end": lambda text: base64.urlsafe_b64encode(text).rstrip(b"="),
    "URL": lambda text: quote(text).encode(),
    "URL with slashes": lambda text: quote(text, safe="").encode(),
    "URL of a form": lambda text: quote_plus(text).encode(),
}
secrets = st.binary(min_size=SHORTEST + 4, max_size=40)


@pytest.mark.parametrize("way", WAYS)
@given(secret=secrets, before=st.binary(max_size=5), after=st.binary(max_size=5))
@example(secret=b"a secret+with/all of it?", before=b"", after=b"")
def test_a_secret_is_found_in_the_middle_of_what_was_encoded(
    way: str, secret: bytes, before: bytes, after: bytes
) -> None:
    known = Secrets()
    known.add("it", secret)
    assert known.found_in([Haystack("there", WAYS[way](before + secret + after))]) == [("there", "it 1")]


def test_a_secret_of_several_lines_is_found_in_json() -> None:
    known = Secrets()
    known.add("it", "first line\nsecond line")
    assert known.found_in([Haystack("there", json.dumps({"a": "x first line\nsecond line y"}).encode())])


@given(secret=secrets)
def test_nothing_is_found_where_it_is_not(secret: bytes) -> None:
    known = Secrets()
    known.add("it", secret)
    assert not known.found_in([Haystack("there", bytes(each ^ 0xFF for each in secret))])


def test_what_could_be_found_by_chance_is_not_taken() -> None:
    with pytest.raises(ValueError, match="at least 8"):
        Secrets().add("it", "short")
