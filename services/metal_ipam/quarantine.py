"""Returns rested addresses and numbers to where they came from, and forgets old request ids and owners. Any number of
replicas may do it at once; the row locks of prefixes and pools order them."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import asyncpg
from metal_kit.backoff import pause
from metal_kit.db import Database, is_outage
from metal_kit.errors import Problem
from metal_kit.logs import get_logger

from metal_ipam.store import addresses, numbers, owners

log = get_logger(__name__)

EVERY = timedelta(seconds=5)
BATCH = 500


async def sweep(db: Database) -> int:
    """One round, in batches of short transactions; how many addresses and numbers were returned."""
    total = 0
    while True:
        async with db.transaction(purpose="end quarantine") as connection:
            done = await addresses.end_quarantine(connection, BATCH)
        total += done
        if done < BATCH:
            break
    async with db.transaction(purpose="end quarantine of numbers") as connection:
        total += await numbers.end_quarantine(connection, BATCH)
    async with db.transaction(purpose="forget old requests and owners") as connection:
        await addresses.forget_requests(connection, BATCH)
        await owners.forget(connection, BATCH)
    return total


async def run(db: Database, stopping: asyncio.Event, every: timedelta = EVERY) -> None:
    """Sweep until `stopping` is set; an outage of the database is waited out."""
    while not stopping.is_set():
        try:
            returned = await sweep(db)
            if returned:
                log.info("quarantine.ended", returned=returned)
        except (Problem, asyncpg.PostgresError, OSError, TimeoutError) as error:
            if not is_outage(error):
                log.exception("quarantine.failed")
        await pause(stopping, every)
