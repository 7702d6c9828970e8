"""Follows up on the BMCs that sources show, such as the lease file of a DHCP server.

A BMC that is registered and got another address is followed there; one that nobody registered is asked once
(`metal_bmc.contact`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg
from metal_kit.backoff import pause
from metal_kit.clock import Clock
from metal_kit.db import Database
from metal_kit.errors import Problem
from metal_kit.issues import Issue
from metal_kit.logs import get_logger

from metal_bmc.contact import Contact
from metal_bmc.ownership import Ownership
from metal_bmc.sources.complaints import Complaints
from metal_bmc.sources.lease import Place
from metal_bmc.sources.source import Source
from metal_bmc.store import EndpointStore, SightingStore

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DiscoveryPlan:
    """How often sources are looked at, and how many BMCs are asked at once.

    Many of those in a lease file may be switched off, and each of them takes its deadline.
    """

    interval: timedelta = timedelta(seconds=30)
    at_once: int = 16


class Discovery:
    """`run` it as a task. All replicas look; each follows the MAC addresses whose bucket is its own."""

    def __init__(
        self,
        db: Database,
        contact: Contact,
        clock: Clock,
        ownership: Ownership,
        *,
        partition: str,
        sources: Sequence[Source],
        plan: DiscoveryPlan = DiscoveryPlan(),
    ) -> None:
        self._db, self._contact, self._clock, self._ownership = db, contact, clock, ownership
        self._partition, self._plan, self._sources = partition, plan, tuple(sources)
        self._endpoints, self._sightings = EndpointStore(), SightingStore()
        self._complaints = {source.name: Complaints(source.name) for source in sources}

    async def run(self, stopping: asyncio.Event) -> None:
        """Look at the sources until `stopping` is set, first at once."""
        while not stopping.is_set():
            try:
                await self.look(stopping)
            except (OSError, Problem, asyncpg.PostgresError) as error:
                log.warning("bmc.discovery.waits", cause=type(error).__name__)
            await pause(stopping, self._plan.interval)

    async def look(self, stopping: asyncio.Event) -> None:
        """Look at each source once and follow up on what it shows."""
        for source in self._sources:
            shown = await source.look(self._clock.now())
            self._complaints[source.name].hear(shown, self._clock.now())
            await self._follow_all(shown.places, stopping)

    async def issues(self, now: datetime) -> list[Issue]:
        """What the sources have trouble with."""
        return [issue for each in self._complaints.values() if (issue := each.issue()) is not None]

    async def _follow_all(self, places: Mapping[str, Place], stopping: asyncio.Event) -> None:
        waiting = iter(places.items())

        async def follow_some() -> None:
            for mac, place in waiting:
                if stopping.is_set():
                    return
                try:
                    await self._follow(mac, place)
                except (Problem, asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
                    log.warning("bmc.discovery.not_followed", mac=mac, cause=getattr(error, "reason", repr(error)))

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._plan.at_once, len(places))):
                group.create_task(follow_some())

    async def _follow(self, mac: str, place: Place) -> None:
        if not self._ownership.owns(mac):
            return
        async with self._db.connection() as connection:
            known = await self._endpoints.by_mac(connection, self._partition, mac)
            if known is not None and place.has(known.host):
                return
            sighting = await self._sightings.see(connection, self._partition, mac, place.host)
        if sighting.refused or not sighting.due:
            return
        if known is not None:
            await self._contact.follow(known, sighting)
        else:
            await self._contact.onboard(sighting)
