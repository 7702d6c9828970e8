"""The controller against a real Postgres: claims, fences, wake-ups, deadlines, failures, takeovers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from metal_kit.backoff import Backoff
from metal_kit.controller import (
    Controller,
    Done,
    Failed,
    Go,
    Outcome,
    StaleSnapshot,
    Wait,
    enqueue,
    read_history,
)
from metal_kit.controller import queue as queue_module
from metal_kit.controller.worker import _Work
from metal_kit.db import Connection, Database
from metal_kit.errors import Unavailable
from metal_kit.guard import refuse_in_transaction

Eventually = Callable[..., Awaitable[None]]
Act = Callable[["Thing"], Awaitable[Outcome]]

FAST = Backoff(timedelta(milliseconds=10), timedelta(milliseconds=50))
SECOND = timedelta(seconds=1)


@dataclass(frozen=True)
class Thing:
    key: str
    phase: str
    version: int
    note: str


@dataclass
class Things:
    """A reconciler of rows of the table `thing`, whose `act` the test gives."""

    do: Act
    kind: str = "thing"
    deadlines: Mapping[str, timedelta] = field(default_factory=dict)
    saved: list[tuple[str, Outcome, bool]] = field(default_factory=list)

    async def load(self, connection: Connection, key: str) -> Thing | None:
        row = await connection.fetchrow("SELECT key, phase, version, note FROM thing WHERE key = $1", key)
        return Thing(**dict(row)) if row else None

    async def act(self, snapshot: Thing) -> Outcome:
        refuse_in_transaction("a call of the test")
        return await self.do(snapshot)

    async def save(self, connection: Connection, snapshot: Thing, outcome: Outcome, *, overdue: bool) -> None:
        phase = outcome.phase if isinstance(outcome, Go) else snapshot.phase
        status = await connection.execute(
            "UPDATE thing SET phase = $3, version = version + 1 WHERE key = $1 AND version = $2",
            *(snapshot.key, snapshot.version, phase),
        )
        if status == "UPDATE 0":
            raise StaleSnapshot
        self.saved.append((snapshot.key, outcome, overdue))


class SweptThings(Things):
    async def sweep(self, connection: Connection) -> list[str]:
        return [row["key"] for row in await connection.fetch("SELECT key FROM thing WHERE phase <> 'REST'")]


@pytest.fixture
async def things(db: Database) -> Database:
    async with db.connection() as connection:
        await connection.execute(
            """
            CREATE TABLE thing (
                key text PRIMARY KEY, phase text NOT NULL DEFAULT 'A', version int NOT NULL DEFAULT 1,
                note text NOT NULL DEFAULT ''
            )
            """
        )
    return db


async def add(db: Database, *keys: str, queued: bool = True) -> None:
    async with db.transaction(purpose="test: add") as connection:
        await connection.executemany("INSERT INTO thing (key) VALUES ($1)", [(key,) for key in keys])
        if queued:
            await enqueue(connection, "thing", keys)


async def queue_row(db: Database, key: str) -> dict[str, Any] | None:
    async with db.connection() as connection:
        row = await connection.fetchrow("SELECT * FROM reconcile_queue WHERE key = $1", key)
    return dict(row) if row else None


async def phase_of(db: Database, key: str) -> str:
    async with db.connection() as connection:
        return str(await connection.fetchval("SELECT phase FROM thing WHERE key = $1", key))


@asynccontextmanager
async def running(*controllers: Controller) -> AsyncIterator[asyncio.Event]:
    stopping = asyncio.Event()
    tasks = [asyncio.create_task(controller.run(stopping)) for controller in controllers]
    try:
        yield stopping
    finally:
        stopping.set()
        async with asyncio.timeout(20):
            await asyncio.gather(*tasks)


async def test_a_key_goes_through_its_phases_and_leaves_the_queue(things: Database, eventually: Eventually) -> None:
    async def do(thing: Thing) -> Outcome:
        steps: dict[str, Outcome] = {"A": Go("B", "FIRST"), "B": Go("C"), "C": Done()}
        return steps[thing.phase]

    await add(things, "x")
    async with running(Controller(Things(do), things)):
        await eventually(lambda: _gone(things, "x"))
    assert await phase_of(things, "x") == "C"
    async with things.connection() as connection:
        lines = await read_history(connection, "thing", "x")
    assert [(line.phase, line.outcome) for line in reversed(lines)] == [("A", "go"), ("B", "go"), ("C", "done")]
    assert lines[-1].reason == "FIRST"


async def _gone(db: Database, key: str) -> bool:
    return await queue_row(db, key) is None


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
        await eventually(lambda: _gone(things, "x"))


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
            await eventually(lambda: _blocked(things), what="the worker waits for the row")
        await eventually(lambda: looks == 2)
        await eventually(lambda: _gone(things, "x"))


async def _blocked(db: Database) -> bool:
    async with db.connection() as connection:
        return bool(
            await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        )


async def test_waiting_looks_again_after_the_time_it_names(things: Database, eventually: Eventually) -> None:
    looks: list[float] = []

    async def do(thing: Thing) -> Outcome:
        looks.append(asyncio.get_running_loop().time())
        return Wait("NOT_YET", "waits", timedelta(seconds=0.2)) if len(looks) < 3 else Done()

    await add(things, "x")
    async with running(Controller(Things(do), things)):
        await eventually(lambda: len(looks) == 3)
        await eventually(lambda: _gone(things, "x"))
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
        await eventually(lambda: _gone(things, "x"))
    assert attempts == [0, 1, 2, 3, 0]


async def test_a_failure_names_its_own_time(things: Database, eventually: Eventually) -> None:
    async def do(thing: Thing) -> Outcome:
        return Failed("LATER", "come back in an hour", timedelta(hours=1))

    await add(things, "x")
    async with running(Controller(Things(do), things, backoff=FAST)):
        await eventually(lambda: _reason_is(things, "x", "LATER"))
        async with things.connection() as connection:
            minutes = await connection.fetchval(
                "SELECT extract(epoch FROM ready_at - clock_timestamp()) / 60 FROM reconcile_queue WHERE key = 'x'"
            )
    assert 58 < minutes <= 60


async def _has(db: Database, key: str, **columns: object) -> bool:
    row = await queue_row(db, key)
    return row is not None and all(row[name] == value for name, value in columns.items())


async def _reason_is(db: Database, key: str, reason: str) -> bool:
    row = await queue_row(db, key)
    return row is not None and row["reason"] == reason and row["holder"] is None


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
        await eventually(lambda: _reason_is(things, "x", reason))
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
        await eventually(lambda: _reason_is(things, "x", "ACT_TIMEOUT"))


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
        await eventually(lambda: _reason_is(things, "x", "INTERNAL"))
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
        await eventually(lambda: _gone(things, "x"))
    assert versions == [1, 2]
    async with things.connection() as connection:
        assert [line.outcome for line in await read_history(connection, "thing", "x")] == ["done"]


async def test_an_object_that_is_gone_leaves_the_queue(things: Database, eventually: Eventually) -> None:
    async def do(thing: Thing) -> Outcome:
        raise AssertionError("there is nothing to act on")

    async with things.transaction(purpose="test") as connection:
        await enqueue(connection, "thing", "never-was")
    async with running(Controller(Things(do), things)):
        await eventually(lambda: _gone(things, "never-was"))


async def test_going_to_the_same_phase_is_refused_instead_of_looping(things: Database, eventually: Eventually) -> None:
    async def do(thing: Thing) -> Outcome:
        return Go(thing.phase)

    await add(things, "x")
    controller = Controller(Things(do), things, backoff=Backoff(SECOND * 60, SECOND * 60, least=SECOND * 30))
    async with running(controller):
        await eventually(lambda: _reason_is(things, "x", "INTERNAL"))


async def test_a_phase_that_lasts_too_long_is_overdue_at_its_deadline(things: Database, eventually: Eventually) -> None:
    from prometheus_client import REGISTRY

    async def do(thing: Thing) -> Outcome:
        # Far longer than the deadline: the controller has to look by itself when it passes.
        return Wait("NO_SIGNAL", "waits for a signal", timedelta(hours=1))

    reconciler = Things(do, deadlines={"A": timedelta(seconds=1.5)})
    await add(things, "x")
    async with running(Controller(reconciler, things)):
        await eventually(lambda: any(overdue for _, _, overdue in reconciler.saved))
        await eventually(lambda: _has(things, "x", overdue=True))
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
        await eventually(lambda: _has(things, "x", phase="B", overdue=False))


async def test_no_more_keys_run_at_once_than_there_are_workers(things: Database, eventually: Eventually) -> None:
    now = most = 0
    done: set[str] = set()

    async def do(thing: Thing) -> Outcome:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        done.add(thing.key)
        return Done()

    keys = [f"k{number}" for number in range(20)]
    await add(things, *keys)
    async with running(Controller(Things(do), things, workers=3)):
        await eventually(lambda: done == set(keys))
    assert most == 3


async def test_two_replicas_never_act_on_one_key_at_once(things: Database, eventually: Eventually) -> None:
    acting: dict[str, int] = {}
    collisions: list[str] = []
    looks: dict[str, int] = {}

    async def do(thing: Thing) -> Outcome:
        acting[thing.key] = acting.get(thing.key, 0) + 1
        if acting[thing.key] > 1:
            collisions.append(thing.key)
        await asyncio.sleep(0.005)
        acting[thing.key] -= 1
        looks[thing.key] = looks.get(thing.key, 0) + 1
        return Wait("AGAIN", "", timedelta(milliseconds=1)) if looks[thing.key] < 10 else Done()

    keys = [f"k{number}" for number in range(8)]
    await add(things, *keys)
    async with running(Controller(Things(do), things, workers=4), Controller(Things(do), things, workers=4)):
        for _ in range(20):  # wake-ups from outside while they work
            async with things.transaction(purpose="test: wake") as connection:
                await enqueue(connection, "thing", keys)
        await eventually(lambda: all(looks.get(key, 0) >= 10 for key in keys))
        await eventually(lambda: _empty(things))
    assert collisions == []


async def test_a_due_key_is_claimed_by_one_of_many(things: Database) -> None:
    keys = [f"k{number:02}" for number in range(30)]
    await add(things, *keys)
    claimed: list[str] = []

    async def take(number: int) -> None:
        async with things.connection() as connection:
            for _ in range(10):
                claims = await queue_module.claim(connection, "thing", f"worker-{number}", timedelta(minutes=1), 2)
                claimed.extend(each.key for each in claims)

    await asyncio.gather(*(take(number) for number in range(8)))
    assert sorted(claimed) == keys


async def _empty(db: Database) -> bool:
    async with db.connection() as connection:
        return not bool(await connection.fetchval("SELECT EXISTS (SELECT FROM reconcile_queue)"))


@pytest.mark.parametrize("successor", ["has finished", "is at work"])
async def test_a_worker_that_was_given_up_for_dead_can_no_longer_write(
    things: Database, eventually: Eventually, successor: str
) -> None:
    """The first worker hangs so that it cannot even beat; the second takes over; the first then tries to save."""
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slow(thing: Thing) -> Outcome:
        entered.set()
        await leave.wait()
        return Go("WRITTEN-BY-THE-DEAD")

    taken_over, finish = asyncio.Event(), asyncio.Event()

    async def take_over(thing: Thing) -> Outcome:
        taken_over.set()
        if successor == "is at work":
            await finish.wait()
        return Wait("TAKEN_OVER", "", timedelta(hours=1))

    class Hung(Controller):
        async def _beat(self) -> None:
            for work in self._running.values():
                work.end_alarm()
            await asyncio.Event().wait()

    class NoVersions(Things):
        """Checks no version, so that only the fence stands between the dead and the row."""

        async def save(self, connection: Connection, snapshot: Thing, outcome: Outcome, *, overdue: bool) -> None:
            phase = outcome.phase if isinstance(outcome, Go) else snapshot.phase
            await connection.execute("UPDATE thing SET phase = $2 WHERE key = $1", snapshot.key, phase)
            self.saved.append((snapshot.key, outcome, overdue))

    lease = timedelta(seconds=0.5)
    dead, alive = NoVersions(slow), NoVersions(take_over)
    await add(things, "x")
    hung = Hung(dead, things, lease=lease)
    async with running(hung):
        await entered.wait()
        work = hung._running["x"]
        work.end_alarm()
        async with running(Controller(alive, things)):
            await eventually(taken_over.is_set)
            if successor == "has finished":
                await eventually(lambda: _reason_is(things, "x", "TAKEN_OVER"))
            row = await queue_row(things, "x")
            assert row is not None
            assert row["fence"] > work.held.fence
            leave.set()
            await eventually(lambda: bool(dead.saved), what="the dead one has tried to save")
            await eventually(lambda: not work.runs)
            assert await phase_of(things, "x") == "A"
            finish.set()
            await eventually(lambda: _reason_is(things, "x", "TAKEN_OVER"))
    assert await phase_of(things, "x") == "A"
    async with things.connection() as connection:
        lines = await read_history(connection, "thing", "x")
    assert [line.reason for line in lines] == ["TAKEN_OVER"]


async def test_a_worker_that_cannot_prolong_its_lease_stops_before_it_ends(
    things: Database, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = asyncio.Event()
    entered = asyncio.Event()

    async def do(thing: Thing) -> Outcome:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    async def unreachable(*_: object) -> set[str]:
        raise OSError("no route to the database")

    monkeypatch.setattr(queue_module, "renew", unreachable)
    await add(things, "x")
    async with running(Controller(Things(do), things, workers=1, lease=SECOND)):
        await entered.wait()
        await eventually(cancelled.is_set)
        row = await queue_row(things, "x")
        assert row is not None
        async with things.connection() as connection:
            left = await connection.fetchval("SELECT ready_at - clock_timestamp() FROM reconcile_queue WHERE key = 'x'")
        assert left > timedelta(0), "it stopped before another may take the key"


async def test_a_long_act_keeps_its_key_by_beating(things: Database, eventually: Eventually) -> None:
    looks = 0

    async def do(thing: Thing) -> Outcome:
        nonlocal looks
        looks += 1
        await asyncio.sleep(1.5)
        return Done()

    await add(things, "x")
    lease = timedelta(seconds=0.5)
    async with running(Controller(Things(do), things, lease=lease), Controller(Things(do), things, lease=lease)):
        await eventually(lambda: _gone(things, "x"))
    assert looks == 1


WORKER = """
import asyncio, sys
from datetime import timedelta
sys.path.insert(0, sys.argv[2])
from test_controller import Things, Thing
from metal_kit.controller import Controller
from metal_kit.db import Database

