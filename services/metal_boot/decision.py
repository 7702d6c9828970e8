"""What a machine boots. Pure: one table, and the two rules for when it cannot be asked for.

Whatever is answered here permits nothing: the installer touches disks on a grant only (`orders.py`). So the worst that
a wrong answer does is to start an installer that waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from metal_boot.situation import INSTALLED, Known, Situation, Wanted


class Answer(StrEnum):
    """What the firmware is told to start."""

    DISCOVER = "discover"
    """The installer, for a machine that nobody knows: it registers and gets no rights by that."""
    INSTALLER = "installer"
    LOCAL_DISK = "local-disk"


@dataclass(frozen=True, slots=True)
class Decision:
    """An answer, why, and whether somebody should look: the machine's boot order is not what it should be."""

    answer: Answer
    reason: str
    unexpected: bool = False


HELD: dict[Wanted, Answer] = {
    Wanted.NOTHING: Answer.INSTALLER,  # only inventory still says that it is bound: it is between two owners
    Wanted.PREPARING: Answer.INSTALLER,
    Wanted.INSTALL: Answer.INSTALLER,
    Wanted.INSTALLED: Answer.LOCAL_DISK,
    Wanted.START: Answer.LOCAL_DISK,
    Wanted.RUNNING: Answer.LOCAL_DISK,
    Wanted.RECLAIMING: Answer.INSTALLER,
}
"""What a machine that is held boots, by what its allocation wants. Every state has to be here."""


def decide(situation: Situation) -> Decision:
    """What a machine boots while the control plane can be asked."""
    if situation.wanted in INSTALLED:
        return Decision(Answer.LOCAL_DISK, f"allocated: {situation.wanted.value}", unexpected=True)
    if situation.locked:
        return Decision(Answer.LOCAL_DISK, "locked by an operator", unexpected=True)
    if situation.held:
        return Decision(HELD[situation.wanted], f"allocated: {situation.wanted.value}")
    if situation.known is Known.UNKNOWN:
        return Decision(Answer.DISCOVER, "unknown machine")
    return Decision(Answer.INSTALLER, "free")


def decide_without_plane(last: Decision | None) -> Decision:
    """What a machine boots while the control plane cannot be asked: what it was told last, else its local disk.

    The local disk is the answer that cannot harm: a free machine finds nothing there and asks again.
    """
    if last is None:
        return Decision(Answer.LOCAL_DISK, "the control plane cannot be reached and nothing is remembered")
    return Decision(last.answer, f"the control plane cannot be reached; last time: {last.reason}", last.unexpected)
