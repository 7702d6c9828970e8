"""BMCs that do not answer: what they cost the others, when they are tried again, and what people are told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from metal_sim.bmc import PowerAction, SimulatedBmc
from metalplane.bmc.v1 import bmc_pb2 as pb
from metalplane.common.v1.condition_pb2 import Condition

NewBmc = Callable[..., Awaitable[SimulatedBmc]]
Eventually = Callable[..., Awaitable[None]]
CHASSIS_STATUS = (0, 1)
SILENT = "SELECT FROM endpoint WHERE silent_since IS NOT NULL"


async def shown(plane: Any, bmc: SimulatedBmc) -> pb.Bmc:
    answer: pb.Bmc = await plane.stub("viewer").GetBmc(pb.GetBmcRequest(machine=bmc.machine))
    return answer


async def condition(plane: Any, bmc: SimulatedBmc, name: str) -> Condition:
    return next(each for each in (await shown(plane, bmc)).conditions if each.type == name)


async def failures(plane: Any) -> dict[str, int]:
    return {row["machine"]: row["failures"] for row in await plane.rows("SELECT machine::text, failures FROM endpoint")}


@pytest.fixture
async def dead(plane: Any, new_bmc: NewBmc, eventually: Eventually) -> SimulatedBmc:
    """A BMC that has been found unreachable, and is not asked by itself for a while."""
    await plane.start(poll_seconds=0.2, exchange_seconds=0.5)
    bmc = await new_bmc(powered=True)
    bmc.faults.switch_on("hang")
    await plane.register(bmc)
    await eventually(lambda: plane.rows(SILENT), seconds=30)
    await plane.rows("UPDATE endpoint SET poll_at = now() + interval '1 h'")
    return bmc


async def test_forty_dead_bmcs_do_not_delay_two_hundred_living_ones(
    plane: Any, new_bmc: NewBmc, eventually: Eventually
) -> None:
    await plane.start(poll_seconds=0.5, exchange_seconds=1, polls_at_once=16)
    gone = [await new_bmc() for _ in range(40)]
    living = [await new_bmc(powered=True) for _ in range(200)]
    for bmc in gone:
        bmc.faults.switch_on("hang")
    stub = plane.stub()
    for bmc in (*gone, *living):
        host, port = bmc.address
        message = pb.Bmc(machine=bmc.machine, partition="fra1", address=f"{host}:{port}", user="metal")
        message.password = "pw-Tr0ub4dor-do-leak"
        await stub.RegisterBmc(pb.RegisterBmcRequest(bmc=message))
    await eventually(lambda: _count(plane, SILENT, 40), seconds=60)
    await eventually(lambda: _count(plane, "SELECT FROM endpoint WHERE inspected_at IS NOT NULL", 200), seconds=60)
    tried, answered = await failures(plane), {bmc.machine: bmc.seen[CHASSIS_STATUS] for bmc in living}
    await eventually(lambda: all(bmc.seen[CHASSIS_STATUS] >= answered[bmc.machine] + 5 for bmc in living), seconds=60)
    again = await failures(plane)
    # A thousand polls of the living, and meanwhile a few probes.
    assert sum(again[bmc.machine] - tried[bmc.machine] for bmc in gone) <= 2 * len(gone)
    assert not any(again[bmc.machine] for bmc in living)


async def _count(plane: Any, query: str, wanted: int) -> bool:
    return len(await plane.rows(query)) == wanted


async def test_an_unreachable_bmc_is_a_condition_with_its_reason(plane: Any, dead: SimulatedBmc) -> None:
    reachable = await condition(plane, dead, "Reachable")
    assert (reachable.status, reachable.reason) == (False, "TIMEOUT")
    assert "exchanges in a row" in reachable.message
    assert reachable.HasField("transition_time")
    seen = await shown(plane, dead)
    assert seen.failures >= 3
    assert seen.next_poll_time.ToDatetime() > seen.update_time.ToDatetime()


async def test_a_persons_order_is_the_probe_and_fails_after_one_try(plane: Any, dead: SimulatedBmc) -> None:
    before = (await failures(plane))[dead.machine]
    ended = await plane.command(dead, "POWER_OFF")
    assert (ended.state, ended.reason) == (pb.COMMAND_STATE_FAILED, "UNREACHABLE")
    assert "has not answered since" in ended.error
    assert (await failures(plane))[dead.machine] == before + 1


async def test_an_order_that_gets_through_closes_the_circuit(plane: Any, dead: SimulatedBmc) -> None:
    dead.faults.clear()
    assert (await plane.command(dead, "POWER_OFF")).state == pb.COMMAND_STATE_SUCCEEDED
    assert (await condition(plane, dead, "Reachable")).status
    # And it is polled again like any other, not after the hour that was left.
    assert await plane.rows("SELECT FROM endpoint WHERE silent_since IS NULL AND poll_at < now() + interval '1 min'")


async def test_inventory_hears_of_an_unreachable_bmc_and_that_it_is_back(
    plane: Any, new_bmc: NewBmc, eventually: Eventually
) -> None:
    await plane.start(poll_seconds=0.2, exchange_seconds=2)
    bmc = await new_bmc(powered=True)
    await plane.register(bmc)
    await eventually(lambda: plane.inventory.reports.get(bmc.machine))
    bmc.faults.switch_on("hang")

    def told() -> str:
        return str(plane.inventory.reports[bmc.machine][-1].bmc.fault.reason)

    await eventually(lambda: told() == "UNREACHABLE", seconds=60)
    assert plane.inventory.reports[bmc.machine][-1].bmc.fault.HasField("since")
    bmc.faults.clear()
    await plane.rows("UPDATE endpoint SET poll_at = now()")
    await eventually(lambda: told() == "", seconds=30)


async def test_desired_power_waits_for_the_bmc_to_answer_and_then_is_enforced(
    plane: Any, dead: SimulatedBmc, eventually: Eventually
) -> None:
    tries = (await failures(plane))[dead.machine]
    wanted = pb.Bmc(machine=dead.machine, desired_power=pb.POWER_OFF)
    await plane.stub().UpdateBmc(pb.UpdateBmcRequest(bmc=wanted))
    await eventually(lambda: plane.rows("SELECT FROM endpoint WHERE wish_reason = 'UNREACHABLE'"))
    assert (await failures(plane))[dead.machine] == tries
    dead.faults.clear()
    await plane.rows("UPDATE endpoint SET poll_at = now()")
    await eventually(lambda: dead.chassis.history == [PowerAction.OFF], seconds=30)


async def test_full_session_slots_are_given_a_minute(plane: Any, new_bmc: NewBmc, eventually: Eventually) -> None:
    await plane.start(poll_seconds=0.2, exchange_seconds=1)
    bmc = await new_bmc()
    bmc.faults.switch_on("slots-full")
    await plane.register(bmc)
    await eventually(lambda: plane.rows("SELECT FROM endpoint WHERE error_reason = 'SESSIONS_FULL'"))
    assert await plane.rows("SELECT FROM endpoint WHERE poll_at > now() + interval '50 s' AND silent_since IS NULL")


async def test_machines_of_a_rack_are_switched_on_a_few_at_a_time_by_all_replicas(
    plane: Any, new_bmc: NewBmc, eventually: Eventually
) -> None:
    pace = {"rack_power_ons": 2, "rack_power_seconds": 2}
    await plane.start(**pace)
    await plane.start(**pace)
    loop, times = asyncio.get_running_loop(), list[float]()
    fleet = [await new_bmc(on_power=lambda _action: times.append(loop.time())) for _ in range(6)]
    for bmc in fleet:
        await plane.register(bmc, rack="r1")
    # Or the orders would wait for who is logging in just then.
    await eventually(lambda: _count(plane, "SELECT FROM endpoint WHERE inspected_at IS NOT NULL", 6), seconds=30)
    stub = plane.stub("")
    given = [
        await stub.CreateCommand(pb.CreateCommandRequest(machine=bmc.machine, action=pb.COMMAND_ACTION_POWER_ON))
        for bmc in fleet
    ]
    for command in given:
        assert (await plane.ended(command.id)).state == pb.COMMAND_STATE_SUCCEEDED
    assert len(times) == 6
    # Orders take a moment from the count to the BMC; without a limit all would be there in it.
    assert all(later - earlier > 1 for earlier, later in zip(sorted(times), sorted(times)[2:], strict=False))


async def test_a_power_wish_tells_how_it_goes(plane: Any, new_bmc: NewBmc, eventually: Eventually) -> None:
    await plane.start(poll_seconds=0.2)
    bmc = await new_bmc(powered=True)
    bmc.faults.switch_on("does-nothing")
    made = await plane.register(bmc, desired_power=pb.POWER_OFF)
    assert (made.power_wish.generation, made.power_wish.observed_generation) == (1, 0)
    assert made.power_wish.deadline.ToDatetime() - made.create_time.ToDatetime() == timedelta(minutes=10)
    await eventually(lambda: plane.rows("SELECT FROM endpoint WHERE wish_attempts > 0"))
    wish = (await shown(plane, bmc)).power_wish
    assert (wish.reason, wish.observed_generation) == ("NOT_REACHED", 0)
    assert not (await condition(plane, bmc, "PowerAsDesired")).status
    bmc.faults.clear()
    await eventually(lambda: plane.rows("SELECT FROM endpoint WHERE wish_seen = 1"), seconds=30)
    assert (await condition(plane, bmc, "PowerAsDesired")).status
    changed = await plane.stub().UpdateBmc(
        pb.UpdateBmcRequest(bmc=pb.Bmc(machine=bmc.machine, desired_power=pb.POWER_ON))
    )
    assert (changed.power_wish.generation, changed.power_wish.attempts) == (2, 0)


@pytest.mark.parametrize("policy", [pb.POWER_POLICY_OBSERVE, pb.POWER_POLICY_MAINTENANCE])
async def test_a_wish_that_is_not_to_be_enforced_is_only_shown(
    plane: Any, new_bmc: NewBmc, eventually: Eventually, policy: pb.PowerPolicy.ValueType
) -> None:
    await plane.start(poll_seconds=0.1)
    bmc = await new_bmc(powered=True)
    await plane.register(bmc, desired_power=pb.POWER_OFF, power_policy=policy)
    await eventually(lambda: bmc.seen[CHASSIS_STATUS] >= 4, seconds=30)
    assert bmc.chassis.history == []
    differs = await condition(plane, bmc, "PowerAsDesired")
    assert (differs.status, differs.reason) == (False, pb.PowerPolicy.Name(policy).removeprefix("POWER_POLICY_"))
    enforced = pb.Bmc(machine=bmc.machine, power_policy=pb.POWER_POLICY_ENFORCE)
    await plane.stub().UpdateBmc(pb.UpdateBmcRequest(bmc=enforced))
    await eventually(lambda: bmc.chassis.history == [PowerAction.OFF])
