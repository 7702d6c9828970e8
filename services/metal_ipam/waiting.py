"""What waits in a queue for the next batch, and how a batch is taken and answered."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


@dataclass(slots=True)
class Waiting(Generic[Asked, Answer]):
    """A request, and where its answer goes."""

    entry: Asked
    answer: asyncio.Future[Answer]


def wait(entry: Asked) -> Waiting[Asked, Any]:
    """A request that begins to wait."""
    return Waiting(entry, asyncio.get_running_loop().create_future())


def take(
    queue: deque[Waiting[Asked, Answer]], most: int, key: Callable[[Asked], str | None]
) -> list[Waiting[Asked, Answer]]:
    """The next batch: those that still wait, each key once. A twin comes next, and finds what its twin did."""
    batch: list[Waiting[Asked, Answer]] = []
    seen: set[str] = set()
    later: list[Waiting[Asked, Answer]] = []
    while queue and len(batch) < most:
        waiting = queue.popleft()
        if waiting.answer.done():
            continue
        name = key(waiting.entry)
        if name is not None:
            if name in seen:
                later.append(waiting)
                continue
            seen.add(name)
        batch.append(waiting)
    queue.extendleft(reversed(later))
    return batch


def answer(batch: Collection[Waiting[Asked, Answer]], answers: Collection[Answer]) -> None:
    """Give each its answer, unless nobody waits for it any more."""
    for waiting, each in zip(batch, answers, strict=True):
        if not waiting.answer.done():
            waiting.answer.set_result(each)


def fail(batch: Iterable[Waiting[Any, Any]], error: Exception) -> None:
    """Let all who still wait fail."""
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)
