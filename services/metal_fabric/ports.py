"""Ports of a switch: names across operating systems, and the administrative state that is wished for.

Pure rules. Which machine hangs on a port is cabling's matter, what a port carries is the desired state's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from enum import Enum

# Four lanes make one front-panel port: SONiC numbers the lanes, Cumulus the front-panel ports.
LANES_PER_PORT = 4

# Beyond any lane that a name can spell.
_AFTER_ALL_LINES = 1 << 20

_SONIC = re.compile(r"Ethernet(0|[1-9][0-9]{0,4})")
_CUMULUS = re.compile(r"swp([1-9][0-9]{0,4})(?:s([0-3]))?")


class SwitchOs(Enum):
    """Network operating system of a switch, as far as it changes the names of ports."""

    SONIC = "sonic"
    CUMULUS = "cumulus"
    OTHER = "other"


class Fec(Enum):
    """Forward error correction of a port, as SONiC's PORT.fec names it; `UNSET` leaves it alone."""

    UNSET = ""
    NONE = "none"
    RS = "rs"
    FC = "fc"
    AUTO = "auto"


class LinkState(Enum):
    """State of a port. Only `UP` and `DOWN` may be wanted; `UNKNOWN` is what nobody has reported yet."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


def line_of(name: str, os: SwitchOs) -> int | None:
    """Number of the first lane of port `name`, or None for a name that does not follow the system's scheme.

    SONiC writes the lane (`Ethernet4`); Cumulus the front-panel port (`swp2`, lane 4) and the part of a breakout
    (`swp2s1`, lane 5 of a port in four parts; of one in two parts only `lanes_of` knows better).
    """
    if os is SwitchOs.SONIC:
        match = _SONIC.fullmatch(name)
        return int(match[1]) if match else None
    if os is SwitchOs.CUMULUS:
        match = _CUMULUS.fullmatch(name)
        return (int(match[1]) - 1) * LANES_PER_PORT + int(match[2] or 0) if match else None
    return None


def lanes_of(names: Iterable[str], os: SwitchOs) -> dict[str, int]:
    """First lanes of all ports of a switch, by name; names outside the system's scheme are left out.

    A port that Cumulus has broken out in two (`swp2s0`, `swp2s1`) has two lanes for each part.
    """
    lines = {name: line for name in names if (line := line_of(name, os)) is not None}
    if os is not SwitchOs.CUMULUS:
        return lines
    groups = _groups(lines.values())
    halves = {group for group, offsets in groups.items() if offsets == {0, 1}}
    return {
        name: line + line % LANES_PER_PORT if line // LANES_PER_PORT in halves else line for name, line in lines.items()
    }


def names_of(lanes: Iterable[int], os: SwitchOs) -> dict[int, str]:
    """Names that a system gives to the ports that start at these lanes of a switch, by lane.

    Raises ValueError for a negative lane or a system without a naming scheme.
    """
    every = sorted(set(lanes))
    if every and every[0] < 0:
        raise ValueError(f"lane {every[0]} is negative")
    if os is SwitchOs.SONIC:
        return {lane: f"Ethernet{lane}" for lane in every}
    if os is SwitchOs.CUMULUS:
        groups = _groups(every)
        return {lane: _cumulus(*divmod(lane, LANES_PER_PORT), groups[lane // LANES_PER_PORT]) for lane in every}
    raise ValueError(f"no naming scheme is known for {os.value}")


def translate(name: str, source: SwitchOs, target: SwitchOs, *, names: Collection[str]) -> str | None:
    """Name on `target` of the port that is called `name` on a `source` switch with the ports `names`.

    None when the name, or one of the systems, follows no known scheme; the same system keeps the name as it is.
    """
    if source is target:
        return name
    lanes = lanes_of({name, *names}, source)
    if name not in lanes or target is SwitchOs.OTHER:
        return None
    return names_of(lanes.values(), target)[lanes[name]]


def _groups(lanes: Iterable[int]) -> dict[int, set[int]]:
    """Which lanes within each front-panel port a port starts at, by front-panel port from 0."""
    groups: dict[int, set[int]] = {}
    for lane in lanes:
        groups.setdefault(lane // LANES_PER_PORT, set()).add(lane % LANES_PER_PORT)
    return groups


def _cumulus(group: int, offset: int, offsets: Collection[int]) -> str:
    if offsets == {0}:
        return f"swp{group + 1}"
    return f"swp{group + 1}s{offset // 2 if offsets == {0, 2} else offset}"


def sort_key(name: str, os: SwitchOs) -> tuple[int, str]:
    """Order of ports for people: by lane, names outside the scheme last and by name."""
    line = line_of(name, os)
    return (_AFTER_ALL_LINES if line is None else line, name)


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
