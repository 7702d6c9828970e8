"""The controller against a real Postgres: phases, wake-ups, failures, deadlines."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import pairwise

import pytest
from controller_things import (
    FAST,
    SECOND,
    Eventually,
    Thing,
    Things,
    add,
    blocked,
    gone,
    has,
    phase_of,
    queue_row,
    reason_is,
)
from metal_kit.backoff import Backoff
from metal_kit.controller import (
    Controller,
    Done,
    Failed,
    Go,
    Outcome,
    Wait,
    enqueue,
    read_history,
)
from metal_kit.db import Connection, Database
from metal_kit.errors import Unavailable
from running import running


async def test_a_key_goes_through_its_phases_and_leaves_the_queue(things: Database, eventually: Eventually) -> None:
    async def do(thing: Thing) -> Outcome:
        steps: dict[str, Outcome] = {"A": Go("B", "FIRST"), "B": Go("C"), "C": Done()}
        return steps[thing.phase]

    await add(things, "x")
    async with running(Controller(Things(do), things)):
        await eventually(lambda: gone(things, "x"))
    assert await phase_of(things, "x") == "C"
    async with things.connection() as connection:
        lines = await read_history(connection, "thing", "x")
    assert [(line.phase, line.outcome) for line in reversed(lines)] == [("A", "go"), ("B", "go"), ("C", "done")]
    assert lines[-1].reason == "FIRST"


async def test_enqueueing_wakes_an_idle_controller_at_once(things: Database, eventually: Eventually) -> None:
    seen: list[str] = []

    async def do(thing: Thing) -> Outcome:
        seen.append(thing.key)
        return Done()

    async with running(Controller(Things(do), things)):
        await add(things, "first")
        await eventually(lambda: seen == ["first"])
        before = asyncio.get_running_loop().time()
        await add(things, "second")
        await eventually(lambda: seen == ["first", "second"])
        # Far below the fallback poll of five seconds, far above what the notification takes.
        assert asyncio.get_running_loop().time() - before < 2


async def test_a_rolled_back_enqueue_reconciles_nothing(things: Database) -> None:
    async def fail() -> None:
        async with things.transaction(purpose="test") as connection:
            await enqueue(connection, "thing", "x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await queue_row(things, "x") is None


async def test_a_wake_up_during_the_work_is_not_lost(things: Database, eventually: Eventually) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()
    notes: list[str] = []

    async def do(thing: Thing) -> Outcome:
        notes.append(thing.note)
        entered.set()
        await leave.wait()
        return Done()

    await add(things, "x")
    async with running(Controller(Things(do), things)):
        await entered.wait()
        # Not the version: the save of the first look must not fail as stale, which would hide a lost wake-up.
        async with things.transaction(purpose="test: change") as connection:
            await connection.execute("UPDATE thing SET note = 'changed' WHERE key = 'x'")
            await enqueue(connection, "thing", "x")
        leave.set()
        await eventually(lambda: notes == ["", "changed"])
        await eventually(lambda: gone(things, "x"))


async def test_a_wake_up_that_commits_while_the_outcome_is_saved_is_not_lost(
    things: Database, eventually: Eventually
) -> None:
    """The waker holds the queue's row when the worker wants to remove it."""
    entered, leave = asyncio.Event(), asyncio.Event()
    looks = 0

    async def do(thing: Thing) -> Outcome:
        nonlocal looks
        looks += 1
        entered.set()
        await leave.wait()
        return Done()

    reconciler = Things(do)
    await add(things, "x")
    async with running(Controller(reconciler, things)):
        await entered.wait()
        async with things.transaction(purpose="test: change") as connection:
            await enqueue(connection, "thing", "x")
            leave.set()
            await eventually(lambda: blocked(things), what="the worker waits for the row")
        await eventually(lambda: looks == 2)
        await eventually(lambda: gone(things, "x"))


async def test_waiting_looks_again_after_the_time_it_names(things: Database, eventually: Eventually) -> None:
    looks: list[float] = []

    async def do(thing: Thing) -> Outcome:
        looks.append(asyncio.get_running_loop().time())
        return Wait("NOT_YET", "waits", timedelta(seconds=0.2)) if len(looks) < 3 else Done()

    await add(things, "x")
    async with running(Controller(Things(do), things)):
        await eventually(lambda: len(looks) == 3)
        await eventually(lambda: gone(things, "x"))
    gaps = [later - earlier for earlier, later in pairwise(looks)]
    assert all(0.19 <= gap < 2 for gap in gaps), gaps
    async with things.connection() as connection:
        lines = await read_history(connection, "thing", "x")
    assert [(line.outcome, line.reason, line.times) for line in lines] == [("done", "", 1), ("wait", "NOT_YET", 2)]


