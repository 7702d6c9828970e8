"""Shell globs over device and model names, and whether two globs can match the same name.

Supported: ``*`` (any run, also empty), ``?`` (any one character), ``[abc]``, ``[a-z]`` and the negations ``[!…]`` and
``[^…]``. Case matters. The intersection test is what :mod:`fnmatch` lacks and what tells whether two sizes can match
the same hardware.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache

_LAST = sys.maxunicode


@dataclass(frozen=True, slots=True)
class _One:
    """One character out of some ranges of code points, ends included."""

    ranges: tuple[tuple[int, int], ...]

    def holds(self, code: int) -> bool:
        return any(low <= code <= high for low, high in self.ranges)

    def meets(self, other: _One) -> bool:
        return any(max(a, c) <= min(b, d) for a, b in self.ranges for c, d in other.ranges)


_ANY = _One(((0, _LAST),))
_STAR = None
_Tokens = tuple[_One | None, ...]


class Glob:
    """A parsed glob. Raises :class:`ValueError` on an unclosed or empty bracket or a reversed range."""

    __slots__ = ("_tokens", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._tokens = _parse(text)

    def matches(self, name: str) -> bool:
        """Whether the glob matches the whole of ``name``."""
        return _meet(self._tokens, tuple(_One(((ord(c), ord(c)),)) for c in name))

    def intersects(self, other: Glob) -> bool:
        """Whether some name exists that both globs match."""
        return _meet(self._tokens, other._tokens)


@lru_cache(maxsize=1024)
def glob(text: str) -> Glob:
    """The parsed glob; an empty text matches every name."""
    return Glob(text or "*")


def _parse(text: str) -> _Tokens:
    tokens: list[_One | None] = []
    at = 0
    while at < len(text):
        char = text[at]
        at += 1
        if char == "*":
            if not tokens or tokens[-1] is not _STAR:
                tokens.append(_STAR)
        elif char == "?":
            tokens.append(_ANY)
        elif char == "[":
            one, at = _bracket(text, at)
            tokens.append(one)
        else:
            tokens.append(_One(((ord(char), ord(char)),)))
    return tuple(tokens)


def _bracket(text: str, at: int) -> tuple[_One, int]:
    negated = text[at : at + 1] in ("!", "^")
    at += negated
    # As in every shell, a closing bracket in first place is an ordinary character.
    end = text.find("]", at + 1)
    if end < 0:
        raise ValueError(f"unclosed bracket in glob {text!r}")
    body, ranges, i = text[at:end], [], 0
    while i < len(body):
        if body[i + 1 : i + 2] == "-" and i + 2 < len(body):
            low, high = ord(body[i]), ord(body[i + 2])
            if low > high:
                raise ValueError(f"reversed range in glob {text!r}")
            i += 3
        else:
            low = high = ord(body[i])
            i += 1
        ranges.append((low, high))
    return _One(_complement(ranges) if negated else tuple(ranges)), end + 1


def _complement(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    gaps, start = [], 0
    for low, high in sorted(ranges):
        if low > start:
            gaps.append((start, low - 1))
        start = max(start, high + 1)
    if start <= _LAST:
        gaps.append((start, _LAST))
    return tuple(gaps)


def _meet(left: _Tokens, right: _Tokens) -> bool:
    """Whether some string is in both languages: a walk over the product of the two automata."""
    seen = {(0, 0)}
    todo = [(0, 0)]
    while todo:
        i, j = todo.pop()
        if i == len(left) and j == len(right):
            return True
        for step in _steps(left, i, right, j):
            if step not in seen:
                seen.add(step)
                todo.append(step)
    return False


def _steps(left: _Tokens, i: int, right: _Tokens, j: int) -> list[tuple[int, int]]:
    a = left[i] if i < len(left) else _ANY
    b = right[j] if j < len(right) else _ANY
    more_left, more_right = i < len(left), j < len(right)
    steps = []
    if more_left and a is _STAR:
        steps.append((i + 1, j))
        if more_right and b is not _STAR:
            steps.append((i, j + 1))
    if more_right and b is _STAR:
        steps.append((i, j + 1))
        if more_left and a is not _STAR:
            steps.append((i + 1, j))
    if more_left and more_right and a is not None and b is not None and a.meets(b):
        steps.append((i + 1, j + 1))
    return steps
