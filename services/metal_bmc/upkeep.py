"""Housekeeping: waiting commands expire, old ones are forgotten, passwords move to the newest key of the ring."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import asyncpg
from metal_kit.backoff import pause
from metal_kit.clock import Clock
from metal_kit.db import Database
from metal_kit.errors import Problem
from metal_kit.logs import get_logger

from metal_bmc import events
from metal_bmc.command import NEVER_BEGUN
from metal_bmc.resealing import Resealing
from metal_bmc.store import CommandStore, TaskStore

log = get_logger(__name__)

_EXPIRE_EVERY = timedelta(seconds=2)
_REST_EVERY = timedelta(hours=1)
_BATCH = 500


class Upkeep:
    """`run` it as a task in every replica; what one has done, another finds done."""

    def __init__(self, db: Database, resealing: Resealing, clock: Clock, *, keep: timedelta) -> None:
        self._db, self._resealing, self._clock = db, resealing, clock
        self._partition, self._keep = resealing.partition, keep
        self._commands, self._tasks = CommandStore(), TaskStore()

    async def run(self, stopping: asyncio.Event) -> None:
        """Expire commands every few seconds and do the rest every hour, until `stopping` is set."""
        loop = asyncio.get_running_loop()
        rest_at = 0.0
        while not stopping.is_set():
            try:
                await self.expire()
                if loop.time() >= rest_at:
                    await self._resealing.reseal()
                    await self.forget()
                    rest_at = loop.time() + _REST_EVERY.total_seconds()
            except (Problem, asyncpg.PostgresError, OSError) as error:
                log.warning("bmc.upkeep.waits", cause=type(error).__name__)
            await pause(stopping, _EXPIRE_EVERY)

    async def expire(self) -> int:
        """End commands that waited behind others for longer than their deadline; returns how many."""
        async with self._db.transaction(purpose="expire commands") as connection:
            ended = await self._commands.expire_waiting(connection, self._partition, NEVER_BEGUN)
            for command in ended:
                await events.command_finished(connection, command)
        return len(ended)

    async def forget(self) -> int:
        """Remove commands and tasks that ended longer ago than they are kept; returns how many."""
        gone = 0
        for store in (self._commands, self._tasks):
            count = _BATCH
            while count == _BATCH:
                async with self._db.transaction(purpose="forget what is old") as connection:
                    count = await store.forget_ended(connection, self._clock.now() - self._keep, most=_BATCH)
                gone += count
        return gone
