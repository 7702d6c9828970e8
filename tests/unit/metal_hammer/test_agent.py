"""The agent's own rules, against a control plane that follows a script and a simulated machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from metal_hammer.agent import Agent
from metal_hammer.contact import Contact, Rules
from metal_hammer.failure import Code, Step, StepFailed
from metal_hammer.grant import Grant
from metal_hammer.hardware.base import Facts, Neighbour
from metal_hammer.work import (
    BootExisting,
    BootInfo,
    Event,
    Item,
    PlaneError,
    Reboot,
    Registration,
    Start,
    Verdict,
    Wait,
    Wipe,
)
from metal_sim.machine import Disk, MachineFacts, Nic, Rebooted, SimulatedHardware, run_until_stopped

MACHINE = "4c4c4544-0051-3510-8052-b4c04f4e3132"
MIB = 1024 * 1024
FAST = Rules(
    neighbours_needed=0, retry_first=0.001, retry_most=0.01, report_patience=0.3, event_patience=0.05, crash_pause=0.001
)
DISK = Disk("/dev/nvme0n1", "S1", "nvme", MIB)


@dataclass
class Plane:
    """Says what the script says, then keeps the stream open."""

    items: list[Item | PlaneError] = field(default_factory=list)
    verdict: Verdict = Verdict.CLEAN
    failing: dict[str, list[PlaneError]] = field(default_factory=dict)
    events: list[tuple[Event, str]] = field(default_factory=list)
    wipes: list[list[Any]] = field(default_factory=list)
    failures: list[StepFailed] = field(default_factory=list)
    streams: int = 0

    async def register(self, facts: Facts, neighbours: Mapping[str, Sequence[Neighbour]]) -> Registration:
        self._fail("register")
        return Registration(7, self.verdict)

    async def report_event(self, event: Event, event_id: str, message: str) -> None:
        self._fail("event")
        self.events.append((event, message))

    async def work(self, generation: int) -> AsyncIterator[Item]:
        assert generation == 7
        self.streams += 1
        while self.items:
            item = self.items.pop(0)
            if isinstance(item, PlaneError):
                raise item
            yield item
        await asyncio.Event().wait()

    async def report_wipe(self, generation: int, results: Sequence[Any]) -> None:
        self._fail("wipe")
        self.wipes.append(list(results))

    async def report_progress(self, allocation_id: str, step: str, percent: int, message: str) -> None:
        self._fail("progress")

    async def report_installed(self, allocation_id: str, boot_info: BootInfo, touched: Sequence[Any]) -> None:
        raise AssertionError("nothing is installed here")

    async def report_failed(self, allocation_id: str, failure: StepFailed, touched: Sequence[Any]) -> None:
        self.failures.append(failure)

    def _fail(self, what: str) -> None:
        if self.failing.get(what):
            raise self.failing[what].pop(0)

    def names(self) -> list[Event]:
        return [event for event, _ in self.events]


def grant(**changes: Any) -> Grant:
    values = {"machine_id": MACHINE, "generation": 7, "allocation_id": "", "serials": frozenset({"S1"})} | changes
    return Grant(deadline=time.monotonic() + 60, **values)  # type: ignore[arg-type]


def machine(directory: Path, *disks: Disk) -> SimulatedHardware:
    facts = MachineFacts(MACHINE, (Nic("eth0", "02:00:00:00:00:01"),), disks or (DISK,))
    return SimulatedHardware(facts, directory)


async def run(hardware: SimulatedHardware, plane: Plane, **more: Any) -> None:
    """Run an agent to its reboot."""
    agent = Agent(hardware, plane, machine_id=more.pop("machine_id", MACHINE), rules=more.pop("rules", FAST), **more)
    async with asyncio.timeout(20):
        assert isinstance(await run_until_stopped(agent.run()), Rebooted)


async def test_a_clean_machine_reports_waiting_once_however_often_it_is_told_to_wait(tmp_path: Path) -> None:
    plane = Plane([Wait(), Wipe(grant()), Wait(), Wait(), Wipe(grant()), Wait(), Reboot()])
    hardware = machine(tmp_path)
    await run(hardware, plane)
    assert plane.names() == [Event.PREPARING, Event.REGISTERING, Event.WAITING, Event.PLANNED_REBOOT]
    assert len(plane.wipes) == 1
    assert sum(argv[0] == "nvme" for argv in hardware.history) == 1


WRONG: dict[str, dict[str, Any]] = {
    "another machine": {"machine_id": "other"},
    "an earlier registration": {"generation": 6},
    "an allocation": {"allocation_id": "a1"},
    "other disks": {"serials": frozenset({"S2"})},
    "no disks": {"serials": frozenset()},
}


@pytest.mark.parametrize("name", sorted(WRONG))
async def test_a_wipe_grant_for_something_else_wipes_nothing(tmp_path: Path, name: str) -> None:
    hardware = machine(tmp_path)
    await hardware.write_at(DISK.device, 0, b"data")
    plane = Plane([Wipe(grant(**WRONG[name]))])
    await run(hardware, plane)
    assert hardware.history == []
    assert await hardware.read_at(DISK.device, 0, 4) == b"data"
    assert plane.wipes == []
    assert plane.events[-1][0] is Event.CRASHED
    assert "GRANT_REFUSED" in plane.events[-1][1]


async def test_an_expired_wipe_grant_wipes_nothing(tmp_path: Path) -> None:
    hardware = machine(tmp_path)
    expired = Grant(MACHINE, 7, "", frozenset({"S1"}), deadline=time.monotonic() - 0.001)
    await run(hardware, Plane([Wipe(expired)]))
    assert hardware.history == []


async def test_without_an_order_nothing_is_touched(tmp_path: Path) -> None:
    hardware = machine(tmp_path)
    await hardware.write_at(DISK.device, 0, b"data")
    await run(hardware, Plane([Wait("hold"), BootExisting()], verdict=Verdict.HOLD))
    assert hardware.history == []
    assert await hardware.read_at(DISK.device, 0, 4) == b"data"


async def test_a_machine_with_an_installed_system_does_not_even_ask_for_work(tmp_path: Path) -> None:
    plane = Plane(verdict=Verdict.BOOT_EXISTING)
    await run(machine(tmp_path), plane)
    assert plane.streams == 0
    assert plane.names()[-1] is Event.PLANNED_REBOOT


async def test_an_order_to_start_what_this_run_has_not_installed_leaves_to_the_local_disk(tmp_path: Path) -> None:
    plane = Plane([Start("a1", BootInfo("/boot/k", "", ""))])
    hardware = machine(tmp_path)
    await run(hardware, plane)
    assert plane.names()[-1] is Event.PLANNED_REBOOT
    assert hardware.history == []


async def test_a_wipe_that_takes_longer_than_a_machine_may_idle_is_not_lost(tmp_path: Path) -> None:
    """An overwrite of a large disk takes days: a reboot after it would only begin the same wipe again."""
    hardware = machine(tmp_path)
    plain, loop = hardware.run, asyncio.get_running_loop()

    async def slow(argv: Any, **more: Any) -> Any:
        if argv[0] == "nvme":
            await asyncio.wait([loop.create_future()], timeout=1.2)
        return await plain(argv, **more)

    hardware.run = slow  # type: ignore[method-assign]
    plane = Plane([Wipe(grant()), Wait(), Reboot()])
    await run(hardware, plane, rules=replace(FAST, idle_reboot=0.5))
    assert plane.names() == [Event.PREPARING, Event.REGISTERING, Event.WAITING, Event.PLANNED_REBOOT]


async def test_a_machine_that_gets_no_stream_any_more_starts_anew_as_well(tmp_path: Path) -> None:
    class Silent(Plane):
        async def work(self, generation: int) -> AsyncIterator[Item]:
            self.streams += 1
            raise PlaneError("TRANSPORT_UNAVAILABLE", "the certificate has ended", retry=True)
            yield

    plane = Silent()
    await run(machine(tmp_path), plane, rules=replace(FAST, idle_reboot=0.05))
    assert plane.streams > 1
    assert plane.events[-1] == (Event.PLANNED_REBOOT, "waited for long enough to start anew")


async def test_disks_that_share_a_serial_are_not_wiped_and_not_called_clean(tmp_path: Path) -> None:
    twins = (Disk("/dev/sda", "S1", "ssd", MIB), Disk("/dev/sdb", "S1", "ssd", MIB), Disk("/dev/sdc", "S3", "ssd", MIB))
    plane = Plane([Wipe(grant(serials=frozenset({"S1", "S3"}))), Wait(), Reboot()])
    hardware = machine(tmp_path, *twins)
    await run(hardware, plane)
    errors = {result.device: result.error for result in plane.wipes[0]}
    assert errors == {"/dev/sdc": "", **dict.fromkeys(("/dev/sda", "/dev/sdb"), "another disk has the same serial")}
    assert not any("/dev/sda" in argv or "/dev/sdb" in argv for argv in hardware.history)
    assert Event.WAITING not in plane.names()


async def test_a_stream_that_breaks_is_opened_again_and_an_order_is_not_done_twice(tmp_path: Path) -> None:
    broken = PlaneError("DRAINING", "stopping", retry=True)
    plane = Plane([Wipe(grant()), broken, Wipe(grant()), broken, Wait(), Reboot()])
    hardware = machine(tmp_path)
    await run(hardware, plane)
    assert plane.streams == 3
    assert sum(argv[0] == "nvme" for argv in hardware.history) == 1


async def test_a_wipe_report_that_does_not_get_through_is_made_later(tmp_path: Path) -> None:
    down = [PlaneError("DOWN", "down", retry=True)] * 3
    plane = Plane([Wipe(grant()), Wait(), Reboot()], failing={"wipe": down})
    await run(machine(tmp_path), plane)
    assert len(plane.wipes) == 1
    assert Event.WAITING in plane.names()


async def test_a_refused_registration_is_a_crash_with_the_reason(tmp_path: Path) -> None:
    refused = [PlaneError("CABLING", "two leaves of two racks", retry=False)]
    plane = Plane(failing={"register": refused})
    await run(machine(tmp_path), plane)
    assert plane.events[-1][0] is Event.CRASHED
    assert plane.events[-1][1].startswith("register: PLANE_REFUSED: CABLING")


async def test_a_plane_that_stays_away_is_given_up_after_the_patience(tmp_path: Path) -> None:
    away = PlaneError("DOWN", "down", retry=True)
    plane = Plane(failing={"register": [away] * 100_000, "event": [away] * 100_000})
    began = time.monotonic()
    await run(machine(tmp_path), plane)
    assert time.monotonic() - began >= FAST.report_patience


async def test_a_machine_that_is_not_the_one_that_was_booted_does_nothing(tmp_path: Path) -> None:
    plane = Plane()
    await run(machine(tmp_path), plane, machine_id="00000000-0051-3510-8052-b4c04f4e3132")
    assert Event.REGISTERING not in plane.names()
    assert "INSPECT_FAILED" in plane.events[-1][1]


async def test_signs_of_life_carry_the_step(tmp_path: Path, eventually: Any) -> None:
    plane = Plane([Wait()])
    rules = Rules(neighbours_needed=0, alive_every=0.01)
    agent = Agent(machine(tmp_path), plane, machine_id=MACHINE, rules=rules)
    task = asyncio.create_task(agent.run())
    await eventually(lambda: (Event.ALIVE, "wait") in plane.events)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_machine_that_waits_for_too_long_begins_anew(tmp_path: Path) -> None:
    plane = Plane([Wipe(grant()), Wait()])
    rules = Rules(neighbours_needed=0, idle_reboot=0.0)
    await run(machine(tmp_path), plane, rules=rules)
    assert plane.events[-1] == (Event.PLANNED_REBOOT, "waited for long enough to start anew")


@pytest.mark.parametrize(("crashes", "least"), [(0, 5), (1, 10), (3, 40), (7, 640), (1000, 640)])
def test_each_crash_in_a_row_waits_longer_before_the_reboot(crashes: int, least: float) -> None:
    delays = {Rules().reboot_delay(crashes) for _ in range(50)}
    assert least <= min(delays) < max(delays) <= least * 1.5


async def test_a_retry_stops_at_once_when_it_cannot_help(tmp_path: Path) -> None:
    contact = Contact(machine(tmp_path), Plane(), FAST)
    calls = 0

    async def refuse() -> None:
        nonlocal calls
        calls += 1
        raise PlaneError("NO", "no", retry=False)

    with pytest.raises(PlaneError):
        await contact.retry("x", refuse)
    assert calls == 1


def test_a_failure_does_not_carry_endless_text() -> None:
    assert len(StepFailed(Step.FETCH, Code.UNEXPECTED, "x" * 5000).detail) == 1024
