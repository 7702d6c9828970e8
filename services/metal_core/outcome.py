"""How a run of the applier ended, and what the reasons of a failure say about the state that was to be applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from metal_core.compare import Differences


class Failure(StrEnum):
    """Whose fault a failure is, which decides whether the same state is worth another attempt."""

    NONE = ""
    # Redis, FRR or the disk did not answer before anything was touched. It says nothing about the state.
    OUTAGE = "outage"
    # The leaf is not such that the state could be applied to it. Nothing was touched; somebody may change the leaf.
    OBSTACLE = "obstacle"
    # The state contradicts itself, or FRR does not take its configuration. Nothing was touched; it stays so.
    INVALID = "invalid"
    # It was tried, did not work, and was taken back as far as that was possible.
    FAILED = "failed"


class Standing(NamedTuple):
    """What a leaf has: the generation that it was last brought to, 0 for none, and the hash of that state."""

    generation: int
    digest: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: rows written or deleted, lines given to FRR, seconds by phase; in `found` what differed before.

    Of a failed run: the `phase` that it failed in, what differed then, and in `quarantined` why it is not tried again
    (empty: it is). `is_at` is what the leaf has after the run; None where that is not known. `taken_back` is false
    when a failed run has left the leaf neither here nor there. The applier leaves `quarantined` and `is_at` to whoever
    knows what was before.
    """

    applied: bool
    error: str = ""
    notes: tuple[str, ...] = ()
    changed: int = 0
    frr_commands: int = 0
    durations: Mapping[str, float] = field(default_factory=dict)
    phase: str = ""
    differences: Differences = field(default_factory=Differences)
    quarantined: str = ""
    is_at: Standing | None = None
    failure: Failure = Failure.NONE
    taken_back: bool = True
    found: Differences = field(default_factory=Differences)

    @property
    def touched(self) -> bool:
        """Whether the run has changed anything to reach the state."""
        return self.changed > 0 or self.frr_commands > 0
