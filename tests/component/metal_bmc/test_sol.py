"""Our console client against simulated BMCs over real UDP: lossy, refusing, silent and restarting ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from metal_bmc.rmcp.client import RmcpClient
from metal_bmc.rmcp.console import ConsoleLost, ConsoleTaken, ConsoleUnsupported, Ears, Mode, SolConsole, Watch
from metal_bmc.rmcp.failures import NoAnswer
from metal_bmc.rmcp.handshake import Login
from metal_bmc.rmcp.messages import Request
from metal_sim.bmc import SimulatedBmc
from metal_sim.bmc.suites import SUITE_3, SUITE_17

PASSWORD = "pw-Tr0ub4dor-do-leak"
NewBmc = Callable[..., Awaitable[SimulatedBmc]]
QUICK = Watch(silence=0.2, waits=(0.2, 0.2))
TEXT = bytes(range(256)) * 4


class Screen:
    """What a console has heard."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.gaps = 0
        self.ears = Ears(self._hear, self._gap)
        self._news = asyncio.Event()

    async def shows(self, text: bytes, seconds: float = 10) -> None:
        """Wait until it has heard that text and nothing else."""
        async with asyncio.timeout(seconds):
            while bytes(self.text) != text:
                self._news.clear()
                await self._news.wait()

    def _hear(self, characters: bytes) -> None:
        self.text += characters
        self._news.set()

    def _gap(self) -> None:
        self.gaps += 1


Open = Callable[..., Awaitable[SolConsole]]


@pytest.fixture
async def open_console(client: RmcpClient) -> AsyncIterator[Open]:
    """Opens the console of a simulated BMC in a session of its own."""
    made: list[SolConsole] = []

    async def open_(bmc: SimulatedBmc, screen: Screen, *, take_over: bool = False) -> SolConsole:
        give_up = asyncio.get_running_loop().time() + 10
        link = await client.open(Login(*bmc.address, "metal", PASSWORD), give_up=give_up)
        try:
            console = await SolConsole.open(link, screen.ears, Mode(take_over), give_up=give_up, watch=QUICK)
        except BaseException:
            await link.close(give_up=give_up)
            raise
        made.append(console)
        return console

    yield open_
    await asyncio.gather(*(console.close() for console in made))


@pytest.mark.parametrize("suite", [SUITE_3, SUITE_17], ids=["3", "17"])
async def test_what_is_typed_reaches_the_machine_and_what_it_prints_comes_back(
    new_bmc: NewBmc, open_console: Open, suite: object
) -> None:
    bmc, screen = await new_bmc(suites=[suite]), Screen()
    bmc.serial.on_input = bmc.serial.write
    console = await open_console(bmc, screen)
    await console.type(TEXT)
    await screen.shows(TEXT)
    await console.send_break()
    assert bmc.serial.breaks == 1
    await console.close()
    assert not bmc.console_taken
    assert not bmc.active_sessions


@pytest.mark.parametrize("fault", ["sol-drop", "sol-takes-half"])
async def test_nothing_is_lost_or_doubled_on_a_bad_line(new_bmc: NewBmc, open_console: Open, fault: str) -> None:
    bmc, screen = await new_bmc(), Screen()
    bmc.serial.on_input = bmc.serial.write
    console = await open_console(bmc, screen)
    bmc.faults.switch_on(fault)
    await console.type(TEXT[:200])
    await screen.shows(TEXT[:200])
    assert not screen.gaps


async def test_a_second_session_is_refused_until_it_takes_over(new_bmc: NewBmc, open_console: Open) -> None:
    bmc, first, second = await new_bmc(), Screen(), Screen()
    console = await open_console(bmc, first)
    with pytest.raises(ConsoleTaken):
        await open_console(bmc, second)
    assert bmc.active_sessions == 1, "the refused one has closed its session"
    await open_console(bmc, second, take_over=True)
    with pytest.raises(ConsoleLost):
        await asyncio.wait_for(console.keep(), 5)
    bmc.serial.write(b"for the second")
    await second.shows(b"for the second")
    assert not first.text


async def test_a_lost_answer_to_the_activation_is_no_stranger(new_bmc: NewBmc, open_console: Open) -> None:
    bmc, screen = await new_bmc(), Screen()
    # Open Session, RAKP 1 and 3, the privilege: two packets each. The BMC hears the activation, its answer is lost.
    bmc.faults.lose_packets(1, after=9)
    await open_console(bmc, screen)
    assert bmc.seen[(6, 0x48)] == 3
    assert not bmc.faults.losses_left
    bmc.serial.write(b"here")
    await screen.shows(b"here")


@pytest.mark.parametrize("happens", ["restart", "hang", "deactivated"])
async def test_the_loss_of_the_console_is_noticed(new_bmc: NewBmc, open_console: Open, happens: str) -> None:
    bmc, screen = await new_bmc(), Screen()
    console = await open_console(bmc, screen)
    keeping = asyncio.create_task(console.keep())
    if happens == "restart":
        bmc.forget_sessions()
    elif happens == "hang":
        bmc.faults.switch_on("hang")
    else:
        # By somebody whose farewell is lost: the console asks whether it is still its own.
        bmc.faults.switch_on("sol-drop", 100)
        other = RmcpClient()
        login = Login(*bmc.address, "metal", PASSWORD)
        give_up = asyncio.get_running_loop().time() + 5
        await other.ask(login, Request(6, 0x49, b"\x01\x01\0\0\0\0"), give_up=give_up)
        await other.close()
    with pytest.raises(ConsoleLost if happens == "deactivated" else NoAnswer):
        await asyncio.wait_for(keeping, 10)


async def test_a_console_that_takes_nothing_is_given_up_while_commands_are_answered(
    new_bmc: NewBmc, open_console: Open
) -> None:
    bmc, screen = await new_bmc(), Screen()
    console = await open_console(bmc, screen)
    bmc.faults.switch_on("sol-silent")
    with pytest.raises(NoAnswer, match="typed"):
        await asyncio.wait_for(console.type(b"anybody there?"), 15)


async def test_what_the_bmc_could_not_keep_is_a_gap(new_bmc: NewBmc, open_console: Open) -> None:
    bmc, screen = await new_bmc(), Screen()
    await open_console(bmc, screen)
    bmc.serial.write(b"x" * 50_000)
    await screen.shows(b"x" * (1 << 14))
    assert screen.gaps == 1


async def test_a_console_that_is_switched_off_is_unsupported(new_bmc: NewBmc, open_console: Open) -> None:
    bmc = await new_bmc()
    client = RmcpClient()
    give_up = asyncio.get_running_loop().time() + 5
    login = Login(*bmc.address, "metal", PASSWORD)
    assert (await client.ask(login, Request(0x0C, 0x21, b"\x01\x01\x00"), give_up=give_up)).code == 0
    await client.close()
    with pytest.raises(ConsoleUnsupported, match="switched off"):
        await open_console(bmc, Screen())
