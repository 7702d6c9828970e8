"""Who may talk to a BMC next: one at a time, people's orders first, with a pause in between, and few at once in a rack.

A BMC is a small computer that answers slowly and wedges under load, so its door is passed by one exchange after the
other. Those that wait are called by rank, but nobody is overtaken for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import IntEnum

from metal_bmc.drivers.errors import DriverBusy

MOST_OVERTAKEN = 8
"""How many that came later may go first; then it is one's turn whatever the rank."""


class Rank(IntEnum):
    """What an exchange is for; the lower goes first."""

    USER = 0
    RECONCILE = 1
    POLL = 2
    INVENTORY = 3


@dataclass(eq=False, slots=True)
class Ticket:
    """One that waits."""

    rank: Rank
    turn: asyncio.Future[None] | None = None
    overtaken: int = field(default=0)


class Line:
    """Those that wait, in the order in which they came. Pure."""

    def __init__(self) -> None:
        self._waiting: list[Ticket] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, ticket: Ticket) -> None:
        """Wait behind the others."""
        self._waiting.append(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Wait no longer."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)

    def call(self) -> Ticket | None:
        """Whose turn it is, who then waits no longer; None when nobody waits."""
        if not self._waiting:
            return None
        patient = (each for each in self._waiting if each.overtaken >= MOST_OVERTAKEN)
        called = next(patient, None) or min(self._waiting, key=lambda each: each.rank)
        for each in self._waiting[: self._waiting.index(called)]:
            each.overtaken += 1
        self._waiting.remove(called)
        return called


class Gate:
    """Lets `limit` through at a time; `gap` seconds pass between the end of one and the beginning of the next."""

    def __init__(self, limit: int, *, gap: float = 0.0) -> None:
        self._free, self._gap = limit, gap
        self._line = Line()
        self._inside = 0

    @property
    def idle(self) -> bool:
        """Whether nobody is inside, waits, or has been inside just now."""
        return self._inside == 0 and not self._line

    async def enter(self, rank: Rank, give_up: float) -> None:
        """Wait for one's turn until `give_up` on the event loop's clock. Raises DriverBusy when it does not come."""
        self._inside += 1
        try:
            if self._free > 0:
                self._free -= 1
            else:
                await self._wait(Ticket(rank, asyncio.get_running_loop().create_future()), give_up)
        except BaseException:
            self._inside -= 1
            raise

    async def _wait(self, ticket: Ticket, give_up: float) -> None:
        assert ticket.turn is not None
        self._line.join(ticket)
        try:
            async with asyncio.timeout_at(give_up):
                await ticket.turn
        except BaseException as error:
            self._line.leave(ticket)
            if ticket.turn.done() and not ticket.turn.cancelled():
                # It was called at the very moment at which it gave up.
                self._pass_on()
            if isinstance(error, TimeoutError):
                raise DriverBusy("other exchanges did not end in time") from None
            raise

    def leave(self) -> float:
        """The exchange has ended. The seconds until the gate may be forgotten if it is `idle` then."""
        if self._gap <= 0:
            self._leave()
            return 0.0
        asyncio.get_running_loop().call_later(self._gap, self._leave)
        return self._gap

    def _leave(self) -> None:
        self._inside -= 1
        self._pass_on()

    def _pass_on(self) -> None:
        called = self._line.call()
        while called is not None:
            assert called.turn is not None
            if not called.turn.done():
                called.turn.set_result(None)
                return
            called = self._line.call()
        self._free += 1


class Doors:
    """The doors of BMCs and racks, made when they are needed and dropped when they are idle.

    `gap` is the pause between two exchanges with one BMC, in seconds; `per_rack` how many exchanges with BMCs of one
    rack run at once in this process.
    """

    def __init__(self, *, gap: float = 0.0, per_rack: int = 20) -> None:
        self._gap, self._per_rack = gap, per_rack
        self._gates: dict[tuple[str, str], Gate] = {}

    def __len__(self) -> int:
        return len(self._gates)

    def bmc(self, machine: str) -> _Passage:
        """The door of a machine's BMC."""
        return _Passage(self._gates, ("bmc", machine), 1, self._gap)

    def rack(self, rack: str) -> _Passage:
        """The way to a rack's BMCs; without a rack, all of them are told apart by nothing and nobody waits."""
        return _Passage(self._gates, ("rack", rack), self._per_rack if rack else 1 << 30, 0.0)


@dataclass(slots=True)
class _Passage:
    gates: dict[tuple[str, str], Gate]
    key: tuple[str, str]
    limit: int
    gap: float

    @asynccontextmanager
    async def passed(self, rank: Rank, give_up: float) -> AsyncIterator[None]:
        """Be inside within the block. Raises DriverBusy when one's turn does not come before `give_up`."""
        gate = self.gates.get(self.key)
        if gate is None:
            gate = self.gates[self.key] = Gate(self.limit, gap=self.gap)
        await gate.enter(rank, give_up)
        try:
            yield
        finally:
            after = gate.leave()
            if after:
                asyncio.get_running_loop().call_later(after, self._forget, gate)
            else:
                self._forget(gate)

    def _forget(self, gate: Gate) -> None:
        if gate.idle and self.gates.get(self.key) is gate:
            del self.gates[self.key]