async def act(thing):
    print("acting", flush=True)
    await asyncio.sleep(600)

async def main():
    db = await Database.open(sys.argv[1], "kit")
    await Controller(Things(act), db, lease=timedelta(seconds=1)).run(asyncio.Event())

asyncio.run(main())
"""


async def test_the_key_of_a_killed_process_is_taken_over(
    things: Database, kit_url: str, eventually: Eventually
) -> None:
    await add(things, "x")
    command = [sys.executable, "-c", WORKER, kit_url, str(Path(__file__).parent)]
    victim = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert victim.stdout is not None
    async with asyncio.timeout(30):
        assert await victim.stdout.readline() == b"acting\n"
    before = await queue_row(things, "x")
    assert before is not None
    victim.kill()
    await victim.wait()

    async def do(thing: Thing) -> Outcome:
        return Wait("ALIVE", "", timedelta(hours=1))

    async with running(Controller(Things(do), things, lease=SECOND)):
        await eventually(lambda: _reason_is(things, "x", "ALIVE"), seconds=10)
    after = await queue_row(things, "x")
    assert after is not None
    assert after["fence"] > before["fence"]


async def test_stopping_waits_for_running_work_and_gives_back_what_does_not_end(
    things: Database, eventually: Eventually
) -> None:
    ended: list[str] = []
    entered: set[str] = set()

    async def do(thing: Thing) -> Outcome:
        entered.add(thing.key)
        await asyncio.sleep(0.2 if thing.key == "short" else 600)
        ended.append(thing.key)
        return Done()

    await add(things, "short", "long")
    async with running(Controller(Things(do), things, drain=timedelta(seconds=1))):
        await eventually(lambda: entered == {"short", "long"})
    assert ended == ["short"]
    assert await queue_row(things, "short") is None
    row = await queue_row(things, "long")
    assert row is not None
    assert row["holder"] is None, "the next replica need not wait for the lease"
    async with things.connection() as connection:
        assert await connection.fetchval("SELECT ready_at <= clock_timestamp() FROM reconcile_queue WHERE key = 'long'")


async def test_a_due_key_that_is_locked_is_not_asked_for_in_a_busy_loop(
    things: Database, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    asked = 0
    claim = queue_module.claim

    async def counted(*arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        return await claim(*arguments)

    async def do(thing: Thing) -> Outcome:
        seen.append(thing.key)
        return Done()

    monkeypatch.setattr(queue_module, "claim", counted)
    await add(things, "x", queued=False)
    async with running(Controller(Things(do), things)):
        async with things.transaction(purpose="test: queue") as connection:
            await enqueue(connection, "thing", "x", after=timedelta(seconds=0.5))
        async with things.transaction(purpose="test: hold the row until it has been due for a while") as connection:
            await connection.execute("SELECT FROM reconcile_queue WHERE key = 'x' FOR UPDATE")
            await connection.execute("SELECT pg_sleep(0.5)")
            before = asked
            await connection.execute("SELECT pg_sleep(1)")
            assert 1 <= asked - before < 30
            assert seen == []
        await eventually(lambda: seen == ["x"])


async def test_the_sweep_finds_what_nobody_enqueued_and_respects_backoff(
    things: Database, eventually: Eventually
) -> None:
    seen: list[str] = []

    async def do(thing: Thing) -> Outcome:
        seen.append(thing.key)
        return Failed("LATER", "", timedelta(hours=1)) if thing.key == "backs-off" else Go("REST")

    async def rest(thing: Thing) -> Outcome:
        return Done() if thing.phase == "REST" else await do(thing)

    await add(things, "forgotten", "backs-off", queued=False)
    async with running(Controller(SweptThings(rest), things, sweep_every=timedelta(milliseconds=30))):
        await eventually(lambda: sorted(seen) == ["backs-off", "forgotten"])
        await add(things, "later", queued=False)
        await eventually(lambda: "later" in seen)
    assert sorted(seen) == ["backs-off", "forgotten", "later"], "nothing was seen twice"


async def test_the_controller_survives_an_outage_of_the_database(things: Database, eventually: Eventually) -> None:
    seen: list[str] = []

    async def do(thing: Thing) -> Outcome:
        seen.append(thing.key)
        return Done()

    async with running(Controller(Things(do), things)):
        await add(things, "before")
        await eventually(lambda: seen == ["before"])
        for _ in range(3):
            with suppress(Exception):
                async with things.connection() as connection:
                    await connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
        await eventually(lambda: _adds(things, "after"))
        await eventually(lambda: seen == ["before", "after"])


async def _adds(db: Database, key: str) -> bool:
    try:
        await add(db, key)
    except Unavailable:
        return False
    return True


async def test_an_alarm_that_ended_cancels_nothing() -> None:
    work = _Work(queue_module.Claim("x", 1, 0, "", False, timedelta(0)))
    work.task = asyncio.create_task(asyncio.sleep(0.05))
    work.good_until(asyncio.get_running_loop().time() + 0.01)
    work.end_alarm()
    await work.task
