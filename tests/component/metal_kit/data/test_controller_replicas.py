"""Controllers beside each other, and ones that die: claims, fences, takeovers, outages."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import controller_things
import pytest
from controller_things import (
    SECOND,
    Eventually,
    SweptThings,
    Thing,
    Things,
    add,
    adds,
    empty,
    gone,
    phase_of,
    queue_row,
    reason_is,
)
from metal_kit.controller import (
    SHARDS,
    Controller,
    Done,
    Failed,
    Go,
    Outcome,
    Wait,
    enqueue,
    read_history,
    shard_of,
)
from metal_kit.controller import queue as queue_module
from metal_kit.controller.worker import _Work
from metal_kit.db import Connection, Database
from running import running


async def test_no_more_keys_run_at_once_than_there_are_workers(things: Database, eventually: Eventually) -> None:
    now = most = 0
    done: set[str] = set()
    all_at_work = asyncio.Event()

    async def do(thing: Thing) -> Outcome:
        nonlocal now, most
        now += 1
        most = max(most, now)
        if now == 3:
            all_at_work.set()
        # None ends before three have met: on a busy machine the first may be done before the others have begun.
        await all_at_work.wait()
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
        await eventually(lambda: empty(things))
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
                await eventually(lambda: reason_is(things, "x", "TAKEN_OVER"))
            row = await queue_row(things, "x")
            assert row is not None
            assert row["fence"] > work.held.fence
            leave.set()
            await eventually(lambda: bool(dead.saved), what="the dead one has tried to save")
            await eventually(lambda: not work.runs)
            assert await phase_of(things, "x") == "A"
            finish.set()
            await eventually(lambda: reason_is(things, "x", "TAKEN_OVER"))
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
        await asyncio.sleep(3)
        return Done()

    await add(things, "x")
    lease = timedelta(seconds=1)
    async with running(Controller(Things(do), things, lease=lease), Controller(Things(do), things, lease=lease)):
        await eventually(lambda: gone(things, "x"))
    assert looks == 1


WORKER = """
import asyncio, sys
from datetime import timedelta
sys.path.insert(0, sys.argv[2])
from controller_things import Things
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
    command = [sys.executable, "-c", WORKER, kit_url, str(Path(controller_things.__file__).parent)]
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
        await eventually(lambda: reason_is(things, "x", "ALIVE"), seconds=10)
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
        await eventually(lambda: adds(things, "after"))
        await eventually(lambda: seen == ["before", "after"])


async def test_an_alarm_that_ended_cancels_nothing() -> None:
    work = _Work(queue_module.Claim("x", 1, 0, "", False, timedelta(0)))
    work.task = asyncio.create_task(asyncio.sleep(0.05))
    work.good_until(asyncio.get_running_loop().time() + 0.01)
    work.end_alarm()
    await work.task


async def test_replicas_with_shards_of_their_own_leave_the_others_keys_alone(
    things: Database, eventually: Eventually
) -> None:
    keys = [f"key-{number}" for number in range(40)]
    done: dict[str, set[str]] = {"even": set(), "odd": set()}

    def controller(name: str, rest: int) -> Controller:
        async def do(thing: Thing) -> Outcome:
            done[name].add(thing.key)
            return Done()

        shards = range(rest, SHARDS, 2)
        return Controller(Things(do), things, workers=4, shards=lambda: shards)

    await add(things, *keys)
    async with running(controller("even", 0)):
        await eventually(lambda: len(done["even"]) == sum(shard_of(key) % 2 == 0 for key in keys))
        async with running(controller("odd", 1)):
            await eventually(lambda: empty(things))
    assert {key for key in keys if shard_of(key) % 2 == 0} == done["even"]
    assert {key for key in keys if shard_of(key) % 2 == 1} == done["odd"]
