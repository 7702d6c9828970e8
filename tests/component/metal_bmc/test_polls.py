"""Polls of a fleet: what has not changed is written in one go, and the dead do not hold up the living."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network
from typing import Any

import asyncpg
from metal_bmc.endpoint import Endpoint
from metal_bmc.sharing import Tenure
from metal_bmc.store import EndpointStore, ScheduleStore, Unchanged
from metal_sim.bmc import BmcFarm, SimulatedBmc
from metalplane.bmc.v1 import bmc_pb2 as pb

NewBmc = Callable[..., Awaitable[SimulatedBmc]]
Eventually = Callable[..., Awaitable[None]]
PASSWORD = "pw-Tr0ub4dor-do-leak"
STATUS = (0, 1)


async def test_answers_that_say_the_same_are_on_record_without_an_event(
    plane: Any, new_bmc: NewBmc, eventually: Eventually
) -> None:
    await plane.start(poll_seconds=0.2)
    bmcs = [await new_bmc(powered=True) for _ in range(5)]
    for bmc in bmcs:
        await plane.register(bmc)
    await eventually(lambda: all(bmc.seen[STATUS] >= 4 for bmc in bmcs), seconds=30)
    began = datetime.now(UTC)
    seen_since = "SELECT FROM endpoint WHERE observed_at > $1 AND reported_on AND poll_at < now() + interval '5 s'"

    async def all_seen() -> bool:
        return len(await plane.rows(seen_since, began)) == len(bmcs)

    await eventually(all_seen, seconds=30)
    # One of its registration, one of the first answer.
    assert len(await plane.rows("SELECT FROM change WHERE entity = 'bmc'")) == 2 * len(bmcs)


async def test_what_was_seen_before_a_change_does_not_overwrite_it(plane: Any, new_bmc: NewBmc) -> None:
    await plane.start()
    registered = [await new_bmc() for _ in range(4)]
    for bmc in registered:
        await plane.register(bmc)
    connection = await asyncpg.connect(plane.database_url, server_settings={"search_path": "bmc"})
    await connection.set_type_codec("jsonb", encoder=str, decoder=lambda _text: {}, schema="pg_catalog")
    await connection.execute("UPDATE endpoint SET observed_at = now() - interval '1 hour', poll_at = now()")
    rows = [await EndpointStore().get(connection, bmc.machine) for bmc in registered]
    known: list[Endpoint] = [row for row in rows if row is not None]
    await connection.execute("UPDATE endpoint SET revision = revision + 1 WHERE machine = $1", known[0].machine)
    await connection.execute("UPDATE endpoint SET version = version + 1 WHERE machine = $1", known[1].machine)
    now = datetime.now(UTC)
    answers = [Unchanged(each, Tenure(1, 1), now, timedelta(minutes=1)) for each in (*known[:2], known[3])]
    answers.append(Unchanged(known[2], Tenure(1, 1), now - timedelta(hours=2), timedelta(minutes=1)))
    await ScheduleStore().unchanged(connection, answers)
    written = await connection.fetch("SELECT machine::text FROM endpoint WHERE observed_at = $1", now)
    assert [row["machine"] for row in written] == [known[3].machine]
    waits = await connection.fetchval("SELECT poll_at - now() FROM endpoint WHERE machine = $1", known[3].machine)
    assert timedelta(seconds=50) < waits <= timedelta(minutes=1)
    assert await connection.fetchval("SELECT count(*) FROM endpoint WHERE poll_at > now()") == 1
    await connection.close()


async def test_dead_bmcs_do_not_hold_up_the_living(plane: Any, eventually: Eventually) -> None:
    farm = BmcFarm(IPv4Network("127.81.0.0/24"))
    farm.fill(40, password=PASSWORD, powered=True)
    farm.start()
    dead, living = list(farm)[:30], list(farm)[30:]
    for bmc in dead:
        bmc.faults.switch_on("hang")
    # Two places, and each dead BMC would take one for half a minute.
    await plane.start(poll_seconds=1, polls_at_once=2, exchange_seconds=30)
    for bmc in farm:
        await plane.register(bmc)
    await eventually(lambda: all(bmc.seen[STATUS] >= 3 for bmc in living), seconds=60)
    assert [bmc.logins.succeeded for bmc in dead] == [0] * len(dead)
    assert not await plane.rows("SELECT FROM endpoint WHERE failures > 0 AND reported_on")
    seen = await plane.stub().GetBmc(pb.GetBmcRequest(machine=living[0].machine))
    assert (seen.reported_power, seen.error) == (pb.POWER_ON, "")
    farm.stop()
