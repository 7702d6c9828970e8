"""Hears of changes in CONFIG_DB when they happen, so that nobody has to wait for the next comparison.

Redis announces them when `notify-keyspace-events` has `K` and the events of hashes and keys (`A`, or `g` and `h`), as
SONiC sets it. Where it does not, or the connection is lost, the comparison from time to time still finds everything.
The agent's own writes are announced as well; a look at a leaf where nothing differs is cheap.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

from metal_kit import logs
from metal_kit.backoff import pause
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from metal_core.configdb import READ_TABLES, table_of
from metal_core.sonic import Sonic, SonicUnavailable

# A change by hand is several commands; what comes within this time is looked at together.
COALESCE = 0.2
# However much is changed, the leaf is not looked at more often.
SPACING = 2.0
_LISTEN = 1.0
_AGAIN = timedelta(seconds=10)
_log = logs.get_logger("metal_core.changes")


class ConfigChanges:
    """Calls `changed` after rows of `tables` have changed, once in `spacing` seconds at most.

    `again` is how long to wait before Redis is asked anew when it cannot be listened to.
    """

    def __init__(
        self,
        sonic: Sonic,
        changed: Callable[[], None],
        tables: Collection[str] = READ_TABLES,
        *,
        spacing: float = SPACING,
        again: timedelta = _AGAIN,
    ) -> None:
        self._sonic, self._changed, self._tables = sonic, changed, tables
        self._spacing, self._again = spacing, again
        self._told = False

    async def run(self, stopping: asyncio.Event) -> None:
        """Listen until `stopping` is set; lost connections are opened again, and a change is assumed meanwhile."""
        while not stopping.is_set():
            try:
                if await self._announced():
                    await self._listen(stopping)
            except (SonicUnavailable, RedisError, OSError, TimeoutError) as error:
                _log.warning("changes.unheard", error=str(error) or type(error).__name__)
            await pause(stopping, self._again)

    async def _announced(self) -> bool:
        """Whether Redis announces changes; true when it does not say."""
        async with self._sonic.database("CONFIG_DB") as db:
            try:
                flags = str((await db.config_get("notify-keyspace-events")).get("notify-keyspace-events", ""))
            except RedisError:
                # The command may be forbidden or renamed.
                return True
        announced = "K" in flags and ("A" in flags or {"g", "h"} <= set(flags))
        if not announced and not self._told:
            hint = "redis-cli config set notify-keyspace-events AKE"
            _log.warning("changes.not_announced", flags=flags, hint=hint)
        self._told = not announced
        return announced

    async def _listen(self, stopping: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        prefix = f"__keyspace@{self._sonic.locations['CONFIG_DB'].number}__:"
        async with _subscribed(self._sonic, f"{prefix}*") as connection:
            # Whatever was changed before somebody listened.
            now = loop.time()
            due: float | None = now
            looked = now - self._spacing
            while not stopping.is_set():
                limit = _LISTEN if due is None else max(0.0, min(_LISTEN, due - loop.time()))
                message = await connection.get_message(timeout=limit)
                key = str(message["channel"]).removeprefix(prefix) if message is not None else ""
                if table_of(key) in self._tables and due is None:
                    due = max(loop.time() + COALESCE, looked + self._spacing)
                if due is not None and loop.time() >= due:
                    due, looked = None, loop.time()
                    self._changed()


@asynccontextmanager
async def _subscribed(sonic: Sonic, pattern: str) -> AsyncIterator[PubSub]:
    connection = sonic.client("CONFIG_DB").pubsub(ignore_subscribe_messages=True)
    try:
        await connection.psubscribe(pattern)
        yield connection
    finally:
        with suppress(RedisError, OSError):
            await connection.aclose()  # type: ignore[no-untyped-call]
