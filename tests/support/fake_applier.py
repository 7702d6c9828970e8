"""An applier that does what a test scripts, and what its caller would tell the plane."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from metal_core.desired import Desired
from metal_core.known_good import KnownGood
from metal_core.outcome import Outcome
from metal_core.reports import Reports


class FakeApplier:
    """Applies whatever it is told, with outcomes that a test scripts."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.outcomes: list[Outcome] = []
        self.called = asyncio.Event()
        self.on_call: Callable[[], None] = lambda: None

    async def apply(self, desired: Desired) -> Outcome:
        return self._call("apply", desired)

    async def restore(self, good: KnownGood) -> Outcome:
        return self._call("restore", good.desired)

    def _call(self, what: str, desired: Desired) -> Outcome:
        self.calls.append((what, desired.generation))
        self.called.set()
        self.on_call()
        return self.outcomes.pop(0) if self.outcomes else Outcome(True)


def report(reports: Reports) -> Any:
    """The apply report that waits to be sent."""
    reports.reconnected()
    found = [request.apply_report for request in reports.due() if request.WhichOneof("message") == "apply_report"]
    return found[0] if found else None
