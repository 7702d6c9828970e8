"""Replicas beside each other over one fleet: one owner a BMC, taking and handing over, writes that come too late."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from metal_bmc.ownership import NotOwner, Ownership
from metal_kit.controller import SHARDS, shard_of
from metal_kit.db import Database
from metal_sim.bmc import PowerAction, SimulatedBmc
from metalplane.bmc.v1 import bmc_pb2 as pb

NewBmc = Callable[..., Awaitable[SimulatedBmc]]
Eventually = Callable[..., Awaitable[None]]
HOLDERS = "SELECT holder, count(*) FROM bucket WHERE expires_at > now() GROUP BY holder"
CHASSIS_STATUS, CHASSIS_CONTROL = (0, 1), (0, 2)
LONG = {"owner_seconds": 300}


async def shared_by(plane: Any, replicas: int) -> bool:
    rows = await plane.rows(HOLDERS)
    return len(rows) == replicas and sum(row["count"] for row in rows) == SHARDS


async def steal(plane: Any, machine: str) -> None:
    """Give the machine's bucket to a replica that the test makes up, as if ours had been silent for too long."""
    await plane.rows(
        "UPDATE bucket SET holder = 'another', fence = nextval('bucket_fence'), expires_at = now() + interval '1 h' "
        "WHERE number = $1",
        shard_of(machine),
    )


async def give_back(plane: Any) -> None:
    await plane.rows("UPDATE bucket SET expires_at = now() WHERE holder = 'another'")
    await plane.rows("SELECT pg_notify('metalplane_bmc', 'owners:fra1')")


async def test_two_replicas_share_a_fleet_and_each_bmc_is_asked_by_one(
    plane: Any, new_bmc: NewBmc, eventually: Eventually
) -> None:
    first = await plane.start(**LONG, poll_seconds=0.2)
    await plane.start(**LONG, poll_seconds=0.2)
    await eventually(lambda: shared_by(plane, 2))
    fleet = [await new_bmc(powered=True) for _ in range(12)]
    for bmc in fleet:
        await plane.register(bmc)
    await eventually(lambda: all(bmc.seen[CHASSIS_STATUS] >= 4 for bmc in fleet), seconds=30)
    # A session is kept by whoever logged in; a second replica would need one of its own, beside that for the FRU.
    assert {bmc.logins.succeeded for bmc in fleet} == {2}
    # Whichever replica is asked, the owner does it.
    for replica in (plane.running, first):
        plane.running = replica
        for bmc in fleet[:4]:
            ended = await plane.command(bmc, "CYCLE")
            assert ended.state == pb.COMMAND_STATE_SUCCEEDED
    assert [bmc.chassis.history for bmc in fleet[:4]] == [[PowerAction.OFF, PowerAction.ON] * 2] * 4
    assert {bmc.logins.succeeded for bmc in fleet} == {2}


async def test_a_replica_that_stops_hands_over_at_once_and_has_logged_out(
    plane: Any, new_bmc: NewBmc, eventually: Eventually
) -> None:
    bmc = await new_bmc(powered=True)
    first = await plane.start(**LONG)
    await plane.register(bmc)
    await eventually(lambda: bmc.seen[CHASSIS_STATUS])
    second = await plane.start(**LONG)
    await eventually(lambda: shared_by(plane, 2))
    await first.stop(5)
    await eventually(lambda: shared_by(plane, 1))
    assert (await plane.command(bmc, "POWER_OFF")).state == pb.COMMAND_STATE_SUCCEEDED
    await second.stop(5)
    assert bmc.active_sessions == 0
    assert await plane.rows("SELECT FROM replica") == []


async def test_what_a_replica_was_at_when_it_lost_the_bmc_is_not_written(
    plane: Any, new_bmc: NewBmc, eventually: Eventually
) -> None:
    bmc = await new_bmc(powered=True)
    await plane.start(**LONG)
    bmc.faults.switch_on("slow", 0.5)
    await plane.register(bmc)
    given = await plane.stub("").CreateCommand(
        pb.CreateCommandRequest(machine=bmc.machine, action=pb.COMMAND_ACTION_POWER_OFF)
    )
    await eventually(lambda: bmc.seen[CHASSIS_STATUS])
    await steal(plane, bmc.machine)
    bmc.faults.clear()
    # The answer is there, and so is the end of the step; the owner that is not one any more keeps them to itself.
    await eventually(lambda: plane.rows("SELECT FROM reconcile_queue WHERE holder IS NULL"))
    assert await plane.rows("SELECT FROM endpoint WHERE observed_at IS NOT NULL") == []
    assert [row["step"] for row in await plane.rows("SELECT step FROM command")] == [0]
    assert bmc.chassis.powered
    await give_back(plane)
    assert (await plane.ended(given.id)).state == pb.COMMAND_STATE_SUCCEEDED
    assert bmc.chassis.history == [PowerAction.OFF]


