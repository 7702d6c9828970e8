"""Hearing of changes in CONFIG_DB, where Redis announces them and where it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from metal_core.changes import ConfigChanges

Eventually = Callable[..., Awaitable[None]]


@asynccontextmanager
async def listening(bench: Any, spacing: float = 0.0) -> AsyncIterator[list[None]]:
    """What is heard, one entry a call; one comes at once, for what was changed before."""
    heard: list[None] = []
    stopping = asyncio.Event()
    changes = ConfigChanges(bench.sonic, lambda: heard.append(None), spacing=spacing, again=timedelta(milliseconds=50))
    task = asyncio.create_task(changes.run(stopping))
    try:
        yield heard
    finally:
        stopping.set()
        await asyncio.wait_for(task, 10)


async def test_a_burst_is_heard_as_one_change_and_other_tables_not_at_all(bench: Any, eventually: Eventually) -> None:
    async with listening(bench) as heard, bench.sonic.database("CONFIG_DB") as db:
        await eventually(lambda: len(heard) == 1)
        for number in range(20):
            await db.hset("FLEX_COUNTER_TABLE|PORT", "n", str(number))
            await db.hset("PORT|Ethernet0", "description", str(number))
        await eventually(lambda: len(heard) == 2)
        await db.hset("FLEX_COUNTER_TABLE|PORT", "n", "x")
        await bench.sonic.write({"VLAN_MEMBER|Vlan4000|Ethernet0": {"tagging_mode": "untagged"}}, {})
        await eventually(lambda: len(heard) == 3)
        await bench.sonic.delete(["VLAN_MEMBER|Vlan4000|Ethernet0"])
        await eventually(lambda: len(heard) == 4)


async def test_however_much_changes_the_leaf_is_not_looked_at_all_the_time(bench: Any, eventually: Eventually) -> None:
    async with listening(bench, spacing=3600.0) as heard, listening(bench) as other:
        await eventually(lambda: len(heard) == len(other) == 1)
        for mtu in (9000, 1500):
            before = len(other)
            await bench.sonic.write({"PORT|Ethernet0": {"mtu": str(mtu)}}, {})
            await eventually(lambda before=before: len(other) > before)
        assert len(heard) == 1


async def test_a_redis_that_announces_nothing_is_asked_again_until_it_does(bench: Any, eventually: Eventually) -> None:
    async with bench.sonic.database("CONFIG_DB") as db:
        await db.config_set("notify-keyspace-events", "Ex")
    async with listening(bench) as heard:
        async with bench.sonic.database("CONFIG_DB") as db:
            await db.hset("PORT|Ethernet0", "mtu", "1500")
            assert not heard
            await db.config_set("notify-keyspace-events", "KEA")
        await eventually(lambda: heard, what="a change is assumed once somebody listens")


async def test_a_redis_that_died_is_listened_to_again(bench: Any, eventually: Eventually) -> None:
    async with listening(bench) as heard:
        await eventually(lambda: len(heard) == 1)
        await bench.leaf.stop()
        await bench.server.kill()
        await bench.server.start()
        await eventually(lambda: len(heard) == 2, what="what was changed meanwhile is assumed")
