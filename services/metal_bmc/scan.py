"""Looks for BMCs in ranges of addresses that somebody listed: those that answer a ping are asked, nobody else.

Addresses of registered BMCs are left out, and so are those of BMCs that a lease file showed: those are asked there.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import asyncpg
from metal_kit.backoff import pause
from metal_kit.db import Database
from metal_kit.errors import Problem
from metal_kit.logs import get_logger

from metal_bmc.contact import Contact
from metal_bmc.ownership import Ownership
from metal_bmc.sources.lease import Address
from metal_bmc.sources.presence import who_answers
from metal_bmc.store import SightingStore

log = get_logger(__name__)

_CHUNK = 256


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """Which addresses, on which port, how many pings a second at most, and how often."""

    addresses: Sequence[Address]
    port: int
    rate: float = 50.0
    interval: timedelta = timedelta(hours=1)


class Scan:
    """`run` it as a task. Each replica pings the addresses whose bucket is its own."""

    def __init__(self, db: Database, contact: Contact, ownership: Ownership, *, partition: str, plan: ScanPlan) -> None:
        self._db, self._contact, self._ownership = db, contact, ownership
        self._partition, self._plan = partition, plan
        self._sightings = SightingStore()

    async def run(self, stopping: asyncio.Event) -> None:
        """Look through the ranges until `stopping` is set, first at once."""
        while not stopping.is_set():
            try:
                await self.look(stopping)
            except (OSError, Problem, asyncpg.PostgresError) as error:
                log.warning("bmc.scan.waits", cause=repr(error))
            await pause(stopping, self._plan.interval * random.uniform(0.8, 1.2))

    async def look(self, stopping: asyncio.Event) -> None:
        """Look through all ranges once."""
        for version in (4, 6):
            # Not one rack after the other: its switch would have all of our pings at once.
            addresses = [each for each in self._plan.addresses if each.version == version]
            random.shuffle(addresses)
            for start in range(0, len(addresses), _CHUNK):
                if stopping.is_set():
                    return
                await self._look_at(addresses[start : start + _CHUNK], stopping)

    async def _look_at(self, addresses: Sequence[Address], stopping: asyncio.Event) -> None:
        async with self._db.connection() as connection:
            known = await self._sightings.known_hosts(
                connection, self._partition, [str(each) for each in addresses], self._plan.port
            )
        unknown = [each for each in addresses if str(each) not in known and self._ownership.owns(str(each))]
        hosts = await who_answers(unknown, port=self._plan.port, rate=self._plan.rate, stopping=stopping)
        for host in hosts:
            if stopping.is_set():
                return
            try:
                async with self._db.connection() as connection:
                    sighting = await self._sightings.see(connection, self._partition, host, host)
                if sighting.due and not sighting.refused:
                    await self._contact.onboard(sighting)
            except (Problem, asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
                log.warning("bmc.scan.not_followed", host=host, cause=getattr(error, "reason", repr(error)))