async def test_a_reset_is_not_sent_by_a_replica_that_has_lost_the_bmc(
    plane: Any, new_bmc: NewBmc, eventually: Eventually
) -> None:
    bmc = await new_bmc(powered=True)
    await plane.start(**LONG)
    bmc.faults.switch_on("slow", 0.3)
    await plane.register(bmc)
    given = await plane.stub("").CreateCommand(
        pb.CreateCommandRequest(machine=bmc.machine, action=pb.COMMAND_ACTION_RESET)
    )
    await eventually(lambda: plane.rows("SELECT FROM command WHERE step = 1"), seconds=30)
    await steal(plane, bmc.machine)
    await eventually(lambda: plane.rows("SELECT FROM reconcile_queue WHERE holder IS NULL"))
    assert bmc.seen[CHASSIS_CONTROL] == 0
    assert await plane.rows("SELECT FROM command WHERE sent_at IS NOT NULL") == []
    await give_back(plane)
    assert (await plane.ended(given.id)).state == pb.COMMAND_STATE_SUCCEEDED
    assert bmc.chassis.history == [PowerAction.RESET]


async def test_a_wrong_password_is_tried_exactly_twice_by_all_replicas_together(
    plane: Any, new_bmc: NewBmc, eventually: Eventually
) -> None:
    first = await plane.start(**LONG, poll_seconds=0.05)
    second = await plane.start(**LONG, poll_seconds=0.05)
    await eventually(lambda: shared_by(plane, 2))
    fleet = [await new_bmc() for _ in range(6)]
    for bmc in fleet:
        bmc.faults.switch_on("wrong-password")
        await plane.register(bmc)
    for replica in (first, second):
        plane.running = replica
        for bmc in fleet:
            assert (await plane.command(bmc, "POWER_ON")).reason in ("AUTH_FAILED", "LOGIN_BLOCKED")
    # A handover does not begin a new account either.
    await first.stop(5)
    plane.running = second
    await eventually(lambda: shared_by(plane, 1))
    for bmc in fleet:
        assert (await plane.command(bmc, "POWER_ON")).reason == "LOGIN_BLOCKED"
    assert {bmc.logins.started for bmc in fleet} == {2}


@pytest.fixture
async def db(plane: Any) -> Any:
    opened = await Database.open(plane.database_url, "bmc")
    yield opened
    await opened.close()


def ownership(db: Database, seconds: float) -> Ownership:
    return Ownership(db, partition="fra1", lease=timedelta(seconds=seconds))


async def test_a_replica_that_cannot_renew_stops_asking_before_another_may_begin(db: Database) -> None:
    silent, other = ownership(db, 1), ownership(db, 1)
    await silent.start()

    async def hang() -> None:
        async with silent.using("m"):
            await other.start()
            assert not other.owns("m")
            await asyncio.Event().wait()

    async with asyncio.timeout(5):
        with pytest.raises(NotOwner):
            await hang()
    assert not silent.owns("m")
    assert silent.buckets() == []
    # A fifth of the lease is left then.
    await other.start()
    assert not other.owns("m")
    async with asyncio.timeout(5):
        while not other.owns("m"):
            await other.start()
    await silent.start()
    assert not silent.owns("m")


async def test_a_bucket_is_handed_over_when_what_is_under_way_has_ended(db: Database) -> None:
    old, new = ownership(db, 60), ownership(db, 60)
    await old.start()
    await new.start()
    machine = next(name for name in map(str, range(1000)) if shard_of(name) in new._share[1])
    async with old.using(machine):
        await old.start()
        assert not old.owns(machine)
        await new.start()
        assert not new.owns(machine)
    await old.start()
    await new.start()
    assert new.owns(machine)
    assert not old.owns(machine)
    assert len(old.buckets()) + len(new.buckets()) == SHARDS


async def test_without_the_fence_nothing_is_proved(db: Database) -> None:
    old, new = ownership(db, 60), ownership(db, 60)
    await old.start()
    tenure = old.tenure("m")
    await old.release()
    await new.start()
    async with db.transaction(purpose="test") as connection:
        await new.check(connection, new.tenure("m"))
        with pytest.raises(NotOwner):
            await old.check(connection, tenure)
        with pytest.raises(NotOwner):
            await new.check(connection, tenure)
