"""Columns of text, as `kubectl get` prints them: no frame, two spaces between columns, a header in capitals.

Lines are never folded or cut: an identifier that is broken in two cannot be copied, and programs read lines. Pure.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

GAP = "  "
EMPTY = "-"


def render(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as lines of text. An empty cell is `-`, so that no column can be taken for its neighbour."""
    lines = [list(headers), *([plain(cell) or EMPTY for cell in row] for row in rows)]
    widths = [max(width(line[column]) for line in lines) for column in range(len(headers))]
    return "\n".join(_aligned(line, widths) for line in lines)


def render_pairs(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values, one a line."""
    widths = [max((width(name) for name, _ in pairs), default=0), 0]
    return "\n".join(_aligned([name, plain(value)], widths) for name, value in pairs)


def plain(text: str) -> str:
    """Text that stays on its line and leaves the terminal alone.

    Descriptions and names are written by strangers: a control character among them could move the cursor, and one that
    turns the direction of writing could make one name look like another.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(char) if unicodedata.category(char) in {"Cc", "Cf", "Zl", "Zp"} else char for char in text)


def width(text: str) -> int:
    """Columns that the text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_columns(char) for char in text)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell + " " * (wanted - width(cell)) for cell, wanted in zip(cells, widths, strict=True))
    return GAP.join(padded).rstrip()


def _columns(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1


def _visible(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
