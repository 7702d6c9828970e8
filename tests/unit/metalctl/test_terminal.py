"""The keys of a console: which are the machine's, and which are metalctl's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metalctl.terminal import Escape, Keys

LEAVE, BREAK, HELP = Escape.DETACH, Escape.BREAK, Escape.HELP


def pressed(*keys: bytes) -> list[bytes | Escape]:
    """What several presses come to, neighbouring characters as one."""
    finder, found = Keys(), list[bytes | Escape]()
    for each in keys:
        for what in finder.press(each):
            if found and isinstance(what, bytes) and isinstance(last := found[-1], bytes):
                found[-1] = last + what
            else:
                found.append(what)
    return found


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        (b"~.", [LEAVE]),
        (b"ls\r~.", [b"ls\r", LEAVE]),
        (b"ls\n~B~?x", [b"ls\n", BREAK, HELP, b"x"]),
        (b"a~.", [b"a~."]),
        (b"~~.", [b"~."]),
        (b"~x~.", [b"~x~."]),
        (b"\r~\r~.", [b"\r~\r", LEAVE]),
        (b"~", []),
        (b"cd ~/x\r", [b"cd ~/x\r"]),
        (b"\x03\x1b[A", [b"\x03\x1b[A"]),
    ],
)
def test_escapes_count_at_the_beginning_of_a_line(keys: bytes, found: list[bytes | Escape]) -> None:
    assert pressed(keys) == found
    assert pressed(*(bytes((key,)) for key in keys)) == found, "one key at a time comes to the same"


@given(st.binary(max_size=60).filter(lambda keys: b"~" not in keys))
def test_what_has_no_tilde_goes_to_the_machine_as_it_is(keys: bytes) -> None:
    assert b"".join(each for each in pressed(keys) if isinstance(each, bytes)) == keys