async def test_failures_back_off_and_start_over_after_a_success(things: Database, eventually: Eventually) -> None:
    attempts: list[int] = []

    async def do(thing: Thing) -> Outcome:
        row = await queue_row(things, "x")
        assert row is not None
        attempts.append(row["attempts"])
        if len(attempts) < 4:
            return Failed("BROKEN", "does not work")
        return Wait("OK", "fine", timedelta(milliseconds=10)) if len(attempts) == 4 else Done()

    await add(things, "x")
    async with running(Controller(Things(do), things, backoff=FAST)):
        await eventually(lambda: gone(things, "x"))
    assert attempts == [0, 1, 2, 3, 0]


async def test_a_failure_names_its_own_time(things: Database, eventually: Eventually) -> None:
    async def do(thing: Thing) -> Outcome:
        return Failed("LATER", "come back in an hour", timedelta(hours=1))

    await add(things, "x")
    async with running(Controller(Things(do), things, backoff=FAST)):
        await eventually(lambda: reason_is(things, "x", "LATER"))
        async with things.connection() as connection:
            minutes = await connection.fetchval(
                "SELECT extract(epoch FROM ready_at - clock_timestamp()) / 60 FROM reconcile_queue WHERE key = 'x'"
            )
    assert 58 < minutes <= 60


@pytest.mark.parametrize(
    ("error", "reason", "told"),
    [
        (Unavailable("IPAM_AWAY", "ipam cannot be reached"), "IPAM_AWAY", "ipam cannot be reached"),
        (ValueError("the secret is swordfish"), "INTERNAL", "an unexpected error"),
        (RuntimeError("outbound call"), "INTERNAL", "an unexpected error"),
    ],
)
async def test_an_exception_is_a_failure_that_is_recorded(
    things: Database, eventually: Eventually, error: Exception, reason: str, told: str
) -> None:
    async def do(thing: Thing) -> Outcome:
        raise error

    reconciler = Things(do)
    await add(things, "x")
    async with running(Controller(reconciler, things, backoff=Backoff(SECOND * 60, SECOND * 60, least=SECOND * 30))):
        await eventually(lambda: reason_is(things, "x", reason))
    row = await queue_row(things, "x")
    assert row is not None
    assert row["message"].startswith(told)
    assert "swordfish" not in row["message"]
    assert row["attempts"] == 1
    _, outcome, _ = reconciler.saved[0]
    assert isinstance(outcome, Failed), "the object gets to know it too"


async def test_an_act_that_hangs_is_ended_at_its_limit(things: Database, eventually: Eventually) -> None:
    async def do(thing: Thing) -> Outcome:
        await asyncio.Event().wait()
        raise AssertionError

    await add(things, "x")
    controller = Controller(
        Things(do), things, act_limit=timedelta(seconds=0.1), backoff=Backoff(SECOND * 60, SECOND * 60, least=SECOND)
    )
    async with running(controller):
        await eventually(lambda: reason_is(things, "x", "ACT_TIMEOUT"))


async def test_a_failing_save_leaves_no_half_and_is_recorded(things: Database, eventually: Eventually) -> None:
    class BrokenSave(Things):
        async def save(self, connection: Connection, snapshot: Thing, outcome: Outcome, *, overdue: bool) -> None:
            await super().save(connection, snapshot, outcome, overdue=overdue)
            raise ValueError("after the write")

    async def do(thing: Thing) -> Outcome:
        return Go("B")

    await add(things, "x")
    controller = Controller(BrokenSave(do), things, backoff=Backoff(SECOND * 60, SECOND * 60, least=SECOND * 30))
    async with running(controller):
        await eventually(lambda: reason_is(things, "x", "INTERNAL"))
    assert await phase_of(things, "x") == "A"
    async with things.connection() as connection:
        lines = await read_history(connection, "thing", "x")
    assert [(line.outcome, line.reason) for line in lines] == [("failed", "INTERNAL")]


