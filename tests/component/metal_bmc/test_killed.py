"""Processes of the service that are killed (SIGKILL) between the steps of a command: another takes over within the time
that is promised, and nothing is repeated that must not be, nor forgotten."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from metal_kit import identity
from metal_kit.controller import shard_of
from metal_sim.bmc import PowerAction, SimulatedBmc
from metalplane.bmc.v1 import bmc_pb2 as pb

NewBmc = Callable[..., Awaitable[SimulatedBmc]]
Eventually = Callable[..., Awaitable[None]]
Spawn = Callable[[], Awaitable[Any]]
OWNER_SECONDS = 3
# A lease and a third, and a second in which it is noticed; the machine that the tests run on may be busy.
TAKEN_OVER = OWNER_SECONDS * 4 / 3 + 1 + 10


@pytest.fixture
async def spawn(plane: Any, new_identity: Any, eventually: Eventually) -> AsyncIterator[Spawn]:
    """Starts one more replica in a process of its own, and waits until it has its buckets."""
    async with AsyncExitStack() as stack:

        async def begin() -> Any:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{probe.getsockname()[1]}"
            mine = new_identity(identity.partition_agent_id("fra1", "bmc"), dns=["bmc.metalplane"])
            settings = {
                "LISTEN": address, "DATABASE_URL": plane.database_url, "LOG_LEVEL": "error", "PARTITION": "fra1",
                "PEERS": ",".join(f"{name}={at}" for name, at in plane.peers.items()), "CREDENTIAL_KEYS": plane.keys,
                "TLS_CA": str(mine.ca), "TLS_CERT": str(mine.cert), "TLS_KEY": str(mine.key),
                "OWNER_SECONDS": str(OWNER_SECONDS), "REST_SECONDS": "0.2", "GAP_SECONDS": "0", "EXCHANGE_SECONDS": "3",
            }  # fmt: skip
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "metal_bmc",
                env=os.environ | {f"METALPLANE_{name}": value for name, value in settings.items()},
                stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip

            async def kill() -> None:
                if process.returncode is None:
                    process.kill()
                await process.wait()

            stack.push_async_callback(kill)
            await eventually(lambda: plane.rows("SELECT FROM bucket WHERE expires_at > now()"), seconds=60)
            return process

        yield begin


async def bmc_of_worker(plane: Any, new_bmc: NewBmc, spawn: Spawn, eventually: Eventually) -> tuple[SimulatedBmc, Any]:
    """A BMC that a replica in another process owns, while one in this process has the rest; and that process."""
    worker = await spawn()
    (theirs,) = await plane.rows("SELECT id FROM replica")
    await plane.start(owner_seconds=OWNER_SECONDS, rest_seconds=0.2)
    await eventually(lambda: plane.rows("SELECT FROM bucket WHERE holder <> $1 AND expires_at > now()", theirs["id"]))
    await eventually(lambda: _settled(plane), seconds=30)
    numbers = {row["number"] for row in await plane.rows("SELECT number FROM bucket WHERE holder = $1", theirs["id"])}
    machine = next(name for name in (str(uuid.uuid4()) for _ in range(1000)) if shard_of(name) in numbers)
    return await new_bmc(powered=True, machine=machine), worker


async def _settled(plane: Any) -> bool:
    rows = await plane.rows("SELECT holder FROM bucket WHERE expires_at > now() GROUP BY holder HAVING count(*) > 64")
    return len(rows) == 2


async def end_of(plane: Any, bmc: SimulatedBmc, worker: Any, action: str) -> tuple[pb.Command, float]:
    """The end of a command that its owner does not survive, and the seconds from the owner's death to it."""
    await plane.register(bmc)
    value = pb.CommandAction.Value(f"COMMAND_ACTION_{action}")
    given = await plane.stub("").CreateCommand(pb.CreateCommandRequest(machine=bmc.machine, action=value))
    async with asyncio.timeout(60):
        await worker.wait()
    died = asyncio.get_running_loop().time()
    return await plane.ended(given.id), asyncio.get_running_loop().time() - died


@pytest.mark.parametrize("die", [PowerAction.OFF, PowerAction.ON])
async def test_a_cycle_whose_owner_is_killed_is_neither_repeated_nor_forgotten(
    plane: Any, new_bmc: NewBmc, spawn: Spawn, die: PowerAction, eventually: Eventually
) -> None:
    bmc, worker = await bmc_of_worker(plane, new_bmc, spawn, eventually)

    def on_power(done: PowerAction) -> None:
        if done is die and worker.returncode is None:
            worker.kill()

    bmc.chassis.on_power = on_power
    ended, took = await end_of(plane, bmc, worker, "CYCLE")
    assert ended.state == pb.COMMAND_STATE_SUCCEEDED
    # "Be off" and "be on" may be said again, and switch nothing then.
    assert bmc.chassis.history == [PowerAction.OFF, PowerAction.ON]
    assert took < TAKEN_OVER


async def test_a_reset_whose_owner_is_killed_is_not_sent_again(
    plane: Any, new_bmc: NewBmc, spawn: Spawn, eventually: Eventually
) -> None:
    bmc, worker = await bmc_of_worker(plane, new_bmc, spawn, eventually)

    def on_power(_done: PowerAction) -> None:
        if worker.returncode is None:
            worker.kill()

    bmc.chassis.on_power = on_power
    ended, took = await end_of(plane, bmc, worker, "RESET")
    assert (ended.state, ended.reason) == (pb.COMMAND_STATE_FAILED, "OUTCOME_UNKNOWN")
    assert bmc.chassis.history == [PowerAction.RESET]
    assert took < TAKEN_OVER
