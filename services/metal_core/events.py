"""Waiting for the switch to change: by Redis' keyspace notifications where it sends them, else by looking again.

SONiC has its Redis send them (`notify-keyspace-events AKE`), but nobody guarantees it, and a notification can be lost
with a connection. So they only ever bring a look forward; what holds is decided by `facts`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from metal_kit import logs
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from metal_core.plan import Condition, Fact
from metal_core.sonic import COMMAND_LIMIT, Sonic

# Seconds between looks without notifications; orchagent usually follows within tens of milliseconds.
FIRST_LOOK, LAST_LOOK = 0.01, 0.25
# Seconds after which to look although nothing was notified.
LOOK_ANYWAY = 1.0
# Seconds of silence that end a burst: the rows of one change of orchagent are worth one look together.
_QUIET = 0.003
_BURST = 1000
_RIF = ("SAI_OBJECT_TYPE_ROUTER_INTERFACE", "*")
_BRIDGE_PORT = ("SAI_OBJECT_TYPE_BRIDGE_PORT", "*")
# Keys that a fact is read from, by database.
_KEYS: Mapping[Fact, tuple[tuple[str, tuple[str, ...]], ...]] = {
    fact: keys
    for facts, keys in (
        ((Fact.VRF_PRESENT, Fact.VRF_GONE), (("STATE_DB", ("VRF_OBJECT_TABLE", "*")),)),
        ((Fact.VLAN_PRESENT, Fact.VLAN_GONE), (("STATE_DB", ("VLAN_TABLE", "*")),)),
        (
            (Fact.RIF_PRESENT, Fact.RIF_GONE),
            (("ASIC_DB", ("ASIC_STATE", *_RIF)), ("COUNTERS_DB", ("COUNTERS_RIF_NAME_MAP",))),
        ),
        (
            (Fact.BRIDGE_PORT_PRESENT, Fact.BRIDGE_PORT_GONE),
            (("ASIC_DB", ("ASIC_STATE", *_BRIDGE_PORT)), ("COUNTERS_DB", ("COUNTERS_PORT_NAME_MAP",))),
        ),
        ((Fact.SPEED, Fact.FEC), (("APPL_DB", ("PORT_TABLE", "*")), ("STATE_DB", ("PORT_TABLE", "*")))),
    )
    for fact in facts
}
Changed = Callable[[float], Awaitable[None]]
_log = logs.get_logger("metal_core.events")


@asynccontextmanager
async def changes(sonic: Sonic, conditions: Iterable[Condition]) -> AsyncIterator[Changed]:
    """A function that waits until what `conditions` are about may have changed, at most the seconds that it is given.

    It never raises for Redis: whoever looks next finds out.
    """
    async with AsyncExitStack() as stack:
        subscribed = await _subscribe(sonic, _patterns(sonic, conditions), stack)
        yield _Notified(subscribed).wait if subscribed else _Polling().wait


class _Polling:
    """Growing pauses."""

    def __init__(self) -> None:
        self._pause = FIRST_LOOK

    async def wait(self, limit: float) -> None:
        await asyncio.sleep(min(self._pause, limit))
        self._pause = min(2 * self._pause, LAST_LOOK)


class _Notified:
    """The next notification of any of the connections."""

    def __init__(self, connections: list[PubSub]) -> None:
        self._connections = connections
        self._lost = _Polling()

    async def wait(self, limit: float) -> None:
        waits = [asyncio.create_task(_next(each, min(limit, LOOK_ANYWAY))) for each in self._connections]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            broken = any(wait.done() and wait.exception() is not None for wait in waits)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        if broken:
            await self._lost.wait(limit)


async def _next(connection: PubSub, limit: float) -> None:
    """The next notification and those that follow it at once."""
    if await connection.get_message(timeout=limit) is None:
        return
    for _ in range(_BURST):
        if await connection.get_message(timeout=_QUIET) is None:
            return


def _patterns(sonic: Sonic, conditions: Iterable[Condition]) -> dict[str, tuple[str, list[str]]]:
    """What to subscribe to, by the socket of the Redis instance: the name of one of its databases, and patterns."""
    found: dict[str, tuple[str, list[str]]] = {}
    for database, parts in dict.fromkeys(key for condition in conditions for key in _KEYS[condition.fact]):
        location = sonic.locations[database]
        pattern = f"__keyspace@{location.number}__:{sonic.key(database, *parts)}"
        found.setdefault(location.socket, (database, []))[1].append(pattern)
    return found


async def _subscribe(sonic: Sonic, wanted: Mapping[str, tuple[str, list[str]]], stack: AsyncExitStack) -> list[PubSub]:
    """Connections that are subscribed; none when an instance does not notify of what has to be waited for."""
    connections = []
    try:
        for database, patterns in wanted.values():
            client = sonic.client(database)
            flags = str((await client.config_get("notify-keyspace-events")).get("notify-keyspace-events", ""))
            if "K" not in flags or not ("A" in flags or {"g", "h"} <= set(flags)):
                _log.debug("events.not_sent", database=database, flags=flags)
                return []
            connection = client.pubsub()
            stack.push_async_callback(_close, connection)
            await connection.psubscribe(*patterns)
            for _ in patterns:
                # The answers to the subscription, which would else pass for notifications.
                await connection.get_message(timeout=COMMAND_LIMIT)
            connections.append(connection)
    except (RedisError, OSError, TimeoutError) as error:
        # Also where the agent may not read Redis' configuration.
        _log.debug("events.not_available", error=repr(error))
        return []
    return connections


async def _close(connection: PubSub) -> None:
    with suppress(RedisError, OSError):
        await connection.aclose()  # type: ignore[no-untyped-call]
