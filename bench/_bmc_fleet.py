"""Questions about the whole service and its fleet, for bench/bmc.py."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from _bmc_plane import Farm, Plane, farm, plane
from metalplane.bmc.v1 import bmc_pb2 as pb
from report import Answer, percentile

FLEET, LARGE_FLEET, DEAD = 2_000, 10_000, 500
INTERVAL = 60.0
# In a run with dead ones: so much faster than in earnest that what they hold up shows.
HURRIED = 15.0
# Spread of the intervals by jitter, and a moment for what is under way.
_A_ROUND = 1.25


async def polled(quick: bool) -> list[Answer]:
    """A usual fleet, and orders meanwhile."""
    count, interval, seconds = (100, 4.0, 3.0) if quick else (FLEET, INTERVAL, 20.0)
    async with farm(count) as bmcs, plane(bmcs.bmcs, poll_seconds=interval) as service:
        cost = await _cost(f"{count:,} BMCs", service, bmcs, interval, cpu="< 2", memory="< 150")
        return cost + await _ordered(service, bmcs, seconds)


async def polled_by_ten_thousand(quick: bool) -> list[Answer]:
    """A large fleet in one process, which keeps all sessions."""
    count, interval = (200, 4.0) if quick else (LARGE_FLEET, INTERVAL)
    async with farm(count) as bmcs, plane(bmcs.bmcs, poll_seconds=interval, sessions=count) as service:
        return await _cost(f"{count:,} BMCs", service, bmcs, interval)


async def _cost(
    name: str, service: Plane, bmcs: Farm, interval: float, *, cpu: str = "", memory: str = ""
) -> list[Answer]:
    # The first round logs in; what is asked for is the cost from then on.
    await asyncio.sleep(interval * _A_ROUND)
    await bmcs.ask(take=True)
    began, spent, transactions = time.perf_counter(), service.cpu(), await service.transactions()
    await asyncio.sleep(interval)
    seconds, spent = time.perf_counter() - began, service.cpu() - spent
    transactions = await service.transactions() - transactions
    seen = await bmcs.ask(take=True)
    polls = len(seen["asked"])
    if not polls:
        raise RuntimeError("nothing was polled")
    note = (
        f"{polls:,} polls in {seconds:.0f} s, {spent / polls * 1000:.2f} ms of CPU and {transactions / polls:.1f} "
        f"transactions each; the farm has {seen['memory']:.0f} MiB"
    )
    return [
        Answer(f"{name} polled every {interval:g} s: CPU", spent / seconds * 100, "% of a core", cpu, note=note),
        Answer(f"{name} polled every {interval:g} s: memory", service.memory(), "MiB", memory),
    ]


async def with_dead_ones(quick: bool) -> list[Answer]:
    """What living BMCs notice of those that died a moment ago: are they asked as often, do orders take longer?"""
    count, dead, interval = (100, 25, 2.0) if quick else (FLEET, DEAD, HURRIED)
    async with farm(count) as bmcs, plane(bmcs.bmcs, poll_seconds=interval) as service:
        living = [each.machine for each in bmcs.bmcs[dead:]]
        await asyncio.sleep(interval * _A_ROUND)
        before = await _watched(service, bmcs, living, dead, interval * 2)
        await bmcs.ask(dead=dead)
        after = await _watched(service, bmcs, living, dead, interval * 3)
        await bmcs.ask(dead=0)
    answers = []
    for what, unit, key in (("time between two polls", "s", "gaps"), ("order to the farm", "ms", "orders")):
        p50, p99 = percentile(after[key], 0.5), percentile(after[key], 0.99)
        usual = percentile(before[key], 0.99)
        note = f"p99 was {usual:,.4g} {unit} with all alive; {len(after[key]):,} samples"
        name = f"{dead} of {count:,} BMCs die, {what} of the living"
        answers.append(Answer(name, p99 / usual, "times the p99", "<= 1.2", p50, p99, note))
    return answers


async def _watched(
    service: Plane, bmcs: Farm, living: Sequence[str], dead: int, seconds: float
) -> dict[str, list[float]]:
    await bmcs.ask(take=True)
    given = await _orders(service, living, seconds)
    seen = await bmcs.ask(take=True)
    times: defaultdict[int, list[float]] = defaultdict(list)
    for number, at in seen["asked"]:
        if number >= dead:
            times[number].append(at)
    # What an order asked for is no poll, and comes right before or after the order.
    ordered = {number for number, _ in seen["ordered"]}
    gaps = [
        later - earlier for number, each in times.items() if number not in ordered for earlier, later in pairwise(each)
    ]
    return {"gaps": gaps, "orders": _delays(given, seen["ordered"], bmcs)}


def _delays(given: dict[str, float], ordered: list[tuple[int, float]], bmcs: Farm) -> list[float]:
    """Milliseconds from call to packet."""
    at = {bmcs.bmcs[number].machine: when for number, when in reversed(ordered)}
    return [(at[machine] - when) * 1000 for machine, when in given.items()]


async def _orders(service: Plane, machines: Sequence[str], seconds: float, each: float = 0.1) -> dict[str, float]:
    """Reset machines, one after the other; when each was asked for."""
    given: dict[str, float] = {}
    calls = []
    loop = asyncio.get_running_loop()
    end, following = loop.time() + seconds, loop.time()
    for machine in machines[:: max(1, len(machines) // max(1, int(seconds / each)))]:
        if loop.time() >= end:
            break
        given[machine] = time.monotonic()
        request = pb.CreateCommandRequest(machine=machine, action=pb.COMMAND_ACTION_RESET)
        calls.append(asyncio.create_task(service.stub.CreateCommand(request)))
        following += each
        await asyncio.sleep(max(0.0, following - loop.time()))
    await asyncio.gather(*calls)
    async with asyncio.timeout(60):
        open_ones = "SELECT count(*) FROM command WHERE state IN ('pending', 'running')"
        while await service.database.fetchval(open_ones):  # noqa: ASYNC110 - rows are looked at, not listened to
            await asyncio.sleep(0.1)
    return given


async def _ordered(service: Plane, bmcs: Farm, seconds: float) -> list[Answer]:
    """From the API to the BMC, by the hardest order: inventory hears of a reset beforehand, and it is sent once."""
    await bmcs.ask(take=True)
    given = await _orders(service, [each.machine for each in bmcs.bmcs], seconds, 0.2)
    delays = _delays(given, (await bmcs.ask(take=True))["ordered"], bmcs)
    rows = await service.database.fetch(
        "SELECT state, extract(epoch FROM ended_at - created_at)::float * 1000 AS took FROM command"
    )
    if {row["state"] for row in rows} != {"succeeded"}:
        raise RuntimeError("an order did not succeed")
    took = [row["took"] for row in rows]
    name = f"a reset while {len(bmcs.bmcs):,} BMCs are polled"
    p50, p99 = percentile(delays, 0.5), percentile(delays, 0.99)
    return [
        Answer(f"{name}: p99 from the call to the packet", p99, "ms", "< 50", p50, p99, f"{len(delays)}, 5 a second"),
        Answer(f"{name}: p99 to SUCCEEDED", percentile(took, 0.99), "ms", "", percentile(took, 0.5),
               percentile(took, 0.99)),
    ]  # fmt: skip
