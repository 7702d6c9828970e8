"""Consoles through the API: the service with its database, simulated BMCs, streams of several people."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from metal_bmc.rmcp.client import RmcpClient
from metal_bmc.rmcp.console import Ears, Mode, SolConsole
from metal_bmc.rmcp.handshake import Login
from metal_bmc.rmcp.link import Link
from metal_bmc.rmcp.messages import Request
from metal_kit import logs
from metal_kit.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    Unavailable,
    Unimplemented,
)
from metal_sim.bmc import SimulatedBmc
from metalplane.bmc.v1 import bmc_pb2 as pb

PASSWORD = "pw-Tr0ub4dor-do-leak"
NewBmc = Callable[..., Awaitable[SimulatedBmc]]
Eventually = Callable[..., Awaitable[None]]
OPENED, LOST, REOPENED = pb.CONSOLE_EVENT_OPENED, pb.CONSOLE_EVENT_LOST, pb.CONSOLE_EVENT_REOPENED
ACTIVATE, DEACTIVATE, CLOSE_SESSION = (6, 0x48), (6, 0x49), (6, 0x3C)
CHANGED = pb.CONSOLE_EVENT_WRITER_CHANGED


class Person:
    """Somebody at a console: all that he has read, and what he was told."""

    def __init__(self, call: Any) -> None:
        self.text = b""
        self.events: list[pb.ConsoleStatus] = []
        self.position = ""
        self._call = call

    async def next(self) -> bool:
        """Take in one response; False after the last. Raises the Problem that the stream ended with."""
        async with asyncio.timeout(20):
            response = await self._call.read()
        if response is grpc.aio.EOF:
            return False
        self.position = response.position
        if response.WhichOneof("response") == "data":
            self.text += response.data
        else:
            self.events.append(response.status)
        return True

    async def reads(self, text: bytes) -> None:
        """Read on until that is the last that was printed."""
        while not self.text.endswith(text):
            assert await self.next(), f"the stream ended before {text!r}: {self.text!r}"

    async def told(self, event: pb.ConsoleEvent.ValueType) -> pb.ConsoleStatus:
        """Read on until that event has come."""
        while not self.events or self.events[-1].event != event:
            assert await self.next(), f"the stream ended; told was {self.events}"
        return self.events[-1]

    async def send(self, **request: Any) -> None:
        await self._call.write(pb.ConsoleRequest(**request))

    async def done_writing(self) -> None:
        await self._call.done_writing()


@asynccontextmanager
async def sit_down(plane: Any, machine: str, *, token: str = "operator", **open_: Any) -> AsyncIterator[Person]:
    """At the console of a machine, until the end of the block."""
    call = plane.stub(token).Console()
    try:
        await call.write(pb.ConsoleRequest(open=pb.ConsoleOpen(machine=machine, **open_)))
        person = Person(call)
        await person.told(OPENED)
        yield person
    finally:
        call.cancel()


async def refused(plane: Any, machine: str, **open_: Any) -> None:
    async with sit_down(plane, machine, **open_):
        pass


@pytest.fixture
async def bmc(plane: Any, new_bmc: NewBmc) -> SimulatedBmc:
    """Registered with the running service; its machine echoes."""
    await plane.start()
    made = await new_bmc()
    await plane.register(made)
    made.serial.on_input = made.serial.write
    return made


async def test_what_is_typed_reaches_the_machine_and_all_read_what_it_prints(
    plane: Any, bmc: SimulatedBmc, eventually: Eventually
) -> None:
    async with (
        sit_down(plane, bmc.machine) as writer,
        sit_down(plane, bmc.machine, read_only=True) as first,
        sit_down(plane, bmc.machine, read_only=True) as second,
    ):
        assert writer.events[0].writer == "user:operator"
        await writer.send(data=b"uname -a\r")
        await writer.send(data=b"x" * 4000)
        for person in (writer, first, second):
            await person.reads(b"uname -a\r" + b"x" * 4000)
        await writer.send(send_break=pb.ConsoleBreak())
        await eventually(lambda: bmc.serial.breaks == 1)
        assert bmc.seen[ACTIVATE] == 1, "one session for all readers"
        await writer.send(detach=pb.ConsoleDetach())
        while await writer.next():
            pass
        assert (await first.told(CHANGED)).writer == ""


async def test_one_types_and_another_takes_over(plane: Any, bmc: SimulatedBmc) -> None:
    async with sit_down(plane, bmc.machine) as first:
        with pytest.raises(FailedPrecondition, match="CONSOLE_HAS_WRITER") as refusal:
            await refused(plane, bmc.machine)
        assert refusal.value.metadata["writer"] == "user:operator"
        async with sit_down(plane, bmc.machine, take_over=True) as second:
            await first.told(CHANGED)
            await first.send(data=b"from the first")
            await second.send(data=b"from the second")
            await first.reads(b"from the second")
            await second.reads(b"from the second")
            assert first.text == second.text == b"from the second"
            await second.done_writing()
            await first.told(CHANGED)
            await first.told(CHANGED)
        async with sit_down(plane, bmc.machine) as third:
            await third.send(data=b", typed")
            await third.reads(b", typed")


async def test_who_comes_later_gets_what_was_printed(plane: Any, bmc: SimulatedBmc) -> None:
    async with sit_down(plane, bmc.machine, read_only=True) as first:
        bmc.serial.write(b"one two ")
        await first.reads(b"two ")
        position = first.position
        bmc.serial.write(b"three")
        await first.reads(b"three")
        async with sit_down(plane, bmc.machine, read_only=True, replay_bytes=8) as second:
            await second.reads(b"wo three")
            assert second.text == b"wo three"
        async with sit_down(plane, bmc.machine, read_only=True, position=position) as third:
            await third.reads(b"three")
            assert third.text == b"three"
        for wrong in ("elsewhere:5", position.replace(":8", ":9999"), position + "x", ":"):
            with pytest.raises(OutOfRange, match="CONSOLE_POSITION_GONE"):
                await refused(plane, bmc.machine, read_only=True, position=wrong)


async def test_it_survives_that_the_bmc_restarts(plane: Any, bmc: SimulatedBmc) -> None:
    async with sit_down(plane, bmc.machine) as person:
        bmc.serial.write(b"before")
        await person.reads(b"before")
        bmc.forget_sessions()
        await person.send(data=b"into the void")
        assert (await person.told(LOST)).message
        await person.told(REOPENED)
        await person.send(data=b", after")
        await person.reads(b", after")
        assert person.text == b"before, after", "keys that a lost BMC did not take are not typed later"


async def test_a_bmc_that_does_not_come_back_lets_its_readers_go(plane: Any, new_bmc: NewBmc) -> None:
    await plane.start(console_reopen_seconds=0.1, exchange_seconds=1)
    bmc = await new_bmc()
    await plane.register(bmc)
    async with sit_down(plane, bmc.machine) as person:
        bmc.stop()
        await person.send(data=b"anybody?")
        await person.told(LOST)
        with pytest.raises(Unavailable, match="CONSOLE_LOST"):
            await person.next()


async def test_it_closes_a_while_after_the_last_reader(plane: Any, new_bmc: NewBmc, eventually: Eventually) -> None:
    await plane.start(console_linger_seconds=1.5)
    bmc = await new_bmc()
    await plane.register(bmc)
    for _ in range(2):
        async with sit_down(plane, bmc.machine) as person:
            bmc.serial.write(b"text")
            await person.reads(b"text")
    assert bmc.seen[ACTIVATE] == 1, "the second came before it was closed"
    # One session may stay: the poller keeps it.
    await eventually(lambda: not bmc.console_taken and bmc.seen[CLOSE_SESSION] and bmc.active_sessions <= 1)

    async def forgotten() -> bool:
        return not await plane.rows("SELECT 1 FROM console")

    await eventually(forgotten)
    async with sit_down(plane, bmc.machine, replay_bytes=100) as person:
        bmc.serial.write(b"new")
        await person.reads(b"new")
        assert person.text == b"new", "what was printed goes with the console"


async def test_a_silent_console_is_closed(plane: Any, new_bmc: NewBmc) -> None:
    await plane.start(console_idle_seconds=0.3)
    bmc = await new_bmc()
    await plane.register(bmc)
    async with sit_down(plane, bmc.machine) as person:
        with pytest.raises(Exception, match="CONSOLE_IDLE"):
            await person.next()


async def test_bad_requests_name_what_is_wrong(plane: Any, bmc: SimulatedBmc) -> None:
    with pytest.raises(NotFound):
        await refused(plane, str(uuid4()))
    with pytest.raises(InvalidArgument) as wrong:
        await refused(plane, "no-uuid")
    assert wrong.value.field == "open.machine"
    with pytest.raises(InvalidArgument, match="CONSOLE_MODE"):
        await refused(plane, bmc.machine, read_only=True, take_over=True)
    with pytest.raises(PermissionDenied):
        await refused(plane, bmc.machine, token="viewer", read_only=True)
    call = plane.stub().Console()
    await call.write(pb.ConsoleRequest(data=b"keys first"))
    with pytest.raises(InvalidArgument, match="CONSOLE_NOT_OPEN"):
        await call.read()
    for request in ({"data": b"keys"}, {"data": b"x" * 4097}, {}, {"open": pb.ConsoleOpen(machine=bmc.machine)}):
        async with sit_down(plane, bmc.machine, read_only=True) as reader:
            await reader.send(**request)
            with pytest.raises(InvalidArgument):
                await reader.next()
    assert not bmc.seen[DEACTIVATE], "the console is still open for who comes next"


async def test_machines_without_ipmi_have_no_console(plane: Any) -> None:
    await plane.start()
    for driver in (pb.DRIVER_KIND_MANUAL, pb.DRIVER_KIND_REDFISH):
        machine = str(uuid4())
        bmc = pb.Bmc(machine=machine, partition="fra1", driver=driver)
        if driver == pb.DRIVER_KIND_REDFISH:
            bmc.address, bmc.user, bmc.password = "127.0.0.1:1", "metal", "x"
        await plane.stub().RegisterBmc(pb.RegisterBmcRequest(bmc=bmc))
        with pytest.raises(Unimplemented, match="CONSOLE_UNSUPPORTED"):
            await refused(plane, machine)


async def test_what_the_bmc_says_is_told_to_who_asks(plane: Any, bmc: SimulatedBmc) -> None:
    async with foreign_console(bmc) as (_, foreign):
        with pytest.raises(FailedPrecondition, match="CONSOLE_TAKEN"):
            await refused(plane, bmc.machine)
        async with sit_down(plane, bmc.machine, take_over=True) as person:
            bmc.serial.write(b"mine")
            await person.reads(b"mine")
            with pytest.raises(Exception, match="ended"):
                await asyncio.wait_for(foreign.keep(), 5)
    endpoint = await plane.stub().GetBmc(pb.GetBmcRequest(machine=bmc.machine))
    assert not endpoint.error, "a console that is taken is no failure of the BMC"


async def test_a_console_that_is_taken_away_is_not_fought_for(plane: Any, bmc: SimulatedBmc) -> None:
    async with sit_down(plane, bmc.machine) as person, foreign_console(bmc, take_over=True):
        await person.told(LOST)
        with pytest.raises(FailedPrecondition, match="CONSOLE_TAKEN"):
            await person.next()


async def test_a_bmc_without_console_or_answer_is_told_apart(
    plane: Any, bmc: SimulatedBmc, eventually: Eventually
) -> None:
    async def polled() -> bool:
        return bool((await plane.stub().GetBmc(pb.GetBmcRequest(machine=bmc.machine))).HasField("observed_time"))

    await eventually(polled)  # the poll after the registration logs in, too
    client = RmcpClient()
    link = await logged_in(client, bmc)
    await configure(link, enabled=False)
    with pytest.raises(Unimplemented, match="CONSOLE_UNSUPPORTED"):
        await refused(plane, bmc.machine)
    await configure(link, enabled=True)
    await client.close()
    bmc.faults.switch_on("hang")
    with pytest.raises(Unavailable, match="BMC_TIMEOUT"):
        await refused(plane, bmc.machine)
    bmc.faults.clear()
    bmc.faults.switch_on("wrong-password")
    for reason in ("BMC_AUTH_FAILED", "BMC_AUTH_FAILED", "BMC_LOGIN_BLOCKED"):
        with pytest.raises(FailedPrecondition, match=reason):
            await refused(plane, bmc.machine)
    assert bmc.logins.failed == 2


async def test_a_second_replica_names_the_first_and_may_have_the_console_when_nobody_reads(
    plane: Any, bmc: SimulatedBmc, eventually: Eventually
) -> None:
    first = plane.running
    async with sit_down(plane, bmc.machine) as person:
        await plane.start()
        with pytest.raises(FailedPrecondition, match="CONSOLE_ELSEWHERE") as refusal:
            await refused(plane, bmc.machine, take_over=True)
        [row] = await plane.rows("SELECT holder, session FROM console")
        assert refusal.value.metadata["owner"] == row["holder"]
        assert row["session"]
        bmc.serial.write(b"undisturbed")
        await person.reads(b"undisturbed")

    async def idle() -> bool:
        return bool(await plane.rows("SELECT 1 FROM console WHERE idle"))

    await eventually(idle)
    async with sit_down(plane, bmc.machine) as person:
        bmc.serial.write(b"at the second")
        await person.reads(b"at the second")
        await first.stop(0)
        bmc.serial.write(b", still")
        await person.reads(b", still")


async def test_a_session_that_a_replica_left_behind_is_known_and_replaced(plane: Any, bmc: SimulatedBmc) -> None:
    async with foreign_console(bmc) as (_, foreign):
        values = (bmc.machine, foreign.called)
        await plane.rows("INSERT INTO console VALUES ($1, 'fra1', 'dead', now() - interval '1 s', false, $2)", *values)
        async with sit_down(plane, bmc.machine) as person:
            bmc.serial.write(b"taken up")
            await person.reads(b"taken up")


async def test_deleting_the_bmc_ends_its_console(plane: Any, bmc: SimulatedBmc) -> None:
    async with sit_down(plane, bmc.machine) as person:
        await plane.stub().DeleteBmc(pb.DeleteBmcRequest(machine=bmc.machine))
        with pytest.raises(Unavailable, match="CONSOLE_ELSEWHERE"):
            await person.next()


async def test_streams_end_when_the_service_stops(plane: Any, bmc: SimulatedBmc) -> None:
    async with sit_down(plane, bmc.machine) as person:
        stopping = asyncio.create_task(plane.running.stop(5))
        with pytest.raises(Unavailable, match="STOPPING"):
            await person.next()
        await stopping
    assert not bmc.console_taken
    assert not bmc.active_sessions
    assert not await plane.rows("SELECT 1 FROM console")


async def test_what_passes_is_in_the_recording_and_nowhere_else(plane: Any, new_bmc: NewBmc, tmp_path: Path) -> None:
    out = io.StringIO()
    logs.configure("debug", stream=out)
    try:
        await plane.start(console_recordings=str(tmp_path))
        bmc = await new_bmc()
        await plane.register(bmc)
        async with sit_down(plane, bmc.machine) as person:
            await person.send(data=b"s3cret-typed")
            bmc.serial.write(b"s3cret-printed")
            await person.reads(b"s3cret-printed")
        await plane.running.stop(5)
    finally:
        logs.configure()
    tables = await plane.rows("SELECT table_name FROM information_schema.tables WHERE table_schema = 'bmc'")
    rows = [repr(await plane.rows(f'SELECT * FROM "{table["table_name"]}"')) for table in tables]
    assert "console.attached" in out.getvalue()
    assert "s3cret" not in out.getvalue()
    assert not any("s3cret" in row for row in rows)
    recording = tmp_path / f"{bmc.machine}.log"
    assert b"s3cret-printed" in recording.read_bytes()
    assert b"s3cret-typed" not in recording.read_bytes()
    assert recording.stat().st_mode & 0o777 == 0o600
    # The stream's beginning and end are in the audit log, with the machine.
    audited = [row for row in rows if "BmcService/Console" in row]
    assert audited
    assert all(bmc.machine in row for row in audited)


async def logged_in(client: RmcpClient, bmc: SimulatedBmc) -> Link:
    give_up = asyncio.get_running_loop().time() + 10
    return await client.open(Login(*bmc.address, "metal", PASSWORD), give_up=give_up)


async def configure(link: Link, *, enabled: bool) -> None:
    give_up = asyncio.get_running_loop().time() + 10
    request = Request(0x0C, 0x21, bytes((1, 1, int(enabled))))
    assert (await link.ask(request, waits=(1, 1), give_up=give_up)).code == 0


@asynccontextmanager
async def foreign_console(bmc: SimulatedBmc, *, take_over: bool = False) -> AsyncIterator[tuple[bytearray, SolConsole]]:
    """Somebody who is not the plane has the console."""
    client, screen = RmcpClient(), bytearray()
    link = await logged_in(client, bmc)
    give_up = asyncio.get_running_loop().time() + 10
    ears = Ears(screen.extend, lambda: None)
    console = await SolConsole.open(link, ears, Mode(take_over), give_up=give_up)
    try:
        yield screen, console
    finally:
        await console.close(give_back=False)
        await client.close()
