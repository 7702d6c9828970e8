"""Staying in touch with the control plane: repeated calls, events, signs of life, and how patient all that is.

A call is repeated only when its failure may pass. Nothing here decides what the installer does next.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from metal_kit.logs import get_logger

from metal_hammer.hardware.base import Hardware
from metal_hammer.work import Event, Plane, PlaneError

log = get_logger(__name__)
T = TypeVar("T")
_LONGEST_TOLD = 300.0


@dataclass(frozen=True, slots=True)
class Rules:
    """What an installation may set differently; times in seconds."""

    neighbours_needed: int = 2
    """Interfaces that should hear a neighbour: two leaves in a rack, one or none in a test bed."""
    neighbours_within: float = 30.0
    alive_every: float = 60.0
    retry_first: float = 0.5
    retry_most: float = 15.0
    report_patience: float = 300.0
    """How long a report is tried before the machine goes on, or reboots, without it."""
    event_patience: float = 30.0
    """The same for an event, which is worth less."""
    crash_pause: float = 5.0
    """Least pause before a reboot after a failure; grows with each failure in a row that the caller counts."""
    idle_reboot: float = 12 * 3600.0
    """A machine that has waited this long, and up to as long again, starts anew. Never during work. What it waits with
    is a certificate that boot makes to last (metal_boot.certificates.LIFETIME): twice this and an installation."""

    def reboot_delay(self, crashes: int) -> float:
        """Seconds between a reported failure and the reboot, after so many failures in a row before this one: doubling,
        at most 128 times the pause, and up to half as much again so that a rack does not come back as one."""
        pause = self.crash_pause * 2 ** min(max(crashes, 0), 7)
        return random.uniform(pause, pause * 1.5)


class Contact:
    """The installer's line to the control plane."""

    def __init__(self, hardware: Hardware, plane: Plane, rules: Rules) -> None:
        self._hardware = hardware
        self._plane = plane
        self._rules = rules

    async def event(self, event: Event, message: str = "") -> None:
        """Report an event. It is worth waiting for, but not worth stopping for."""
        event_id = str(uuid.uuid4())
        try:
            await self.retry(
                event.value,
                lambda: self._plane.report_event(event, event_id, message),
                patience=self._rules.event_patience,
            )
        except PlaneError as error:
            log.warning("event.not_reported", event_type=event, error=str(error))

    async def alive(self, step: Callable[[], str]) -> None:
        """Send signs of life that carry the step, for ever."""
        while True:
            await asyncio.sleep(self._rules.alive_every)
            with suppress(PlaneError):
                await self._plane.report_event(Event.ALIVE, str(uuid.uuid4()), step())

    async def retry(self, what: str, call: Callable[[], Awaitable[T]], *, patience: float | None = None) -> T:
        """Repeat a call until it succeeds. Raises the last PlaneError when it is refused, or patience is at its end."""
        loop = asyncio.get_running_loop()
        until = loop.time() + (self._rules.report_patience if patience is None else patience)
        attempt = 0
        while True:
            self._hardware.checkpoint()
            try:
                return await call()
            except PlaneError as error:
                if not error.retry or loop.time() >= until:
                    raise
                log.info("plane.unreachable", what=what, reason=error.reason, attempt=attempt)
                told = error.after
            await self.pause(attempt, told)
            attempt += 1

    async def pause(self, attempt: int, told: float = 0.0) -> None:
        """Wait before the next attempt; longer each time, with jitter, and not shorter than the plane has `told` us."""
        most = min(self._rules.retry_most, self._rules.retry_first * 2 ** min(attempt, 10))
        at_least = min(told, _LONGEST_TOLD) * random.uniform(1, 1.25)
        await asyncio.sleep(max(random.uniform(most / 2, most), at_least))
