"""One reader of a console: where it is in what was printed, and what else it has to be told.

It holds no copy of what was printed: a reader that is slow falls behind in the ring, and is told how much it lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum

from metal_kit.errors import Problem

from metal_bmc.console.ring import Ring

_MOST_AT_ONCE = 1 << 14
_MOST_NEWS = 64


class Event(StrEnum):
    """What happens to a console, beside that it prints."""

    OPENED = "opened"
    LOST = "lost"
    REOPENED = "reopened"
    WRITER_CHANGED = "writer changed"
    SKIPPED = "skipped"
    GAP = "gap"


@dataclass(frozen=True, slots=True)
class News:
    """An event after all that was printed before `position`. `skipped` counts bytes that this reader lost."""

    event: Event
    position: int
    writer: str = ""
    skipped: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class Printed:
    """What the machine printed; `position` is behind its last byte."""

    data: bytes
    position: int


class Attachment:
    """Iterate over it. `caller` is who reads; the iteration ends when it is detached, or with the Problem of `end`."""

    def __init__(self, ring: Ring, *, caller: str, position: int) -> None:
        self.caller, self.position = caller, position
        self._ring = ring
        self._news: deque[News] = deque(maxlen=_MOST_NEWS)
        self._wake = asyncio.Event()
        self._ended = False
        self._problem: Problem | None = None

    def wake(self) -> None:
        """Something was printed."""
        self._wake.set()

    def tell(self, news: News) -> None:
        """Something happened. Of what nobody takes the oldest is forgotten."""
        self._news.append(news)
        self._wake.set()

    def end(self, problem: Problem | None = None) -> None:
        """Nothing more comes, after what is there already; a second call changes nothing."""
        if not self._ended:
            self._ended, self._problem = True, problem
            self._wake.set()

    async def __aiter__(self) -> AsyncIterator[Printed | News]:
        """What was printed and what happened, in their order. Raises the Problem that it was ended with."""
        while True:
            found = self._next()
            if found is not None:
                yield found
            elif self._ended:
                if self._problem is not None:
                    raise self._problem
                return
            else:
                self._wake.clear()
                await self._wake.wait()

    def _next(self) -> Printed | News | None:
        ring, news = self._ring, self._news
        if news and news[0].position <= self.position:
            return news.popleft()
        if self.position < ring.start:
            skipped, self.position = ring.start - self.position, ring.start
            return News(Event.SKIPPED, self.position, skipped=skipped)
        until = min(news[0].position, ring.end) if news else ring.end
        data = ring.read(self.position, min(until - self.position, _MOST_AT_ONCE))
        self.position += len(data)
        return Printed(data, self.position) if data else None
