"""How long what is written in batches waits for company.

A batch costs much by itself (a round trip, a commit, a flush) and little for each that is in it. Whoever is alone must
not wait. Where many come at once, the next batch waits until as many are there as the last one had, but never longer
than its patience: batches grow by what comes while one is being written, and shrink as soon as fewer come.
"""

from __future__ import annotations

import asyncio


class Company:
    """Says when to go. Call `arrived` for each that comes, `wait` before a batch is taken, `left` with how many are in
    it, and `done` when it is written."""

    def __init__(self, patience: float) -> None:
        """`patience`: seconds that a batch waits at most, which each that is in it may take longer for it."""
        self._patience = patience
        self._here = 0
        self._expected = 1
        self._last = 0.0
        self._enough: set[asyncio.Future[None]] = set()

    def arrived(self) -> None:
        """One more wants to be in a batch."""
        self._here += 1
        if self._here >= self._expected:
            for each in self._enough:
                _let_go(each)

    async def wait(self) -> None:
        """Return when enough are here, or the patience is at its end."""
        loop = asyncio.get_running_loop()
        if self._here >= self._expected or loop.time() - self._last > self._patience:
            return
        enough: asyncio.Future[None] = loop.create_future()
        self._enough.add(enough)
        timer = loop.call_later(self._patience, _let_go, enough)
        try:
            await enough
        finally:
            timer.cancel()
            self._enough.discard(enough)

    def left(self, count: int) -> None:
        """A batch of so many goes."""
        self._here = max(0, self._here - count)
        if count:
            self._expected = count

    def done(self) -> None:
        """A batch is written. Who comes long after that comes alone."""
        self._last = asyncio.get_running_loop().time()


def _let_go(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
