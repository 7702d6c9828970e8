"""Following commands while they are carried out."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from metal_kit.errors import InvalidArgument, NotFound
from metal_sim.bmc import SimulatedBmc
from metalplane.bmc.v1 import bmc_pb2 as pb

NewBmc = Callable[..., Awaitable[SimulatedBmc]]
PENDING, RUNNING = pb.COMMAND_STATE_PENDING, pb.COMMAND_STATE_RUNNING


@pytest.fixture
async def bmc(plane: Any, new_bmc: NewBmc) -> SimulatedBmc:
    await plane.start()
    simulated = await new_bmc(powered=True)
    await plane.register(simulated)
    return simulated


async def until_ended(watch: Any, command: str) -> tuple[list[pb.CommandState.ValueType], str]:
    """The states that the watch tells of the command, and the position after the last."""
    states: list[pb.CommandState.ValueType] = []
    async with asyncio.timeout(30):
        async for batch in watch:
            for each in batch.commands:
                assert each.id == command
                states.append(each.state)
                if each.state not in (PENDING, RUNNING):
                    return states, batch.position
    raise AssertionError("the watch ended before the command")


async def test_a_watch_tells_when_a_command_is_given_begun_and_ended(
    plane: Any, bmc: SimulatedBmc, new_bmc: NewBmc
) -> None:
    other, stub = await new_bmc(powered=True), plane.stub("viewer")
    await plane.register(other)
    watch = aiter(stub.WatchCommands(pb.WatchCommandsRequest(machine=bmc.machine)))
    first = await anext(watch)
    assert first.position
    await plane.command(other, "CYCLE")
    ended = await plane.command(bmc, "CYCLE")
    states, position = await until_ended(watch, ended.id)
    assert states == [PENDING, RUNNING, pb.COMMAND_STATE_SUCCEEDED]
    # From a position on, only what came later; and the same again from the position before.
    again, _ = await until_ended(
        stub.WatchCommands(pb.WatchCommandsRequest(machine=bmc.machine, position=first.position)), ended.id
    )
    assert again == states
    later = await plane.command(bmc, "IDENTIFY_ON")
    states, _ = await until_ended(
        stub.WatchCommands(pb.WatchCommandsRequest(machine=bmc.machine, position=position)), later.id
    )
    assert states[0] == PENDING
    assert states[-1] == pb.COMMAND_STATE_SUCCEEDED


async def test_a_watch_of_one_command_begins_with_it(plane: Any, bmc: SimulatedBmc) -> None:
    ended = await plane.command(bmc, "RESET")
    watch = plane.stub("viewer").WatchCommands(pb.WatchCommandsRequest(command=ended.id))
    assert list((await anext(aiter(watch))).commands) == [ended]


async def test_bad_watches_are_refused(plane: Any, bmc: SimulatedBmc) -> None:
    stub = plane.stub("viewer")
    for request, error in (
        (pb.WatchCommandsRequest(machine="x"), InvalidArgument),
        (pb.WatchCommandsRequest(position="x"), InvalidArgument),
        (pb.WatchCommandsRequest(command=str(uuid.uuid4())), NotFound),
    ):
        with pytest.raises(error):
            await anext(aiter(stub.WatchCommands(request)))
