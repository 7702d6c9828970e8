"""Waiting times between attempts: exponential, with full jitter, capped.

Full jitter (uniform between nothing and the bound) because what failed together would otherwise come back together.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from datetime import timedelta

_LONGEST_TOLD = timedelta(minutes=5)
_SPREAD = 1.25
_MOST_DOUBLINGS = 62  # beyond it the bound leaves what a float can count exactly; the cap is long reached


@dataclass(frozen=True)
class Backoff:
    """The n-th delay (n from 0) is uniform in (0, min(most, first * 2**n)], but never under `least`."""

    first: timedelta
    most: timedelta
    least: timedelta = timedelta(milliseconds=10)

    def bound(self, attempt: int) -> timedelta:
        """The longest the delay after failure number `attempt` (from 0) can be."""
        seconds = self.first.total_seconds() * float(2 ** min(max(attempt, 0), _MOST_DOUBLINGS))
        return timedelta(seconds=min(self.most.total_seconds(), seconds))

    def delay(self, attempt: int, told: timedelta | None = None) -> timedelta:
        """A random delay after failure number `attempt` (from 0).

        `told` is what the peer asked for (`Problem.retry_after`): never less than that, nor far more, and not for all
        who were told the same at the same moment. It is believed for five minutes.
        """
        own = max(self.least, self.bound(attempt) * random.random())
        if told is None:
            return own
        return max(own, min(told, _LONGEST_TOLD) * random.uniform(1, _SPREAD))


async def pause(stopping: asyncio.Event, span: timedelta) -> None:
    """Wait for `span`, or shorter when `stopping` is set."""
    try:
        async with asyncio.timeout(span.total_seconds()):
            await stopping.wait()
    except TimeoutError:
        return
