"""The wall clock, in a shape that tests can replace. All times in metalplane are aware and in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


def now() -> datetime:
    """The present time, aware, UTC."""
    return datetime.now(UTC)


class Clock:
    """The real clock. Code that decides by time takes one, so that a test can hand in a ManualClock."""

    def now(self) -> datetime:
        """The present time, aware, UTC."""
        return datetime.now(UTC)


class ManualClock(Clock):
    """A clock that stands still until it is moved."""

    def __init__(self, start: datetime | None = None) -> None:
        self._now = start or datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        """The time that was last set."""
        return self._now

    def advance(self, by: timedelta) -> None:
        """Move the clock on by `by`."""
        self._now += by