async def test_a_stale_snapshot_is_loaded_again_and_is_no_failure(things: Database, eventually: Eventually) -> None:
    versions: list[int] = []

    async def do(thing: Thing) -> Outcome:
        versions.append(thing.version)
        if len(versions) == 1:
            async with things.connection() as connection:
                await connection.execute("UPDATE thing SET version = version + 1 WHERE key = 'x'")
        return Done()

    await add(things, "x")
    async with running(Controller(Things(do), things)):
        await eventually(lambda: gone(things, "x"))
    assert versions == [1, 2]
    async with things.connection() as connection:
        assert [line.outcome for line in await read_history(connection, "thing", "x")] == ["done"]


async def test_an_object_that_is_gone_leaves_the_queue(things: Database, eventually: Eventually) -> None:
    async def do(thing: Thing) -> Outcome:
        raise AssertionError("there is nothing to act on")

    async with things.transaction(purpose="test") as connection:
        await enqueue(connection, "thing", "never-was")
    async with running(Controller(Things(do), things)):
        await eventually(lambda: gone(things, "never-was"))


async def test_going_to_the_same_phase_is_refused_instead_of_looping(things: Database, eventually: Eventually) -> None:
    async def do(thing: Thing) -> Outcome:
        return Go(thing.phase)

    await add(things, "x")
    controller = Controller(Things(do), things, backoff=Backoff(SECOND * 60, SECOND * 60, least=SECOND * 30))
    async with running(controller):
        await eventually(lambda: reason_is(things, "x", "INTERNAL"))


async def test_a_phase_that_lasts_too_long_is_overdue_at_its_deadline(things: Database, eventually: Eventually) -> None:
    from prometheus_client import REGISTRY

    async def do(thing: Thing) -> Outcome:
        # Far longer than the deadline: the controller has to look by itself when it passes.
        return Wait("NO_SIGNAL", "waits for a signal", timedelta(hours=1))

    reconciler = Things(do, deadlines={"A": timedelta(seconds=1.5)})
    await add(things, "x")
    async with running(Controller(reconciler, things)):
        await eventually(lambda: any(overdue for _, _, overdue in reconciler.saved))
        await eventually(lambda: has(things, "x", overdue=True))
    assert [overdue for _, _, overdue in reconciler.saved] == [False, True]
    async with things.connection() as connection:
        lines = await read_history(connection, "thing", "x")
    assert [line.overdue for line in lines] == [True, False]
    async with running(Controller(reconciler, things)):
        await eventually(
            lambda: (
                REGISTRY.get_sample_value(
                    "metalplane_reconcile_overdue", {"service": "kit", "kind": "thing", "phase": "A"}
                )
                == 1
            )
        )


async def test_a_new_phase_starts_its_own_clock(things: Database, eventually: Eventually) -> None:
    async def do(thing: Thing) -> Outcome:
        return Wait("NO_SIGNAL", "waits", timedelta(seconds=0.05))

    reconciler = Things(do, deadlines={"A": timedelta(seconds=0.2), "B": timedelta(hours=1)})
    await add(things, "x")
    async with running(Controller(reconciler, things)):
        await eventually(lambda: any(overdue for _, _, overdue in reconciler.saved))
        async with things.transaction(purpose="test: the phase changes outside") as connection:
            await connection.execute("UPDATE thing SET phase = 'B', version = version + 1 WHERE key = 'x'")
            await enqueue(connection, "thing", "x")
        await eventually(lambda: not reconciler.saved[-1][2])
        await eventually(lambda: has(things, "x", phase="B", overdue=False))


async def test_a_phase_is_overdue_also_when_nothing_can_be_saved(things: Database, eventually: Eventually) -> None:
    class Broken(Things):
        async def save(self, connection: Connection, snapshot: Thing, outcome: Outcome, *, overdue: bool) -> None:
            raise RuntimeError("a defect")

    async def do(_thing: Thing) -> Outcome:
        return Go("B")

    reconciler = Broken(do, deadlines={"A": timedelta(milliseconds=200)})
    await add(things, "x")
    async with running(Controller(reconciler, things, backoff=FAST)):
        await eventually(lambda: has(things, "x", phase="A", overdue=True))
    async with things.connection() as connection:
        newest = (await read_history(connection, "thing", "x"))[0]
    assert (newest.phase, newest.overdue) == ("A", True)
