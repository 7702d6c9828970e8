"""Requests that wait for each other at a key."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from metal_ipam import batches
from metal_ipam.batches import Batches
from metal_kit.errors import Aborted, Unavailable


class Desk:
    """Serves numbers by doubling them; each batch waits until `open`."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.more = asyncio.Condition()
        self.seen: list[tuple[str, list[int]]] = []
        self.refused: set[int] = set()
        self.batches: Batches[str, int, int] = Batches(self.serve, lambda number: str(number) if number > 9 else None)

    async def serve(self, key: str, numbers: Sequence[int]) -> list[int]:
        self.seen.append((key, list(numbers)))
        async with self.more:
            self.more.notify_all()
        await self.open.wait()
        if self.refused & set(numbers):
            raise Aborted("CONCURRENT_CHANGE", "lost")
        return [2 * number for number in numbers]

    def ask(self, *numbers: int, key: str = "a") -> list[asyncio.Task[int]]:
        return [asyncio.create_task(self.batches.ask(key, number)) for number in numbers]

    async def until_seen(self, count: int) -> None:
        async with asyncio.timeout(5):
            async with self.more:
                await self.more.wait_for(lambda: len(self.seen) >= count)


async def test_who_is_alone_goes_at_once_and_who_comes_meanwhile_shares_the_next_batch() -> None:
    desk = Desk()
    first = desk.ask(1)
    await desk.until_seen(1)
    later = desk.ask(2, 3, 4)
    await asyncio.sleep(0)
    desk.open.set()
    assert await asyncio.gather(*first, *later) == [2, 4, 6, 8]
    assert desk.seen == [("a", [1]), ("a", [2, 3, 4])]


async def test_keys_do_not_wait_for_each_other() -> None:
    desk = Desk()
    asked = [*desk.ask(1, key="a"), *desk.ask(2, key="b")]
    await desk.until_seen(2)
    desk.open.set()
    assert await asyncio.gather(*asked) == [2, 4]
    assert sorted(desk.seen) == [("a", [1]), ("b", [2])]


async def test_twins_are_served_one_after_the_other() -> None:
    desk = Desk()
    first = desk.ask(1)
    await desk.until_seen(1)
    twins = desk.ask(10, 11, 10)
    await asyncio.sleep(0)
    desk.open.set()
    assert await asyncio.gather(*first, *twins) == [2, 20, 22, 20]
    assert desk.seen == [("a", [1]), ("a", [10, 11]), ("a", [10])]


async def test_a_batch_that_failed_fails_all_who_are_in_it_and_nobody_else() -> None:
    desk = Desk()
    desk.refused = {3}
    first = desk.ask(1)
    await desk.until_seen(1)
    later = desk.ask(2, 3)
    await asyncio.sleep(0)
    desk.open.set()
    answers = await asyncio.gather(*first, *later, return_exceptions=True)
    assert answers[0] == 2
    assert all(isinstance(each, Aborted) for each in answers[1:])
    assert await asyncio.gather(*desk.ask(4)) == [8]


async def test_the_wrong_number_of_answers_is_nobody_s_answer() -> None:
    async def serve(_key: str, _numbers: Sequence[int]) -> list[int]:
        return []

    short: Batches[str, int, int] = Batches(serve, lambda _: None)
    with pytest.raises(RuntimeError, match="0 answers to 1 requests"):
        await short.ask("a", 1)


async def test_who_gave_up_waiting_is_not_served() -> None:
    desk = Desk()
    first = desk.ask(1)
    await desk.until_seen(1)
    gone, stays = desk.ask(2, 3)
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    desk.open.set()
    assert await asyncio.gather(*first, stays) == [2, 6]
    assert desk.seen == [("a", [1]), ("a", [3])]


async def test_a_key_that_too_many_wait_for_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MAX_WAITING", 2)
    desk = Desk()
    first = desk.ask(1)
    await desk.until_seen(1)
    later = desk.ask(2, 3, 4)
    with pytest.raises(Unavailable, match="PREFIX_BUSY"):
        await later[2]
    desk.open.set()
    assert await asyncio.gather(*first, *later[:2]) == [2, 4, 6]


async def test_close_waits_for_what_is_under_way() -> None:
    desk = Desk()
    asked = desk.ask(1)
    await desk.until_seen(1)
    closing = asyncio.create_task(desk.batches.close())
    await asyncio.sleep(0)
    assert not closing.done()
    desk.open.set()
    await closing
    assert asked[0].done() or await asked[0] == 2
