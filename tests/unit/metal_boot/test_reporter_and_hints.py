from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from metal_boot.hints import Hints, machine_of
from metal_boot.reporter import ATTEMPTS, Reporter
from metal_kit.errors import InvalidArgument, Unavailable
from metalplane.allocation.v1 import events_pb2
from metalplane.common.v1 import event_pb2
from metalplane.inventory.v1 import machine_pb2

MACHINE = "4c4c4544-0051-3510-8052-b4c04f4e3132"


class Recorder:
    """Takes reports, after failing as often as told."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.seen: list[str] = []
        self.ids: set[str] = set()
        self.calls = 0

    async def __call__(self, machine_id: str, events: list[machine_pb2.ReportedEvent]) -> None:
        self.calls += 1
        self.ids |= {event.id for event in events}
        if self.failures:
            raise self.failures.pop(0)
        self.seen.append(machine_id)


async def test_a_boot_is_reported_once_although_the_first_attempts_fail(eventually: Any) -> None:
    record = Recorder(Unavailable("DOWN", "down"), Unavailable("DOWN", "down"))
    stopping = asyncio.Event()
    reporter = Reporter(record, stopping)
    running = asyncio.create_task(reporter.run())
    reporter.booted(MACHINE, "installer: free")
    await eventually(lambda: record.seen)
    stopping.set()
    await running
    assert (record.seen, record.calls, len(record.ids), reporter.dropped) == ([MACHINE], 3, 1, 0)


async def test_a_report_that_is_refused_is_dropped_at_once(eventually: Any) -> None:
    record = Recorder(InvalidArgument("NO", "no"))
    stopping = asyncio.Event()
    reporter = Reporter(record, stopping)
    running = asyncio.create_task(reporter.run())
    reporter.booted(MACHINE, "")
    await eventually(lambda: reporter.dropped == 1)
    stopping.set()
    await running
    assert record.calls == 1


async def test_what_comes_after_a_boot_can_wait_for_its_report(eventually: Any) -> None:
    release = asyncio.Event()
    order: list[str] = []

    async def record(machine_id: str, events: list[machine_pb2.ReportedEvent]) -> None:
        await release.wait()
        order.append("boot")

    async def follow() -> None:
        await reporter.settled(MACHINE, within=20)
        order.append("preparing")

    stopping = asyncio.Event()
    reporter = Reporter(record, stopping)
    running = asyncio.create_task(reporter.run())
    reporter.booted(MACHINE, "")
    following = asyncio.create_task(follow())
    await reporter.settled("another machine", within=0)
    release.set()
    await following
    stopping.set()
    await running
    assert order == ["boot", "preparing"]
    assert not reporter._pending


async def test_the_report_of_an_earlier_boot_does_not_stand_for_that_of_the_latest(eventually: Any) -> None:
    """Firmware that asks twice: two workers report at the same time, and the first is done before the second."""
    release, told = asyncio.Event(), []

    async def record(machine_id: str, events: list[machine_pb2.ReportedEvent]) -> None:
        if events[0].message == "second":
            await release.wait()
        told.append(events[0].message)

    async def follow() -> None:
        await reporter.settled(MACHINE, within=20)
        told.append("preparing")

    stopping = asyncio.Event()
    reporter = Reporter(record, stopping)
    reporter.booted(MACHINE, "first")
    reporter.booted(MACHINE, "second")
    running = asyncio.create_task(reporter.run())
    following = asyncio.create_task(follow())
    await eventually(lambda: told)
    for _ in range(10):
        await asyncio.sleep(0)  # whoever would go on by mistake does it now
    release.set()
    await following
    stopping.set()
    await running
    assert told == ["first", "second", "preparing"]
    assert not reporter._pending


async def test_a_boot_that_was_overtaken_is_not_reported_late(eventually: Any) -> None:
    """Inventory was away at the first boot; told after the second one's installer, it would count as a crash."""
    told: list[str] = []

    async def record(machine_id: str, events: list[machine_pb2.ReportedEvent]) -> None:
        told.append(events[0].message)
        if told == ["first"]:
            reporter.booted(MACHINE, "second")
            raise Unavailable("DOWN", "down")

    stopping = asyncio.Event()
    reporter = Reporter(record, stopping)
    running = asyncio.create_task(reporter.run())
    reporter.booted(MACHINE, "first")
    await eventually(lambda: len(told) == 2)
    await reporter._queue.join()
    stopping.set()
    await running
    assert (told, reporter.dropped) == (["first", "second"], 0)


async def test_nobody_waits_for_a_report_for_ever() -> None:
    reporter = Reporter(Recorder(), asyncio.Event())
    reporter.booted(MACHINE, "")  # nobody works on the queue
    await reporter.settled(MACHINE, within=0.01)


def test_reporting_never_waits_and_drops_what_is_too_much() -> None:
    reporter = Reporter(Recorder(), asyncio.Event(), queue_size=3)
    for _ in range(5):
        reporter.booted(MACHINE, "")
    assert reporter.dropped == 2


def test_attempts_have_an_end() -> None:
    assert 1 < ATTEMPTS < 20


def event(payload: Any = None, **values: Any) -> bytes:
    message = event_pb2.Event(**values)
    if payload is not None:
        message.payload.Pack(payload)
    return message.SerializeToString()


async def test_a_hint_wakes_those_who_wait_for_this_machine_and_nobody_else() -> None:
    hints = Hints()
    with hints.of(MACHINE) as first, hints.of(MACHINE) as second, hints.of("other") as other:
        await hints.hear(event(entity="machine", entity_id=MACHINE))
        assert first.is_set()
        assert second.is_set()
        assert not other.is_set()
    assert not hints._waiting, "streams that ended must not be remembered"


def test_the_machine_of_an_installation_event_is_in_its_payload() -> None:
    changed = events_pb2.InstallationChanged(machine=MACHINE, allocation="a1")
    assert machine_of(event(changed, entity="installation", entity_id="a1")) == MACHINE
    assert machine_of(event(entity="size", entity_id="c1")) == ""


@given(st.binary(max_size=100))
def test_garbage_on_the_bus_wakes_nobody(garbage: bytes) -> None:
    assert isinstance(machine_of(garbage), str)
