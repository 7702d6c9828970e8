"""In which order settings reach the leaves of a rack: one after the other, never both at once.

Pure rule. A machine hangs on two leaves so that one of them may fail. A change that a leaf does not survive must not
reach the other one: the next leaf gets it when the one before has applied it and said so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a leaf is: `version` of the settings that reached it, whether it has applied all that is wanted of it
    (`settled`), and whether its stream is open."""

    switch_id: str
    version: int
    settled: bool
    connected: bool


def waits_for(rack: Sequence[Progress], newest: int) -> tuple[str, ...]:
    """Leaves of a rack that have got the newest settings and have not applied them yet."""
    return tuple(leaf.switch_id for leaf in rack if leaf.version == newest and not leaf.settled)


def next_leaf(rack: Sequence[Progress], newest: int) -> str | None:
    """The leaf of a rack that gets the newest settings now; None when it is nobody's turn.

    Only leaves that are there get them: one that comes back while another one applies them would go down with it. One
    that is in trouble goes first, for it has least to lose.
    """
    if waits_for(rack, newest):
        return None
    behind = [leaf for leaf in rack if leaf.version != newest and leaf.connected]
    return min(behind, key=lambda leaf: (leaf.settled, leaf.switch_id)).switch_id if behind else None
