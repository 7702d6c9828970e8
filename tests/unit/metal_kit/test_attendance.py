"""Streams end with what they were allowed by, whether they say something or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from metal_kit import attendance
from metal_kit.attendance import attended
from metal_kit.errors import Problem, Unauthenticated, Unavailable
from metal_kit.tokens import CHECK_UNAVAILABLE


class Stream:
    """Answers that the test lets out, and the check before each of them."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[int] = asyncio.Queue()
        self.problem: Exception | None = None
        self.checks = 0
        self.checked = asyncio.Event()
        self.closed = False

    async def answers(self) -> AsyncIterator[int]:
        try:
            while True:
                yield await self.queue.get()
        finally:
            self.closed = True

    async def still(self) -> None:
        self.checks += 1
        self.checked.set()
        if self.problem is not None:
            raise self.problem

    async def checked_again(self) -> None:
        self.checked.clear()
        async with asyncio.timeout(5):
            await self.checked.wait()


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    monkeypatch.setattr(attendance, "EVERY", 0.01)
    return Stream()


async def test_answers_pass_while_they_are_allowed(stream: Stream) -> None:
    async with aclosing(attended(stream.answers(), stream.still)) as got:
        for number in range(3):
            stream.queue.put_nowait(number)
            assert await anext(got) == number


@pytest.mark.parametrize("problem", [Unauthenticated("TOKEN_INVALID", "no"), RuntimeError("a defect")], ids=str)
async def test_a_silent_stream_ends_when_it_is_not_allowed_any_more(stream: Stream, problem: Exception) -> None:
    async with aclosing(attended(stream.answers(), stream.still)) as got, asyncio.timeout(5):
        stream.queue.put_nowait(1)
        await anext(got)
        stream.problem = problem
        with pytest.raises(type(problem)) as ended:
            await anext(got)
        assert ended.value is problem
    assert stream.closed


async def test_it_ends_also_when_that_was_found_while_nobody_waited(stream: Stream) -> None:
    async with aclosing(attended(stream.answers(), stream.still)) as got, asyncio.timeout(5):
        stream.queue.put_nowait(1)
        await anext(got)
        stream.problem = Unauthenticated("TOKEN_INVALID", "no")
        await stream.checked_again()
        with pytest.raises(Unauthenticated):
            await anext(got)


async def test_a_check_that_cannot_be_made_ends_it_only_when_it_says_something(stream: Stream) -> None:
    async with aclosing(attended(stream.answers(), stream.still)) as got, asyncio.timeout(5):
        stream.queue.put_nowait(1)
        await anext(got)
        stream.problem = Unavailable(CHECK_UNAVAILABLE, "not now")
        waiting = asyncio.create_task(anext(got))  # type: ignore[arg-type]
        for _ in range(3):
            await stream.checked_again()
        assert not waiting.done()
        stream.queue.put_nowait(2)
        with pytest.raises(Problem) as ended:
            await waiting
        assert ended.value.reason == CHECK_UNAVAILABLE


async def test_it_leaves_no_task_behind_and_ends_with_the_answers(stream: Stream) -> None:
    async def two() -> AsyncIterator[int]:
        yield 1
        yield 2

    assert [each async for each in attended(two(), stream.still)] == [1, 2]
    async with aclosing(attended(stream.answers(), stream.still)) as got:
        waiting = asyncio.create_task(anext(got))  # type: ignore[arg-type]
        await stream.checked_again()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    await asyncio.sleep(0)
    assert "stream attendant" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_a_time_limit_of_the_handlers_own_stays_what_it_is(stream: Stream) -> None:
    async def late() -> AsyncIterator[int]:
        raise TimeoutError("its own")
        yield 1

    with pytest.raises(TimeoutError, match="its own"):
        await anext(attended(late(), stream.still))
