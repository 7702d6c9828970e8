"""What `vtysh -C` has accepted, line by line, so that it is asked about nothing twice.

It looks at a line and at the context that the line is in, and at nothing else. So a text of which each line was seen in
its context is accepted, be it another state of the same leaf or a delta made of its lines. Lines that differ in numbers
or prefixes alone are the same command: that those are in their ranges is known before (`checks`), or FRR has printed
them itself. So another tenant costs no process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_network

# Lines that are remembered; a leaf with 200 tenants has some 10,000.
_MOST = 100_000
_SILENT = ("!", "end")
_NUMBER = re.compile(r"\d+")
_CLOSINGS = frozenset({"exit", "exit-vrf", "exit-address-family"})


class Checked:
    """Accepted lines."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, ...]] = set()

    def unseen(self, text: str) -> str:
        """The parts of `text` in which a line is new: whole contexts, in their order; empty when there is none."""
        return "".join(
            "".join(f"{line}\n" for line in lines) for lines in _units(text) if not self._seen.issuperset(_keys(lines))
        )

    def accept(self, text: str) -> None:
        """`text` has passed."""
        if len(self._seen) > _MOST:
            self._seen.clear()
        self._seen.update(key for lines in _units(text) for key in _keys(lines))


def _units(text: str) -> Iterator[list[str]]:
    """Each line outside of contexts, with the lines inside of it and what closes it."""
    unit: list[str] = []
    for line in text.splitlines():
        if not line or line in _SILENT:
            continue
        if unit and not line.startswith(" ") and line not in _CLOSINGS:
            yield unit
            unit = []
        unit.append(line)
    if unit:
        yield unit


def _keys(lines: list[str]) -> Iterator[tuple[str, ...]]:
    """Where each line is, and the line."""
    family = ""
    for number, raw in enumerate(lines):
        line = raw.strip()
        if line == "!" or line in _CLOSINGS:
            family = ""
            continue
        yield (_kind(line),) if number == 0 else (_kind(lines[0]), family, _kind(line))
        if line.startswith("address-family "):
            family = line


def _kind(line: str) -> str:
    """The line with `#` for each number and the family for each prefix."""
    return " ".join(_family(word) if "/" in word else _NUMBER.sub("#", word) for word in line.split())


def _family(word: str) -> str:
    try:
        return f"prefix of IPv{ip_network(word).version}"
    except ValueError:
        # The name of a port may have a slash.
        return _NUMBER.sub("#", word)
