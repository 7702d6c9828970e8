"""The driver against simulated BMCs: real processes, real UDP, real RMCP+."""

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
from metal_bmc.drivers.interface import BootSetting, BootTarget, Target
from metal_bmc.drivers.pool import WorkerPool
from metal_bmc.drivers.pyghmi import PyghmiDriver
from metal_kit.guard import in_transaction
from metal_sim.bmc import BootDevice, BootOverride, PowerAction, SimulatedBmc
from metal_sim.bmc.suites import SUITES, CipherSuite

NewBmc = Callable[..., Awaitable[SimulatedBmc]]
MakeTarget = Callable[..., Target]
Eventually = Callable[..., Awaitable[None]]
CHASSIS_CONTROL = (0, 2)
PASSWORD = "pw-Tr0ub4dor-do-leak"


async def test_power_goes_on_and_off_and_is_read_back(
    new_bmc: NewBmc, driver: PyghmiDriver, target: MakeTarget
) -> None:
    bmc = await new_bmc()
    login = target(bmc)
    assert not await driver.powered(login, deadline=20)
    await driver.set_power(login, on=True, deadline=20)
    assert await driver.powered(login, deadline=20)
    await driver.set_power(login, on=False, deadline=20)
    assert not await driver.powered(login, deadline=20)
    assert bmc.chassis.history == [PowerAction.ON, PowerAction.OFF]


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: f"suite {suite.number}")
async def test_bmcs_that_know_one_cipher_suite_only_are_served(
    suite: CipherSuite, new_bmc: NewBmc, driver: PyghmiDriver, target: MakeTarget
) -> None:
    bmc = await new_bmc(powered=True, suites=[suite])
    assert await driver.powered(target(bmc), deadline=20)
    assert (bmc.logins.started, bmc.logins.succeeded) == (1, 1)


async def test_every_exchange_gives_its_session_slot_back(
    new_bmc: NewBmc, driver: PyghmiDriver, target: MakeTarget, eventually: Eventually
) -> None:
    bmc = await new_bmc(session_slots=2)
    for _ in range(12):
        await driver.powered(target(bmc), deadline=20)
    await eventually(lambda: bmc.active_sessions == 0)
    assert bmc.logins.succeeded == 12


async def test_a_reset_is_sent_once(new_bmc: NewBmc, driver: PyghmiDriver, target: MakeTarget) -> None:
    bmc = await new_bmc(powered=True)
    await driver.reset(target(bmc), deadline=20)
    assert bmc.chassis.history == [PowerAction.RESET]
    assert bmc.seen[CHASSIS_CONTROL] == 1


async def test_a_reset_whose_answer_is_lost_is_not_repeated(
    new_bmc: NewBmc, driver: PyghmiDriver, target: MakeTarget
) -> None:
    bmc = await new_bmc(powered=True)
    bmc.chassis.on_power = lambda _action: bmc.faults.switch_on("hang")
    with pytest.raises(errors.BmcTimeout, match="may have carried it out"):
        await driver.reset(target(bmc), deadline=20)
    assert bmc.seen[CHASSIS_CONTROL] == 1


async def test_a_reset_without_power_is_refused(new_bmc: NewBmc, driver: PyghmiDriver, target: MakeTarget) -> None:
    bmc = await new_bmc()
    with pytest.raises(errors.BmcRefused, match="code 0xd5"):
        await driver.reset(target(bmc), deadline=20)


OVERRIDES = {
    BootTarget.PXE: ("e004000000", BootOverride(BootDevice.PXE, True, True)),
    BootTarget.DISK: ("e008000000", BootOverride(BootDevice.DISK, True, True)),
    BootTarget.BIOS: ("a018000000", BootOverride(BootDevice.SETUP, False, True)),
}


@pytest.mark.parametrize("boot", BootTarget)
async def test_the_boot_override_has_the_exact_flags(
    boot: BootTarget, new_bmc: NewBmc, driver: PyghmiDriver, target: MakeTarget
) -> None:
    bmc = await new_bmc()
    setting = await driver.set_boot(target(bmc), boot, disk_selector=0x08, deadline=20)
    assert setting == BootSetting(boot, boot is not BootTarget.BIOS, True)
    assert setting == await driver.boot(target(bmc), deadline=20)
    assert (bmc.chassis.flags.hex(), bmc.chassis.boot_override()) == OVERRIDES[boot]


