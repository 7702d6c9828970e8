"""The console of one machine from its first reader to a while after the last: opened, kept, opened again.

One task owns the session with the BMC (`run`). Readers come and go beside it; what the writer types waits in a small
buffer until the BMC has taken it, and is dropped while there is no BMC: keys must not arrive minutes after they were
pressed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from metal_kit.backoff import Backoff
from metal_kit.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    OutOfRange,
    Problem,
    ResourceExhausted,
    Unavailable,
)
from metal_kit.logs import get_logger

from metal_bmc import metrics
from metal_bmc.console.attachment import Attachment, Event, News
from metal_bmc.console.recording import Recorder
from metal_bmc.console.ring import Ring
from metal_bmc.rmcp.console import ConsoleLost, Ears, Mode, SolConsole
from metal_bmc.rmcp.failures import RmcpFailure

log = get_logger(__name__)

MOST_READERS = 16
_MOST_TYPED = 1 << 12
_BREAK = object()
_BACKOFF = Backoff(timedelta(seconds=1), timedelta(seconds=15), timedelta(seconds=0.3))


@dataclass(frozen=True, slots=True)
class ConsolePlan:
    """Bounds of a console. Seconds: `linger` without a reader, `idle` without a character either way, `reopen` in which
    a lost BMC has to come back."""

    ring_bytes: int = 1 << 18
    linger: float = 60.0
    idle: float = 4 * 3600.0
    reopen: float = 900.0
    backoff: Backoff = _BACKOFF


@dataclass(frozen=True, slots=True)
class Wish:
    """How somebody wants to read. `position` goes on where an earlier reader was, else `replay` bytes come first."""

    caller: str
    read_only: bool = False
    take_over: bool = False
    replay: int = 0
    position: str = ""


Open = Callable[[Ears, Mode], Awaitable[SolConsole]]


class MachineConsole:
    """`open_` gives an active console or raises a Problem; one that is Unavailable may pass."""

    def __init__(self, machine: str, open_: Open, plan: ConsolePlan, recorder: Recorder | None) -> None:
        self.machine = machine
        self.readers: set[Attachment] = set()
        self.former: bytes | None = None
        """What the BMC calls the session that we have, or had and never gave back."""
        self._open, self._plan, self._recorder = open_, plan, recorder
        self._ring = Ring(plan.ring_bytes)
        self._name = secrets.token_hex(6)
        self._writer: Attachment | None = None
        self._typed: list[bytes | object] = []
        self._typed_bytes = 0
        self._keys, self._room = asyncio.Event(), asyncio.Event()
        self._sol: SolConsole | None = None
        self._ours = True
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._over: asyncio.Future[Problem | None] = asyncio.get_running_loop().create_future()
        self._lingering: asyncio.TimerHandle | None = None
        self._moved = asyncio.get_running_loop().time()

    # Readers

    @property
    def ending(self) -> bool:
        """Whether it takes no more readers."""
        return self._over.done()

    @property
    def writer(self) -> str:
        """Who may type; empty when nobody does."""
        return self._writer.caller if self._writer is not None else ""

    def attach(self, wish: Wish) -> Attachment:
        """A new reader. Raises CONSOLE_HAS_WRITER, TOO_MANY_READERS, CONSOLE_POSITION_GONE."""
        if len(self.readers) >= MOST_READERS:
            raise ResourceExhausted("TOO_MANY_READERS", f"{MOST_READERS} read this console already")
        if not wish.read_only and self._writer is not None and not wish.take_over:
            raise FailedPrecondition(
                "CONSOLE_HAS_WRITER",
                f"{self.writer} types at this console; read it (read_only), or take it over (take_over)",
                field="open.take_over",
                metadata={"writer": self.writer},
            )
        made = Attachment(self._ring, caller=wish.caller, position=self._begin_at(wish))
        self.readers.add(made)
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        if not wish.read_only:
            self._hand_over(made)
        made.tell(News(Event.OPENED, made.position, writer=self.writer))
        return made

    def detach(self, attachment: Attachment) -> None:
        """The reader has gone; the console is closed when none comes for a while."""
        self.readers.discard(attachment)
        self.lay_down(attachment)
        if not self.readers and not self.ending and self._lingering is None:
            loop = asyncio.get_running_loop()
            self._lingering = loop.call_later(self._plan.linger if self._sol is not None else 0, self.end)

    def lay_down(self, attachment: Attachment) -> None:
        """The writer, if it is the one, types no more."""
        if self._writer is attachment:
            self._hand_over(None)

    async def ready(self) -> None:
        """Wait until the console is open for the first time. Raises the Problem that keeps it from being."""
        await asyncio.shield(self._ready)

    async def type(self, attachment: Attachment, data: bytes) -> None:
        """Keys of a reader; nobody's but the writer's are taken. Waits while the BMC is slow."""
        while self._writer is attachment and self._typed_bytes >= _MOST_TYPED and not self.ending:
            self._room.clear()
            await self._room.wait()
        self._put(attachment, data, len(data))

    async def typed_out(self, attachment: Attachment) -> None:
        """Wait until the BMC has been given what this reader has typed."""
        while self._writer is attachment and self._typed and not self.ending:
            self._room.clear()
            await self._room.wait()

    def send_break(self, attachment: Attachment) -> None:
        """Hold the line low for a moment, after what was typed before."""
        self._put(attachment, _BREAK, 0)

    def end(self, problem: Problem | None = None) -> None:
        """Close the console. Readers are told the problem."""
        if not self._over.done():
            self._over.set_result(problem)

    def abandon(self, problem: Problem) -> None:
        """Close the console without giving it back: it is another replica's by now."""
        self._ours = False
        self.end(problem)

    def position_name(self, position: int) -> str:
        """A position as readers name it; it means nothing to another console."""
        return f"{self._name}:{position}"

    def _begin_at(self, wish: Wish) -> int:
        ring = self._ring
        if not wish.position:
            return max(ring.start, ring.end - wish.replay)
        name, _, text = wish.position.partition(":")
        if name != self._name or not text.isdecimal() or len(text) > 18 or int(text) > ring.end:
            raise OutOfRange(
                "CONSOLE_POSITION_GONE",
                "the console was closed since then; open it without a position",
                field="open.position",
            )
        return int(text)

    def _put(self, attachment: Attachment, what: bytes | object, size: int) -> None:
        if self._writer is attachment and self._sol is not None:
            self._typed.append(what)
            self._typed_bytes += size
            self._keys.set()

    def _hand_over(self, to: Attachment | None) -> None:
        self._drop_keys()
        self._writer = to
        for reader in self.readers - {to}:
            reader.tell(News(Event.WRITER_CHANGED, self._ring.end, writer=self.writer))

    def _drop_keys(self) -> None:
        self._typed.clear()
        self._typed_bytes = 0
        self._room.set()

    # The session with the BMC

    async def run(self, mode: Mode) -> None:
        """Open the console and keep it until `end`, or until it cannot be had any longer; all readers end with it."""
        serving = asyncio.create_task(self._serve(mode), name=f"console {self.machine}")
        problem: Problem | None = None
        try:
            ends: list[asyncio.Future[Any]] = [serving, self._over]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._over.done():
                problem = self._over.result()
        finally:
            serving.cancel()
            [outcome] = await asyncio.gather(serving, return_exceptions=True)
            if isinstance(outcome, Problem):
                problem = outcome
            elif isinstance(outcome, Exception):
                log.error("console.failed", machine=self.machine, exc_info=outcome)
                problem = Unavailable("CONSOLE_FAILED", "the console has failed; the service's log says why")
            self.end(problem)
            self._finish(problem)

    def _finish(self, problem: Problem | None) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
        self._drop_keys()
        if not self._ready.done():
            self._ready.set_exception(
                problem or Unavailable("CONSOLE_CLOSED", "the console is being closed; try again")
            )
            self._ready.exception()  # nobody may be waiting any more
        for reader in list(self.readers):
            reader.end(problem)

    async def _serve(self, mode: Mode) -> None:
        self._sol = await self._open(self._ears(), mode)
        self._ready.set_result(None)
        self._note("console opened")
        while True:
            self.former = self._sol.called
            cause = await self._use(self._sol)
            self._sol = None
            self._drop_keys()
            log.warning("console.lost", machine=self.machine, cause=cause)
            metrics.CONSOLE_LOSSES.inc()
            self._note(f"console lost: {cause}")
            self._tell(Event.LOST, cause)
            self._sol = await self._open_again()
            log.info("console.reopened", machine=self.machine)
            self._note("console opened again")
            self._tell(Event.REOPENED)

    async def _open_again(self) -> SolConsole:
        loop = asyncio.get_running_loop()
        give_up, attempt = loop.time() + self._plan.reopen, 0
        while True:
            await asyncio.sleep(self._plan.backoff.delay(attempt).total_seconds())
            try:
                return await self._open(self._ears(), Mode(former=self.former))
            except Unavailable as problem:
                if loop.time() >= give_up:
                    raise Unavailable("CONSOLE_LOST", f"the BMC did not come back: {problem.message}") from None
                attempt += 1

    async def _use(self, sol: SolConsole) -> str:
        """Use an open console until it is lost; why."""
        works = [
            asyncio.create_task(work, name=f"console {self.machine} {name}")
            for name, work in (("keep", sol.keep()), ("keys", self._pump(sol)), ("idle", self._wait_idle()))
        ]
        lost: BaseException | None = None
        try:
            done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
            lost = next(iter(done)).exception()
        finally:
            for work in works:
                work.cancel()
            await asyncio.gather(*works, return_exceptions=True)
            # What another session has by now is not ours to give back.
            await asyncio.shield(sol.close(give_back=self._ours and not isinstance(lost, ConsoleLost)))
        if isinstance(lost, (ConsoleLost, RmcpFailure)):
            return str(lost)
        raise lost or RuntimeError("a part of the console ended by itself")

    async def _pump(self, sol: SolConsole) -> None:
        """Give the BMC what was typed."""
        while True:
            while not self._typed:
                self._keys.clear()
                await self._keys.wait()
            self._moved = asyncio.get_running_loop().time()
            if self._typed[0] is _BREAK:
                del self._typed[0]
                self._room.set()
                await sol.send_break()
                continue
            data = b""
            while self._typed and isinstance(part := self._typed[0], bytes):
                data += part
                del self._typed[0]
            self._typed_bytes = 0
            self._room.set()
            await sol.type(data)

    async def _wait_idle(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            left = self._moved + self._plan.idle - loop.time()
            if left <= 0:
                raise DeadlineExceeded("CONSOLE_IDLE", f"nothing was typed or printed for {self._plan.idle:g} s")
            await asyncio.sleep(left)

    def _ears(self) -> Ears:
        return Ears(self._printed, lambda: self._tell(Event.GAP, "the BMC could not keep all that was printed"))

    def _printed(self, data: bytes) -> None:
        self._moved = asyncio.get_running_loop().time()
        self._ring.append(data)
        for reader in self.readers:
            reader.wake()
        if self._recorder is not None:
            self._recorder.record(self.machine, data)

    def _tell(self, event: Event, message: str = "") -> None:
        for reader in self.readers:
            reader.tell(News(event, self._ring.end, writer=self.writer, message=message))

    def _note(self, text: str) -> None:
        if self._recorder is not None:
            self._recorder.note(self.machine, text)
