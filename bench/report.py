"""How benchmarks report: one line a question for people, a JSON array for programs.

Every benchmark is `bench/NAME.py [--json FILE] [--quick]` and answers one or a few questions. `holds` is null for a
figure without a goal. Not a statistics package: percentiles are nearest-rank over all samples.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

COMPARISONS = {"<=": lambda value, limit: value <= limit, ">=": lambda value, limit: value >= limit,
               "<": lambda value, limit: value < limit, "=": lambda value, limit: value == limit}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """One figure. `goal` is a comparison with a number, such as `<= 50`; empty when there is none.

    Raises ValueError for another goal. A value that is no number misses every goal.
    """

    question: str
    value: float
    unit: str
    goal: str = ""
    p50: float | None = None
    p99: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.goal:
            self._goal()

    @property
    def holds(self) -> bool | None:
        """Whether the value meets the goal; None without a goal."""
        if not self.goal:
            return None
        sign, limit = self._goal()
        return bool(COMPARISONS[sign](self.value, limit))

    def _goal(self) -> tuple[str, float]:
        sign, _, limit = self.goal.partition(" ")
        try:
            number = float(limit)
        except ValueError:
            number = math.nan
        if sign not in COMPARISONS or math.isnan(number):
            raise ValueError(f"the goal {self.goal!r} is not one of {' '.join(COMPARISONS)}, a space and a number")
        return sign, number

    def row(self) -> dict[str, object]:
        """The answer for programs: JSON knows no NaN and no infinity, these become null."""
        fields = asdict(self) | {"holds": self.holds}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in fields.items()
        }

    def line(self) -> str:
        """The answer for people."""
        verdict = {None: "    ", True: "ok  ", False: "MISS"}[self.holds]
        text = f"{verdict} {self.question}: {self.value:,.4g} {self.unit}"
        if self.goal:
            text += f" (goal {self.goal})"
        if self.p50 is not None and self.p99 is not None:
            text += f" · p50 {self.p50:,.4g} · p99 {self.p99:,.4g}"
        return f"{text} · {self.note}" if self.note else text


def percentile(samples: Sequence[float], share: float) -> float:
    """Nearest-rank percentile; `share` from 0 to 1. Raises ValueError for another share, or without samples."""
    if not samples:
        raise ValueError("there are no samples")
    if not 0 <= share <= 1:
        raise ValueError(f"a share is from 0 to 1, not {share}")
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def arguments(description: str, own: Sequence[str] = ()) -> argparse.Namespace:
    """The two options that every benchmark has: `json` (a path or None) and `quick`; its `own` take a text."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="write the answers there as a JSON array")
    parser.add_argument("--quick", action="store_true", help="a small run that only shows that the benchmark works")
    for name in own:
        parser.add_argument(name, help="see the head of the file")
    return parser.parse_args()


def finish(answers: Sequence[Answer], options: argparse.Namespace) -> int:
    """Print and write the answers; the exit code is 1 when a goal is missed in a full run.

    A quick run measures too little to blame anybody.
    """
    for answer in answers:
        print(answer.line())
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        rows = [answer.row() for answer in answers]
        options.json.write_text(json.dumps(rows, indent=2, allow_nan=False) + "\n")
    missed = any(answer.holds is False for answer in answers)
    if missed:
        print(f"a goal was missed on {platform.machine()}, CPython {platform.python_version()}", file=sys.stderr)
    return int(missed and not options.quick)
