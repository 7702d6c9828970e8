"""Housekeeping: passwords move to the ring's newest key, and commands that ended long ago are forgotten."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import asyncpg
from metal_kit.backoff import pause
from metal_kit.clock import Clock
from metal_kit.db import Connection, Database
from metal_kit.errors import Problem
from metal_kit.logs import get_logger

from metal_bmc.credentials import CredentialError, KeyRing
from metal_bmc.store import CommandStore, EndpointStore

log = get_logger(__name__)

_EVERY = timedelta(hours=1)
_BATCH = 500


class Upkeep:
    """`run` it as a task in every replica; what one has done, another finds done."""

    def __init__(self, db: Database, ring: KeyRing, clock: Clock, *, keep: timedelta) -> None:
        self._db, self._ring, self._clock, self._keep = db, ring, clock, keep
        self._endpoints, self._commands = EndpointStore(), CommandStore()

    async def run(self, stopping: asyncio.Event) -> None:
        """Now and every hour, until `stopping` is set."""
        while not stopping.is_set():
            try:
                await self.reseal()
                await self.forget()
            except (Problem, asyncpg.PostgresError, OSError) as error:
                log.warning("bmc.upkeep.waits", cause=type(error).__name__)
            await pause(stopping, _EVERY)

    async def reseal(self) -> int:
        """Seal every password with the newest key; returns how many changed. An old key can be removed after it."""
        moved, after = 0, None
        while True:
            async with self._db.connection() as connection:
                page = await self._endpoints.page(connection, partition="", after=after, limit=_BATCH)
                for endpoint in page:
                    if endpoint.sealed is not None:
                        moved += await self._reseal_one(connection, endpoint.machine, endpoint.sealed)
            if len(page) < _BATCH:
                break
            after = page[-1].machine
        if moved:
            log.info("bmc.upkeep.resealed", count=moved, key_id=self._ring.current)
        return moved

    async def forget(self) -> int:
        """Remove commands that ended longer ago than they are kept; returns how many."""
        gone = 0
        while True:
            async with self._db.transaction(purpose="forget old commands") as connection:
                count = await self._commands.forget_ended(connection, self._clock.now() - self._keep, most=_BATCH)
            gone += count
            if count < _BATCH:
                return gone

    async def _reseal_one(self, connection: Connection, machine: str, sealed: bytes) -> bool:
        try:
            if self._ring.key_of(sealed) == self._ring.current:
                return False
            new = self._ring.seal(machine, self._ring.open(machine, sealed))
        except CredentialError as error:
            log.warning("bmc.credential_unusable", machine=machine, cause=str(error))
            return False
        return await self._endpoints.reseal(connection, machine, old=sealed, new=new)
