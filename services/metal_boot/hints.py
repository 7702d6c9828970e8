"""Waking work streams when an event says that something changed for a machine.

An event is a hint and nothing more: it is not stored, and one that is lost costs a poll. So this is a plain
subscription without a consumer on the server, and every replica hears everything.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from google.protobuf.message import DecodeError
from metal_kit.backoff import Backoff, pause
from metal_kit.bus import Bus, BusUnavailable
from metal_kit.logs import get_logger
from metalplane.allocation.v1 import events_pb2
from metalplane.common.v1 import event_pb2

log = get_logger(__name__)

MACHINE_CHANGED = "metalplane.inventory.machine.changed"
INSTALLATION_CHANGED = "metalplane.allocation.installation.changed"

_BACKOFF = Backoff(first=timedelta(seconds=0.2), most=timedelta(seconds=5))


class Hints:
    """Who waits for news of which machine."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    @contextmanager
    def of(self, machine_id: str) -> Iterator[asyncio.Event]:
        """An event that is set by each hint about the machine; whoever waits clears it."""
        woken = asyncio.Event()
        self._waiting[machine_id].add(woken)
        try:
            yield woken
        finally:
            waiting = self._waiting[machine_id]
            waiting.discard(woken)
            if not waiting:
                del self._waiting[machine_id]

    def wake(self, machine_id: str) -> None:
        """Something may have changed for this machine."""
        for woken in self._waiting.get(machine_id, ()):
            woken.set()

    async def hear(self, data: bytes) -> None:
        """Take in one message of the bus. What does not parse is not for us."""
        machine_id = machine_of(data)
        if machine_id:
            self.wake(machine_id)

    async def listen(self, bus: Bus, stopping: asyncio.Event) -> None:
        """Subscribe, and stay subscribed until the service stops."""
        for subject in (MACHINE_CHANGED, INSTALLATION_CHANGED):
            attempt = 0
            while not stopping.is_set():
                try:
                    await bus.listen(subject, self.hear)
                    break
                except BusUnavailable:
                    await pause(stopping, _BACKOFF.delay(attempt))
                    attempt += 1
        await stopping.wait()


def machine_of(data: bytes) -> str:
    """UUID of the machine that an event is about; empty when it is about none, or is no event."""
    try:
        event = event_pb2.Event.FromString(data)
        installation = events_pb2.InstallationChanged()
        if event.payload.Is(installation.DESCRIPTOR):
            event.payload.Unpack(installation)
            return installation.machine
    except DecodeError:
        return ""
    return event.entity_id if event.entity == "machine" else ""
