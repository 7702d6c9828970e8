"""Streams that have nothing to say: they end with their caller's rights as others do, and not at their next word.

Before each answer the interceptor looks whether the caller may still have it. A watch of quiet things has no answer for
hours; without this it would stay open for as long, hold its place among the streams, and look as if it were allowed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from metal_kit.errors import Problem
from metal_kit.tokens import CHECK_UNAVAILABLE

T = TypeVar("T")

# Seconds. The answer usually comes from the cache, whose age is what bounds how long a right may outlive its end.
EVERY = 1.0


async def attended(answers: AsyncIterator[T], still: Callable[[], Awaitable[None]]) -> AsyncGenerator[T]:
    """The answers, each after `still` has returned; it is asked now and then while there is none, too.

    Raises what `still` raises, and while there is no answer at once: the wait for it is cancelled. A check that cannot
    be made at the moment ends no stream that is silent: it tells nothing, and is looked at before it does.
    """
    refusals: list[Exception] = []
    waiting: asyncio.Timeout | None = None

    async def attend() -> None:
        while not refusals:
            await asyncio.sleep(EVERY)
            try:
                await still()
            except Exception as error:
                if not (isinstance(error, Problem) and error.reason == CHECK_UNAVAILABLE):
                    refusals.append(error)
                    if waiting is not None:
                        waiting.reschedule(asyncio.get_running_loop().time())

    attendant = asyncio.create_task(attend(), name="stream attendant")
    try:
        while True:
            if refusals:
                raise refusals[0]
            try:
                async with asyncio.timeout(None) as waiting:
                    answer = await anext(answers)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if refusals:
                    raise refusals[0] from None
                raise
            finally:
                waiting = None
            await still()
            yield answer
    finally:
        attendant.cancel()
