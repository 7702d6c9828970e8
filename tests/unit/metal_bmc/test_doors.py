from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_bmc.doors import MOST_OVERTAKEN, Doors, Line, Rank, Ticket
from metal_bmc.drivers.errors import DriverBusy

ranks = st.sampled_from(Rank)


@given(st.lists(ranks, min_size=1, max_size=30))
def test_the_line_serves_by_rank_and_then_by_arrival(arrivals: list[Rank]) -> None:
    line, tickets = Line(), [Ticket(rank) for rank in arrivals]
    for ticket in tickets[:MOST_OVERTAKEN]:
        line.join(ticket)
    called = [line.call() for _ in range(len(line))]
    assert called == sorted(tickets[:MOST_OVERTAKEN], key=lambda each: each.rank)
    assert line.call() is None


@given(ranks, st.lists(ranks, min_size=50, max_size=50))
def test_nobody_is_overtaken_for_ever(rank: Rank, later: list[Rank]) -> None:
    line, mine = Line(), Ticket(rank)
    line.join(mine)
    for number, other in enumerate(later):
        line.join(Ticket(other))
        if line.call() is mine:
            assert number <= MOST_OVERTAKEN
            return
    pytest.fail("it never had its turn")


async def soon() -> float:
    return asyncio.get_running_loop().time() + 10


async def visit(doors: Doors, rank: Rank, order: list[Rank], inside: asyncio.Event | None = None) -> None:
    async with doors.bmc("m").passed(rank, await soon()):
        order.append(rank)
        if inside is not None:
            await inside.wait()


async def test_a_persons_order_goes_before_the_polls_that_wait() -> None:
    doors, order, end = Doors(), list[Rank](), asyncio.Event()
    visits = [asyncio.create_task(visit(doors, Rank.POLL, order, end))]
    await asyncio.sleep(0)
    later = (Rank.INVENTORY, Rank.POLL, Rank.RECONCILE, Rank.USER)
    visits += [asyncio.create_task(visit(doors, rank, order)) for rank in later]
    await asyncio.sleep(0)
    end.set()
    await asyncio.gather(*visits)
    assert order == [Rank.POLL, Rank.USER, Rank.RECONCILE, Rank.POLL, Rank.INVENTORY]
    assert len(doors) == 0


async def test_who_gives_up_or_is_cancelled_leaves_the_door_free() -> None:
    doors, end = Doors(), asyncio.Event()
    first = asyncio.create_task(visit(doors, Rank.USER, [], end))
    await asyncio.sleep(0)
    with pytest.raises(DriverBusy):
        async with doors.bmc("m").passed(Rank.USER, asyncio.get_running_loop().time() + 0.01):
            pytest.fail("two were inside at once")
    cancelled = asyncio.create_task(visit(doors, Rank.USER, []))
    await asyncio.sleep(0)
    cancelled.cancel()
    end.set()
    await first
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    async with asyncio.timeout(5):
        await visit(doors, Rank.POLL, [])
    assert len(doors) == 0


async def test_a_gap_lies_between_two_exchanges() -> None:
    loop, doors, times = asyncio.get_running_loop(), Doors(gap=0.05), list[float]()

    async def note() -> None:
        async with doors.bmc("m").passed(Rank.USER, await soon()):
            times.append(loop.time())

    await asyncio.gather(note(), note(), note())
    await note()
    assert all(later - earlier >= 0.049 for earlier, later in pairwise(times))


async def test_so_many_of_a_rack_are_asked_at_once_and_no_more() -> None:
    doors, inside, most = Doors(per_rack=3), 0, 0

    async def ask(machine: int) -> None:
        nonlocal inside, most
        until = await soon()
        async with doors.bmc(str(machine)).passed(Rank.POLL, until), doors.rack("r1").passed(Rank.POLL, until):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(ask(number) for number in range(20)))
    assert most == 3
