"""The driver processes against simulated BMCs: real processes, real UDP, real RMCP+, pyghmi inside."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from metal_bmc.drivers import errors, frames
from metal_bmc.drivers.interface import Target
from metal_bmc.drivers.pool import WorkerPool
from metal_bmc.drivers.pyghmi import PyghmiFru
from metal_sim.bmc import SimulatedBmc

NewBmc = Callable[..., Awaitable[SimulatedBmc]]
MakeTarget = Callable[..., Target]
Eventually = Callable[..., Awaitable[None]]
CHASSIS_CONTROL = (0, 2)
PASSWORD = "pw-Tr0ub4dor-do-leak"


async def test_an_order_that_overruns_its_deadline_costs_its_process_only(
    new_bmc: NewBmc, fru: PyghmiFru, pool: WorkerPool, target: MakeTarget, eventually: Eventually
) -> None:
    slow, quick = await new_bmc(), await new_bmc()
    assert await fru.fru(target(quick), deadline=20)  # a process runs
    slow.faults.switch_on("slow", 60)
    started = time.monotonic()
    late = asyncio.create_task(fru.fru(target(slow), deadline=1.5))
    await eventually(lambda: slow.seen)
    (stuck,) = pool.processes
    assert await fru.fru(target(quick), deadline=20)
    with pytest.raises(errors.BmcTimeout, match=r"within 1\.5 s"):
        await late
    assert time.monotonic() - started < 5
    assert stuck not in pool.processes
    with pytest.raises(ProcessLookupError):
        os.kill(stuck, 0)


async def test_a_killed_driver_process_is_reported_and_replaced(
    new_bmc: NewBmc, fru: PyghmiFru, pool: WorkerPool, target: MakeTarget, eventually: Eventually
) -> None:
    bmc = await new_bmc()
    bmc.faults.switch_on("slow", 60)
    order = asyncio.create_task(fru.fru(target(bmc), deadline=20))
    await eventually(lambda: bmc.seen)
    os.kill(pool.processes[0], signal.SIGKILL)
    with pytest.raises(errors.DriverCrashed):
        await order
    bmc.faults.clear()
    assert await fru.fru(target(bmc), deadline=20)


async def test_the_number_of_processes_is_bounded(
    new_bmc: NewBmc, fru: PyghmiFru, pool: WorkerPool, target: MakeTarget
) -> None:
    bmcs = [await new_bmc() for _ in range(10)]
    strings = await asyncio.gather(*(fru.fru(target(bmc), deadline=30) for bmc in bmcs))
    assert [each["Board serial number"] for each in strings] == [bmc.fru_info.board_serial for bmc in bmcs]
    assert len(pool.processes) == 2


async def test_a_worn_process_is_replaced(new_bmc: NewBmc, target: MakeTarget) -> None:
    pool = WorkerPool(size=1, orders_each=2)
    fru, bmc = PyghmiFru(pool), await new_bmc()
    seen = set()
    for _ in range(3):
        await fru.fru(target(bmc), deadline=20)
        seen.update(pool.processes)
    await pool.close()
    assert len(seen) == 2


async def test_neither_keys_nor_passwords_are_in_the_process_table(
    new_bmc: NewBmc, fru: PyghmiFru, pool: WorkerPool, target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METALPLANE_CREDENTIAL_KEYS", "k1:do-not-inherit")
    bmc = await new_bmc()
    await fru.fru(target(bmc), deadline=20)
    process = Path("/proc") / str(pool.processes[0])
    for name in ("environ", "cmdline"):
        content = (process / name).read_bytes()
        assert b"do-not-inherit" not in content
        assert PASSWORD.encode() not in content


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
async def test_a_driver_process_ends_with_its_parent(busy: bool, new_bmc: NewBmc, eventually: Eventually) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "metal_bmc.drivers.worker", stdin=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    if busy:
        bmc = await new_bmc()
        bmc.faults.switch_on("slow", 60)
        login = {"host": bmc.address[0], "port": bmc.address[1], "user": "metal", "password": PASSWORD}
        process.stdin.write(frames.encode({"id": 1, "operation": "fru", "target": login, "arguments": {}}))
        await eventually(lambda: bmc.seen)
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 4) == 0


async def test_a_process_that_talks_nonsense_is_replaced() -> None:
    pool = WorkerPool(size=1, command=(sys.executable, "-c", "print('hello, this is no frame')"))
    with pytest.raises(errors.DriverCrashed):
        await pool.call("fru", {}, {}, deadline=20)
    assert pool.processes == []
    await pool.close()


SLOW_START = """
import sys, time
from metal_bmc.drivers import worker
time.sleep(1.5)
worker.main()
"""


async def test_a_process_that_starts_slowly_serves_the_next_order(new_bmc: NewBmc, target: MakeTarget) -> None:
    """Killed with the first order it would be started anew for each, and no BMC ever be reached."""
    pool = WorkerPool(size=1, command=(sys.executable, "-c", SLOW_START))
    fru, bmc = PyghmiFru(pool), await new_bmc(powered=True)
    try:
        with pytest.raises(errors.DriverBusy):
            await fru.fru(target(bmc), deadline=0.5)
        assert not bmc.seen
        assert await fru.fru(target(bmc), deadline=20)
        assert len(pool.processes) == 1
    finally:
        await pool.close()


async def test_a_process_that_is_still_starting_ends_with_its_pool() -> None:
    pool = WorkerPool(size=1, command=(sys.executable, "-c", "import time; time.sleep(60)"))
    with pytest.raises(errors.DriverBusy):
        await pool.call("fru", {}, {}, deadline=0.3)
    await asyncio.wait_for(pool.close(), 5)
    with pytest.raises(errors.DriverCrashed):
        await pool.call("fru", {}, {}, deadline=1)


# Answers one order, closes its pipes and stays: as a killed process looks until it was reaped.
DEAF = """
import os, sys, time
from metal_bmc.drivers import frames
sys.stdout.buffer.write(frames.encode({"ready": True}))
sys.stdout.buffer.flush()
order = frames.read(sys.stdin.buffer)
sys.stdout.buffer.write(frames.encode({"id": order["id"], "result": True}))
sys.stdout.buffer.flush()
os.closerange(3, 300)  # uvloop leaves a second handle of each pipe in the child
os.close(1)
os.close(0)
time.sleep(60)
"""


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
async def test_a_process_that_no_longer_listens_is_reported_and_replaced(eventually: Eventually, new_loop: Any) -> None:
    """uvloop, which services run on, raises RuntimeError where asyncio has a ConnectionError."""

    async def scene() -> None:
        pool = WorkerPool(size=1, command=(sys.executable, "-c", DEAF))
        try:
            assert await pool.call("fru", {}, {}, deadline=20)
            (deaf,) = pool.processes
            await eventually(lambda: not Path(f"/proc/{deaf}/fd/0").exists())
            with pytest.raises(errors.DriverCrashed):
                await pool.call("fru", {}, {}, deadline=20)
            assert deaf not in pool.processes
            assert await pool.call("fru", {}, {}, deadline=20)
        finally:
            await pool.close()

    def run() -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(scene())

    await asyncio.to_thread(run)
