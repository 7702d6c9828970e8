"""Ports of a switch: names across operating systems, and the administrative state that is wished for.

Pure rules. Which machine hangs on a port is cabling's matter, what a port carries is the desired state's.
"""

from __future__ import annotations

import re
from collections.abc import Collection
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


class LinkState(Enum):
    """State of a port. Only `UP` and `DOWN` may be wanted; `UNKNOWN` is what nobody has reported yet."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


def line_of(name: str, os: SwitchOs) -> int | None:
    """Number of the first lane of port `name`, or None for a name that does not follow the system's scheme.

    SONiC writes the lane (`Ethernet4`); Cumulus the front-panel port (`swp2`, lane 4) and the part of a breakout
    (`swp2s1`, lane 5).
    """
    if os is SwitchOs.SONIC:
        match = _SONIC.fullmatch(name)
        return int(match[1]) if match else None
    if os is SwitchOs.CUMULUS:
        match = _CUMULUS.fullmatch(name)
        return (int(match[1]) - 1) * LANES_PER_PORT + int(match[2] or 0) if match else None
    return None


def name_of(line: int, os: SwitchOs, *, lines: Collection[int]) -> str:
    """Name of the port that starts at lane `line` on a system `os` whose ports start at `lines`.

    The other ports matter on Cumulus only: the first lane of a group of four is called `swpNs0` when the group is
    broken out, and `swpN` when it is whole.

    Raises ValueError for a negative lane or a system without a naming scheme.
    """
    if line < 0:
        raise ValueError(f"lane {line} is negative")
    if os is SwitchOs.SONIC:
        return f"Ethernet{line}"
    if os is SwitchOs.CUMULUS:
        group, part = divmod(line, LANES_PER_PORT)
        broken_out = any(other != line and other // LANES_PER_PORT == group for other in lines)
        return f"swp{group + 1}s{part}" if part or broken_out else f"swp{group + 1}"
    raise ValueError(f"no naming scheme is known for {os.value}")


def translate(name: str, source: SwitchOs, target: SwitchOs, *, names: Collection[str]) -> str | None:
    """Name on `target` of the port that is called `name` on a `source` switch with the ports `names`.

    None when the name, or one of the systems, follows no known scheme; the same system keeps the name as it is.
    """
    if source is target:
        return name
    line = line_of(name, source)
    if line is None or target is SwitchOs.OTHER:
        return None
    lines = [other for other in (line_of(each, source) for each in names) if other is not None]
    return name_of(line, target, lines=lines)


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
