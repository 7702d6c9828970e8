"""Waiting for the switch by Redis' notifications, and by looking where there are none."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from leaf_states import EMPTY, ONE, is_at
from metal_core.events import LAST_LOOK, LOOK_ANYWAY, changes
from metal_core.plan import Condition, Fact

VRF = [Condition(Fact.VRF_PRESENT, "Vrf2000"), Condition(Fact.RIF_GONE, "Ethernet0")]


async def test_an_object_that_comes_ends_the_wait_at_once_and_other_changes_do_not(bench: Any) -> None:
    async with bench.sonic.database("STATE_DB") as state, changes(bench.sonic, VRF) as changed:
        waiting = asyncio.create_task(changed(30))
        await state.hset("PORT_TABLE|Ethernet0", "state", "ok")
        await asyncio.wait([waiting], timeout=0.1)
        assert not waiting.done()
        started = time.monotonic()
        await state.hset("VRF_OBJECT_TABLE|Vrf2000", "state", "ok")
        await waiting
        assert time.monotonic() - started < LOOK_ANYWAY / 2


async def test_an_object_that_goes_between_two_waits_is_not_missed(bench: Any) -> None:
    async with bench.sonic.database("ASIC_DB") as asic, changes(bench.sonic, VRF) as changed:
        key = "ASIC_STATE:SAI_OBJECT_TYPE_ROUTER_INTERFACE:oid:0x6000000000999"
        await asic.hset(key, "x", "y")
        await changed(30)
        await asic.delete(key)
        started = time.monotonic()
        await changed(30)
        assert time.monotonic() - started < LOOK_ANYWAY / 2


async def test_a_lost_notification_costs_a_second_at_most(bench: Any) -> None:
    async with changes(bench.sonic, VRF) as changed:
        started = time.monotonic()
        await changed(30)
        assert LOOK_ANYWAY * 0.9 < time.monotonic() - started < LOOK_ANYWAY * 5


async def test_a_redis_that_sends_none_is_looked_at_again_and_again(bench: Any) -> None:
    async with bench.sonic.database("CONFIG_DB") as config:
        await config.config_set("notify-keyspace-events", "KEx")
    async with changes(bench.sonic, VRF) as changed:
        started = time.monotonic()
        for _ in range(4):
            await changed(30)
        assert time.monotonic() - started < 4 * LAST_LOOK
    assert (await bench.applier().apply(ONE)).applied
    assert await is_at(bench, ONE)


async def test_a_redis_that_does_not_tell_its_configuration_is_looked_at_as_well(bench: Any) -> None:
    async with bench.sonic.database("CONFIG_DB") as config:
        await config.execute_command("ACL", "SETUSER", "default", "-config")
    assert (await bench.applier().apply(ONE)).applied


async def test_a_redis_that_dies_during_a_wait_is_found_by_the_next_look(bench: Any) -> None:
    assert (await bench.applier().apply(EMPTY)).applied
    bench.leaf.faults.orchagent_delay = 60.0
    run = asyncio.create_task(bench.applier(wait_limit=30).apply(ONE))
    async with changes(bench.sonic, VRF) as changed:
        await asyncio.wait([run], timeout=0.3)
        await bench.leaf.stop()
        await bench.server.kill()
        await changed(1)
    outcome = await run
    assert not outcome.applied
    assert "_DB: " in outcome.error
