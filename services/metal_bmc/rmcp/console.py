"""The serial console of one BMC over a session of its own: activating it, keeping it, typing, giving it back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from metal_bmc.rmcp.failures import NoAnswer, RmcpFailure
from metal_bmc.rmcp.link import Link
from metal_bmc.rmcp.login import PATIENT
from metal_bmc.rmcp.messages import ACTIVATE_SOL, DEACTIVATE_SOL, SOL_OWNER, Response
from metal_bmc.rmcp.session import Dropped
from metal_bmc.rmcp.sol import Heard, SolEnd, most_characters, parse
from metal_bmc.rmcp.waiting import within

_ACTIVE_ELSEWHERE, _DISABLED, _LIMIT = 0x80, 0x81, 0x82
_WITHOUT_ENCRYPTION_ONLY = 0x83
_UNKNOWN = {0xC1, 0xC2}
_SENDINGS = (0.3, 0.6, 1.2, 2.4, 2.4)
_REFUSED_PAUSE = 0.1
_MOST_REFUSALS = 100
_GOODBYE_SECONDS = 1.0
_NO_OWNER = bytes(4)
# 623, whatever port leads to it from here; some have the bytes the wrong way round, and some name none.
_STANDARD_PORTS = (b"\x6f\x02", b"\x02\x6f", b"\x00\x00", b"\xff\xff")


class ConsoleRefused(Exception):
    """The BMC answers, and does not give the console."""


class ConsoleTaken(ConsoleRefused):
    """Another session has it."""


class ConsoleUnsupported(ConsoleRefused):
    """The BMC has none, or it is switched off, or only without encryption."""


class ConsoleLost(Exception):
    """The BMC has ended the console, or another session has taken it."""


@dataclass(frozen=True, slots=True)
class Watch:
    """How a console is kept, in seconds: a question after so much silence, and how long its answer may take."""

    silence: float = 10.0
    waits: tuple[float, ...] = (1.0, 2.0, 3.0)


USUAL = Watch()


@dataclass(frozen=True, slots=True)
class Mode:
    """Whether the console may be taken from a session that has it: from anybody with `take_over`, else from our own.

    `former` is what the BMC called the session that we had before: None when there was none, empty when it did not
    tell.
    """

    take_over: bool = False
    former: bytes | None = None

    def knows(self, owner: bytes, link: Link) -> bool:
        """Whether the session is our own: the former one, or this one, which an answer that was lost makes a stranger.

        A BMC calls it by its own number or, as some do, by ours.
        """
        session = link.session
        ours = (session.managed_id.to_bytes(4, "little"), session.console_id.to_bytes(4, "little"))
        return owner in ours or (self.former is not None and (not self.former or owner in (self.former, b"")))


@dataclass(frozen=True, slots=True)
class Ears:
    """Who hears: `characters` gets what the machine prints; `gap` is called when the BMC lost some of that before."""

    characters: Callable[[bytes], None]
    gap: Callable[[], None]


class SolConsole:
    """An active console. `open` makes one; `keep` has to run for as long as it is used, and `close` ends it."""

    def __init__(self, link: Link, ears: Ears, *, inbound: int, watch: Watch = USUAL) -> None:
        self._link, self._ears, self._watch = link, ears, watch
        self.called = b""
        """What the BMC calls our session; empty when it does not tell."""
        self._most = most_characters(inbound)
        self._end = SolEnd()
        self._settled: asyncio.Future[None] | None = None
        self._over = asyncio.Event()
        link.on_sol = self._receive

    @classmethod
    async def open(cls, link: Link, ears: Ears, mode: Mode, *, give_up: float, watch: Watch = USUAL) -> SolConsole:
        """Activate the console on a fresh session.

        Raises ConsoleRefused and RmcpFailure; the session is the caller's to close then.
        """
        response = await link.ask(ACTIVATE_SOL, waits=PATIENT, give_up=give_up)
        if response.code == _ACTIVE_ELSEWHERE:
            if not (mode.take_over or mode.knows(await _owner(link, PATIENT, give_up), link)):
                raise ConsoleTaken("another session has the serial console of this BMC")
            await link.ask(DEACTIVATE_SOL, waits=PATIENT, give_up=give_up)
            response = await link.ask(ACTIVATE_SOL, waits=PATIENT, give_up=give_up)
        _check(response, link)
        made = cls(link, ears, inbound=int.from_bytes(response.data[4:6], "little"), watch=watch)
        # What a BMC calls a session here is not always one of its numbers; later it is compared with this.
        made.called = await _owner(link, PATIENT, give_up)
        return made

    async def keep(self) -> None:
        """Watch over the console until it is lost. Raises ConsoleLost when it was ended, NoAnswer for a dead BMC."""
        loop = asyncio.get_running_loop()
        while True:
            quiet = loop.time() - self._link.heard
            try:
                async with asyncio.timeout(max(0.05, self._watch.silence - quiet)):
                    await self._over.wait()
                raise ConsoleLost("the BMC has ended the serial console")
            except TimeoutError:
                if loop.time() - self._link.heard >= self._watch.silence:
                    await self._ask_whether_ours()

    async def type(self, characters: bytes) -> None:
        """Give characters to the machine, in order; returns when the BMC has taken them. One caller at a time.

        Raises NoAnswer when it takes none for some seconds, and ConsoleLost.
        """
        refusals = 0
        while characters:
            part, characters = characters[: self._most], characters[self._most :]
            rest = await self._deliver(part)
            characters = rest + characters
            refusals = refusals + 1 if len(rest) == len(part) else 0
            if refusals >= _MOST_REFUSALS:
                raise NoAnswer("the BMC takes no characters")
            if rest:
                await asyncio.sleep(_REFUSED_PAUSE)

    async def send_break(self) -> None:
        """Hold the machine's serial line low for a moment. Raises as `type`."""
        await self._deliver(b"", with_break=True)

    async def close(self, *, give_back: bool = True) -> None:
        """Give the console back, unless it is another's by now, and end the session; waits a moment for the BMC."""
        give_up = asyncio.get_running_loop().time() + _GOODBYE_SECONDS
        self._link.on_sol = None
        self._over.set()
        try:
            if give_back:
                await self._link.ask(DEACTIVATE_SOL, waits=(0.5, 0.5), give_up=give_up)
        except RmcpFailure:
            self._link.part()
        else:
            await self._link.close(give_up=give_up)

    async def _deliver(self, characters: bytes, *, with_break: bool = False) -> bytes:
        """Send one packet until it is settled; what the BMC did not take of it."""
        packet = self._end.send(characters, with_break=with_break)
        loop = asyncio.get_running_loop()
        try:
            for wait in _SENDINGS:
                if self._over.is_set():
                    raise ConsoleLost("the BMC has ended the serial console")
                self._settled = loop.create_future()
                self._link.send_sol(packet)
                try:
                    await within(self._settled, wait)
                except NoAnswer:
                    continue
                return self._end.rest
        finally:
            self._settled = None
        raise NoAnswer("the BMC does not acknowledge what is typed")

    def _receive(self, payload: bytes) -> None:
        packet = parse(payload)
        if packet is None:
            raise Dropped("garbage")
        heard: Heard = self._end.hear(packet)
        if heard.reply:
            self._link.send_sol(heard.reply)
        if heard.settled and self._settled is not None and not self._settled.done():
            self._settled.set_result(None)
        if heard.gone or heard.overrun:
            self._ears.gap()
        if heard.characters:
            self._ears.characters(heard.characters)
        if heard.ended:
            self._over.set()

    async def _ask_whether_ours(self) -> None:
        give_up = asyncio.get_running_loop().time() + sum(self._watch.waits)
        # A BMC that cannot tell has at least to answer in this session.
        owner = await _owner(self._link, self._watch.waits, give_up)
        if self.called and owner == _NO_OWNER:
            raise ConsoleLost("the serial console is no longer active on the BMC")
        if self.called and owner != self.called:
            raise ConsoleLost("another session has taken the serial console")


async def _owner(link: Link, waits: Sequence[float], give_up: float) -> bytes:
    """What the BMC calls the session that has the console; empty when it does not tell."""
    answer = await link.ask(SOL_OWNER, waits=waits, give_up=give_up)
    return answer.data[:4] if not answer.code and len(answer.data) >= 4 else b""


def _check(response: Response, link: Link) -> None:
    code = response.code
    if code in {_ACTIVE_ELSEWHERE, _LIMIT}:
        raise ConsoleTaken("the BMC gives its serial console to no further session")
    if code == _DISABLED:
        raise ConsoleUnsupported("the serial console is switched off in the BMC's configuration")
    if code == _WITHOUT_ENCRYPTION_ONLY:
        raise ConsoleUnsupported("the BMC gives its serial console without encryption only")
    if code in _UNKNOWN:
        raise ConsoleUnsupported("the BMC has no serial console")
    if code:
        raise ConsoleUnsupported(f"the BMC refuses the serial console with code {code:#04x}")
    port = response.data[8:10]
    if len(port) < 2 or (int.from_bytes(port, "little") != link.address[1] and port not in _STANDARD_PORTS):
        raise ConsoleUnsupported("the BMC wants its serial console on another port than its own")