async def test_the_disk_selector_of_a_quirky_board_is_used(
    new_bmc: NewBmc, driver: PyghmiDriver, target: MakeTarget
) -> None:
    bmc = await new_bmc()
    setting = await driver.set_boot(target(bmc), BootTarget.DISK, disk_selector=0x24, deadline=20)
    assert setting.target is BootTarget.DISK
    assert bmc.chassis.flags.hex() == "e024000000"


async def test_the_identify_light_is_read_back(new_bmc: NewBmc, driver: PyghmiDriver, target: MakeTarget) -> None:
    bmc = await new_bmc()
    assert await driver.set_identify(target(bmc), on=True, deadline=20) is True
    assert bmc.chassis.identify_state() == 2
    assert await driver.set_identify(target(bmc), on=False, deadline=20) is False
    assert bmc.chassis.identify_state() == 0


async def test_a_bmc_says_who_it_is(new_bmc: NewBmc, driver: PyghmiDriver, target: MakeTarget) -> None:
    bmc = await new_bmc(powered=True, firmware=(2, 47))
    info = await driver.inspect(target(bmc), deadline=20)
    assert info.machine == bmc.machine
    assert info.firmware == "2.47"
    assert info.powered
    assert info.fru["Board serial number"] == bmc.fru_info.board_serial
    assert info.fru["Manufacturer"] == "metalplane"


async def test_a_wrong_password_costs_one_attempt(new_bmc: NewBmc, driver: PyghmiDriver, target: MakeTarget) -> None:
    bmc = await new_bmc()
    with pytest.raises(errors.BmcAuthFailed):
        await driver.powered(target(bmc, password="guess"), deadline=20)
    assert bmc.logins.started == 1


async def test_an_unknown_user_costs_one_attempt(new_bmc: NewBmc, driver: PyghmiDriver, target: MakeTarget) -> None:
    bmc = await new_bmc()
    with pytest.raises(errors.BmcAuthFailed):
        await driver.powered(target(bmc, user="nobody"), deadline=20)
    assert bmc.logins.started == 1


async def test_a_locked_bmc_refuses_even_the_right_password(
    new_bmc: NewBmc, driver: PyghmiDriver, target: MakeTarget
) -> None:
    bmc = await new_bmc()
    bmc.faults.switch_on("lockout", 2)
    for _ in range(2):
        with pytest.raises(errors.BmcAuthFailed):
            await driver.powered(target(bmc, password="guess"), deadline=20)
    with pytest.raises(errors.BmcAuthFailed, match="refuses the user"):
        await driver.powered(target(bmc), deadline=20)
    bmc.faults.clear()
    assert not await driver.powered(target(bmc), deadline=20)


async def test_full_session_slots_are_told_apart(new_bmc: NewBmc, driver: PyghmiDriver, target: MakeTarget) -> None:
    bmc = await new_bmc()
    bmc.faults.switch_on("slots-full")
    with pytest.raises(errors.BmcSessionsFull):
        await driver.powered(target(bmc), deadline=20)


async def test_a_dead_bmc_is_a_timeout(new_bmc: NewBmc, driver: PyghmiDriver, target: MakeTarget) -> None:
    bmc = await new_bmc()
    bmc.faults.switch_on("hang")
    with pytest.raises(errors.BmcTimeout):
        await driver.powered(target(bmc), deadline=20)


@pytest.mark.parametrize("count", [1, 2])
async def test_a_packet_that_is_lost_is_sent_again(
    new_bmc: NewBmc, driver: PyghmiDriver, target: MakeTarget, count: int
) -> None:
    async def lose(after: int) -> bool:
        bmc = await new_bmc(powered=True)
        bmc.faults.lose_packets(count, after=after)
        powered = await driver.powered(target(bmc), deadline=40)
        assert not bmc.faults.losses_left
        return powered

    # Every packet of a login and the order after it, in either direction.
    assert await asyncio.gather(*(lose(after) for after in range(12))) == [True] * 12


async def test_an_order_that_overruns_its_deadline_costs_its_process_only(
    new_bmc: NewBmc, driver: PyghmiDriver, pool: WorkerPool, target: MakeTarget, eventually: Eventually
) -> None:
    slow, quick = await new_bmc(), await new_bmc()
    assert not await driver.powered(target(quick), deadline=20)  # a process runs
    slow.faults.switch_on("slow", 60)
    started = time.monotonic()
    late = asyncio.create_task(driver.powered(target(slow), deadline=1.5))
    await eventually(lambda: slow.seen)
    (stuck,) = pool.processes
    assert not await driver.powered(target(quick), deadline=20)
    with pytest.raises(errors.BmcTimeout, match=r"within 1\.5 s"):
        await late
    assert time.monotonic() - started < 5
    assert stuck not in pool.processes
    with pytest.raises(ProcessLookupError):
        os.kill(stuck, 0)


