"""Ports of a switch: names across operating systems, and the administrative state that is wished for.

Pure rules. Which machine hangs on a port is cabling's matter, what a port carries is the desired state's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from math import gcd
from typing import NamedTuple

# Lanes of a front-panel port: four, or eight (QSFP-DD, OSFP). SONiC numbers the lanes, Cumulus the front-panel ports.
LANES_PER_PORT = 4
LANES_PER_WIDE_PORT = 8

# Beyond any lane that a name can spell.
_AFTER_ALL_LINES = 1 << 20

_SONIC = re.compile(r"Ethernet(0|[1-9][0-9]{0,4})")
_CUMULUS = re.compile(r"swp([1-9][0-9]{0,4})(?:s([0-7]))?")


class SwitchOs(Enum):
    """Network operating system of a switch, as far as it changes the names of ports."""

    SONIC = "sonic"
    CUMULUS = "cumulus"
    OTHER = "other"

    __hash__ = object.__hash__


class Fec(Enum):
    """Forward error correction of a port, as SONiC's PORT.fec names it; `UNSET` leaves it alone."""

    UNSET = ""
    NONE = "none"
    RS = "rs"
    FC = "fc"
    AUTO = "auto"

    __hash__ = object.__hash__


class LinkState(Enum):
    """State of a port. Only `UP` and `DOWN` may be wanted; `UNKNOWN` is what nobody has reported yet."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"

    # Enum's own is a call in Python, and states are computed for tens of thousands of ports. There is one of each.
    __hash__ = object.__hash__


class Place(NamedTuple):
    """Where a port is on the front of a switch, whatever it is called: the front-panel port, from 0, and which part of
    how many parts it is; part 0 of 1 is the whole."""

    port: int
    part: int = 0
    parts: int = 1


def counterparts(names: Collection[str], source: SwitchOs, others: Collection[str], target: SwitchOs) -> dict[str, str]:
    """Names of the ports among `others`, all of a `target` switch, that have the places of the ports among `names`, all
    of a `source` switch, by the latter.

    SONiC writes a port's first lane (`Ethernet4`), Cumulus the front-panel port and the part of a breakout (`swp2s1`).
    How many lanes a front-panel port of the SONiC box has is told from which number makes more ports agree; a port
    about which two numbers that do equally well disagree is left out. So is one that the other box does not have
    or has not broken out alike, and whose name, or whose system, follows no known scheme. The same system keeps names.
    """
    if source is target:
        return {name: name for name in names}
    found = [
        _agreeing(_places_of(names, source, lanes), _places_of(others, target, lanes))
        for lanes in (LANES_PER_PORT, LANES_PER_WIDE_PORT)
    ]
    best = max(map(len, found))
    first, *rest = (each for each in found if len(each) == best)
    return {name: other for name, other in first.items() if all(each.get(name) == other for each in rest)}


def _agreeing(places: Mapping[str, Place], others: Mapping[str, Place]) -> dict[str, str]:
    there = {place: name for name, place in others.items()}
    return {name: there[place] for name, place in places.items() if place in there}


def _places_of(names: Iterable[str], os: SwitchOs, lanes_per_port: int) -> dict[str, Place]:
    """Places of ports, by name; names outside the system's scheme are left out."""
    if os is SwitchOs.SONIC:
        lanes = {name: int(match[1]) for name in names if (match := _SONIC.fullmatch(name))}
        return _places_by_lane(lanes, lanes_per_port)
    if os is SwitchOs.CUMULUS:
        return _places_by_number({name: match for name in names if (match := _CUMULUS.fullmatch(name))})
    return {}


def _places_by_lane(lanes: Mapping[str, int], lanes_per_port: int) -> dict[str, Place]:
    groups: dict[int, set[int]] = {}
    for lane in lanes.values():
        groups.setdefault(lane // lanes_per_port, set()).add(lane % lanes_per_port)
    places = {}
    for name, lane in lanes.items():
        port, offset = divmod(lane, lanes_per_port)
        # Lanes of the smallest part; all of them where the port begins with its first lane and nothing else does.
        part = gcd(lanes_per_port, *groups[port])
        places[name] = Place(port, offset // part, lanes_per_port // part)
    return places


def _places_by_number(matches: Mapping[str, re.Match[str]]) -> dict[str, Place]:
    last: dict[str, int] = {}
    for match in matches.values():
        last[match[1]] = max(last.get(match[1], 0), int(match[2] or 0))
    places = {}
    for name, match in matches.items():
        parts = next(count for count in (2, 4, 8) if last[match[1]] < count) if match[2] else 1
        places[name] = Place(int(match[1]) - 1, int(match[2] or 0), parts)
    return places


@lru_cache(maxsize=1 << 12)
def sort_key(name: str, os: SwitchOs) -> tuple[int, str]:
    """Order of ports for people: by number and part, names outside the scheme last and by name."""
    if os is SwitchOs.SONIC and (match := _SONIC.fullmatch(name)):
        return (int(match[1]), name)
    if os is SwitchOs.CUMULUS and (match := _CUMULUS.fullmatch(name)):
        return (int(match[1]) * LANES_PER_WIDE_PORT + int(match[2] or 0), name)
    return (_AFTER_ALL_LINES, name)


@dataclass(frozen=True)
class AdminState:
    """What an operator last asked of a port (`wish`, None = nothing) and what its leaf last reported (`actual`).

    metal-stack forgets a wish once it came true, so a port that was switched off may come back up with the leaf's
    next reboot. Here the wish stays part of the desired state; only whether it is `outstanding` changes.
    """

    wish: LinkState | None = None
    actual: LinkState = LinkState.UNKNOWN

    def reported(self, actual: LinkState) -> AdminState:
        """The state after the leaf reported `actual`."""
        return replace(self, actual=actual)

    def wanted(self, state: LinkState) -> AdminState:
        """The state after an operator asked for `state`. Raises ValueError for anything but `UP` and `DOWN`."""
        if state is LinkState.UNKNOWN:
            raise ValueError("only up and down can be wanted of a port")
        return replace(self, wish=state)

    @property
    def outstanding(self) -> LinkState | None:
        """The wish while it has not come true, else None."""
        return None if self.wish is self.actual else self.wish
