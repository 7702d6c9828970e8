"""Owned tasks: an end that nobody asked for is loud."""

from __future__ import annotations

import asyncio

import pytest
import structlog
from metal_kit.guard import in_transaction, refuse_in_transaction
from metal_kit.tasks import Tasks


async def _raise() -> None:
    raise LookupError("gone")


async def _return() -> None:
    return


async def _forever() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("work", [_raise, _return])
async def test_an_end_before_the_stop_is_reported_and_logged(work: object) -> None:
    tasks = Tasks()
    with structlog.testing.capture_logs() as lines:
        tasks.spawn("fragile", work())  # type: ignore[operator]
        tasks.spawn("steady", _forever())
        assert await asyncio.wait_for(tasks.failed, 5) == "fragile"
    # Others of the process log too: a lab may run in this loop.
    ended = [line for line in lines if line["event"] == "task.ended"]
    assert [(line["log_level"], line["task"]) for line in ended] == [("error", "fragile")]
    await tasks.stop()


async def test_a_cancellation_from_outside_is_reported_too() -> None:
    tasks = Tasks()
    tasks.spawn("victim", _forever())
    await asyncio.sleep(0)
    next(task for task in asyncio.all_tasks() if task.get_name() == "victim").cancel()
    assert await asyncio.wait_for(tasks.failed, 5) == "victim"


async def test_a_stop_ends_everything_and_reports_nothing() -> None:
    tasks = Tasks()
    ended = []

    async def stubborn() -> None:
        try:
            await _forever()
        finally:
            ended.append("stubborn")

    tasks.spawn("stubborn", stubborn())
    tasks.spawn("patient", stubborn(), patience=0.05)
    await asyncio.sleep(0)
    await tasks.stop()
    assert ended == ["stubborn", "stubborn"]
    assert not tasks.failed.done()


async def test_a_task_that_was_told_may_finish_its_work() -> None:
    tasks = Tasks()
    told, finished = asyncio.Event(), []

    async def work() -> None:
        await told.wait()
        await asyncio.sleep(0.01)
        finished.append(True)

    tasks.spawn("work", work(), patience=5)
    told.set()
    await tasks.stop()
    assert finished == [True]


async def test_the_guard_follows_its_own_task_only() -> None:
    async def elsewhere() -> None:
        refuse_in_transaction("call")

    other = asyncio.create_task(elsewhere())
    token = in_transaction.set("claim")
    try:
        await other
        with pytest.raises(RuntimeError, match="call inside the transaction 'claim'"):
            refuse_in_transaction("call")
    finally:
        in_transaction.reset(token)
    refuse_in_transaction("call")