async def test_a_killed_driver_process_is_reported_and_replaced(
    new_bmc: NewBmc, driver: PyghmiDriver, pool: WorkerPool, target: MakeTarget, eventually: Eventually
) -> None:
    bmc = await new_bmc()
    bmc.faults.switch_on("slow", 60)
    order = asyncio.create_task(driver.powered(target(bmc), deadline=20))
    await eventually(lambda: bmc.seen)
    os.kill(pool.processes[0], signal.SIGKILL)
    with pytest.raises(errors.DriverCrashed):
        await order
    bmc.faults.clear()
    assert not await driver.powered(target(bmc), deadline=20)


async def test_the_number_of_processes_is_bounded(
    new_bmc: NewBmc, driver: PyghmiDriver, pool: WorkerPool, target: MakeTarget
) -> None:
    bmcs = [await new_bmc() for _ in range(10)]
    assert await asyncio.gather(*(driver.powered(target(bmc), deadline=30) for bmc in bmcs)) == [False] * 10
    assert len(pool.processes) == 2


async def test_a_worn_process_is_replaced(new_bmc: NewBmc, target: MakeTarget) -> None:
    pool = WorkerPool(size=1, orders_each=2)
    driver, bmc = PyghmiDriver(pool), await new_bmc()
    seen = set()
    for _ in range(3):
        await driver.powered(target(bmc), deadline=20)
        seen.update(pool.processes)
    await pool.close()
    assert len(seen) == 2


async def test_neither_keys_nor_passwords_are_in_the_process_table(
    new_bmc: NewBmc, driver: PyghmiDriver, pool: WorkerPool, target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METALPLANE_CREDENTIAL_KEYS", "k1:do-not-inherit")
    bmc = await new_bmc()
    await driver.powered(target(bmc), deadline=20)
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
        process.stdin.write(frames.encode({"id": 1, "operation": "powered", "target": login, "arguments": {}}))
        await eventually(lambda: bmc.seen)
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 4) == 0


async def test_an_exchange_inside_a_transaction_is_refused(
    new_bmc: NewBmc, driver: PyghmiDriver, target: MakeTarget
) -> None:
    bmc = await new_bmc()
    token = in_transaction.set("a test")
    try:
        with pytest.raises(RuntimeError, match="inside the transaction"):
            await driver.powered(target(bmc), deadline=20)
    finally:
        in_transaction.reset(token)


async def test_a_process_that_talks_nonsense_is_replaced() -> None:
    pool = WorkerPool(size=1, command=(sys.executable, "-c", "print('hello, this is no frame')"))
    with pytest.raises(errors.DriverCrashed):
        await pool.call("powered", {}, {}, deadline=20)
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
    driver, bmc = PyghmiDriver(pool), await new_bmc(powered=True)
    try:
        with pytest.raises(errors.DriverBusy):
            await driver.powered(target(bmc), deadline=0.5)
        assert not bmc.seen
        assert await driver.powered(target(bmc), deadline=20)
        assert len(pool.processes) == 1
    finally:
        await pool.close()


async def test_a_process_that_is_still_starting_ends_with_its_pool() -> None:
    pool = WorkerPool(size=1, command=(sys.executable, "-c", "import time; time.sleep(60)"))
    with pytest.raises(errors.DriverBusy):
        await pool.call("powered", {}, {}, deadline=0.3)
    await asyncio.wait_for(pool.close(), 5)
    with pytest.raises(errors.DriverCrashed):
        await pool.call("powered", {}, {}, deadline=1)


async def test_errors_hold_no_secret(new_bmc: NewBmc, driver: PyghmiDriver, target: MakeTarget) -> None:
    bmc = await new_bmc()
    bmc.faults.switch_on("wrong-password")
    login: Any = target(bmc)
    with pytest.raises(errors.BmcAuthFailed) as caught:
        await driver.powered(login, deadline=20)
    assert PASSWORD not in repr(caught.value) + repr(login) + str(login)


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
            assert await pool.call("powered", {}, {}, deadline=20)
            (deaf,) = pool.processes
            await eventually(lambda: not Path(f"/proc/{deaf}/fd/0").exists())
            with pytest.raises(errors.DriverCrashed):
                await pool.call("powered", {}, {}, deadline=20)
            assert deaf not in pool.processes
            assert await pool.call("powered", {}, {}, deadline=20)
        finally:
            await pool.close()

    def run() -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(scene())

    await asyncio.to_thread(run)
