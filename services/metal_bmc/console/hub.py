"""All consoles that this replica has open: who may open one, and that no other replica has it.

A console is claimed in the database before its BMC is asked, and the claim is renewed while it is open. Claims follow
the machine, not the replica that polls it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta

import asyncpg
from metal_kit.backoff import pause
from metal_kit.db import Database
from metal_kit.errors import FailedPrecondition, Problem, ResourceExhausted, Unavailable, Unimplemented
from metal_kit.lease import new_holder
from metal_kit.logs import get_logger

from metal_bmc import metrics
from metal_bmc.console.attachment import Attachment
from metal_bmc.console.machine import ConsolePlan, MachineConsole, Wish
from metal_bmc.console.recording import Recorder
from metal_bmc.drivers.errors import BmcAuthFailed, BmcError
from metal_bmc.drivers.interface import Capability, DriverKind, Target
from metal_bmc.drivers.sol import SolConsoles
from metal_bmc.endpoint import Endpoint
from metal_bmc.exchange import BmcExchange
from metal_bmc.registry import missing
from metal_bmc.rmcp.console import ConsoleRefused, ConsoleTaken, Ears, Mode, SolConsole
from metal_bmc.store import ConsoleStore, EndpointStore

log = get_logger(__name__)

_ELSEWHERE = "CONSOLE_ELSEWHERE"
_STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class HubPlan:
    """`most` consoles at once; `open_seconds` for one try to open one; claims hold for `claim`."""

    most: int = 64
    open_seconds: float = 10.0
    claim: timedelta = timedelta(seconds=15)
    console: ConsolePlan = field(default_factory=ConsolePlan)


@dataclass(frozen=True, slots=True)
class Seat:
    """A reader and the console that it reads."""

    console: MachineConsole
    attachment: Attachment


class ConsoleHub:
    """`run` it as a task: it renews the claims. `close` ends all consoles."""

    def __init__(
        self,
        db: Database,
        exchange: BmcExchange,
        consoles: SolConsoles,
        *,
        partition: str,
        plan: HubPlan,
        recorder: Recorder | None = None,
    ) -> None:
        self._db, self._exchange, self._sol, self._partition = db, exchange, consoles, partition
        self._plan, self._recorder = plan, recorder
        self._store, self._endpoints = ConsoleStore(), EndpointStore()
        self._holder = new_holder()
        self._consoles: dict[str, tuple[MachineConsole, asyncio.Task[None]]] = {}
        self._good_until: dict[str, float] = {}
        self._stopping = False

    async def attach(self, machine: str, wish: Wish) -> Seat:
        """Read a machine's console, which is opened for its first reader. Give the seat back with `leave`.

        Raises a Problem: no such BMC, another replica has the console, another session has it, somebody types, too
        many, or why the BMC cannot be talked to.
        """
        await self._check(machine)
        console = await self._console(machine, Mode(take_over=wish.take_over))
        attachment = console.attach(wish)
        try:
            await console.ready()
        except BaseException:
            console.detach(attachment)
            raise
        return Seat(console, attachment)

    def leave(self, seat: Seat) -> None:
        """The reader has gone."""
        seat.console.detach(seat.attachment)

    async def run(self, stopping: asyncio.Event) -> None:
        """Renew the claims until `stopping` is set; then all readers are told."""
        try:
            while not stopping.is_set():
                await pause(stopping, self._plan.claim / 3)
                if self._consoles and not stopping.is_set():
                    await self._renew()
        finally:
            await self.close()

    async def close(self) -> None:
        """End all consoles and give them back; may be called twice."""
        self._stopping = True
        for console, _ in self._consoles.values():
            console.end(Unavailable("STOPPING", "the service is being stopped; open the console again"))
        tasks = [task for _, task in self._consoles.values()]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_STOP_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _check(self, machine: str) -> None:
        async with self._db.connection() as connection:
            endpoint = await self._endpoints.get(connection, machine)
        if endpoint is None:
            raise missing(machine)
        if endpoint.partition != self._partition:
            raise FailedPrecondition(
                "OTHER_PARTITION", f"the machine is in the partition {endpoint.partition}; ask the service there"
            )
        # Whether SOL is switched on the BMC says best itself; what was seen at the last inspection may be hours old.
        if endpoint.driver is not DriverKind.IPMI or Capability.CONSOLE in endpoint.quirks.lacks:
            raise Unimplemented(
                "CONSOLE_UNSUPPORTED",
                f"consoles go over IPMI's SOL, which this machine's BMC ({endpoint.driver}) has not",
            )

    async def _console(self, machine: str, mode: Mode) -> MachineConsole:
        while True:
            if self._stopping:
                raise Unavailable("STOPPING", "the service is being stopped")
            found = self._consoles.get(machine)
            if found is None:
                break
            console, task = found
            if not console.ending:
                return console
            await asyncio.wait([task])
        self._make_room()

        async def open_(ears: Ears, mode: Mode) -> SolConsole:
            return await self._open(console, ears, mode)

        console = MachineConsole(machine, open_, self._plan.console, self._recorder)
        task = asyncio.create_task(self._own(console, mode), name=f"console {machine} owner")
        self._consoles[machine] = (console, task)
        return console

    def _make_room(self) -> None:
        if len(self._consoles) < self._plan.most:
            return
        for console, _ in self._consoles.values():
            if not console.readers and not console.ending:
                # It only waits for somebody to come back; its end is a matter of a moment.
                console.end()
                return
        raise ResourceExhausted(
            "TOO_MANY_CONSOLES",
            f"{self._plan.most} consoles are open on this replica",
            retry_after=timedelta(seconds=30),
        )

    async def _own(self, console: MachineConsole, mode: Mode) -> None:
        """A console's life, from the claim to its end."""
        metrics.CONSOLES.inc()
        try:
            try:
                await console.run(mode)
            finally:
                await asyncio.shield(self._release(console.machine))
        finally:
            metrics.CONSOLES.dec()
            self._good_until.pop(console.machine, None)
            del self._consoles[console.machine]

    async def _open(self, console: MachineConsole, ears: Ears, mode: Mode) -> SolConsole:
        """One try, under a claim. Raises a Problem, Unavailable where another try may help."""
        machine = console.machine
        former = await self._claim(machine)
        if mode.former is None:
            mode = Mode(mode.take_over, former)

        async def ask(_endpoint: Endpoint, target: Target, left: float) -> SolConsole | ConsoleRefused:
            return await self._sol.open(target, ears, mode, deadline=left)

        try:
            opened = await self._exchange.through(machine, ask, deadline=self._plan.open_seconds)
        except BmcError as error:
            raise _problem(error) from None
        if isinstance(opened, ConsoleRefused):
            raise _refusal(opened)
        try:
            async with self._db.connection() as connection:
                await self._store.opened(connection, machine, self._holder, opened.called)
        except BaseException:
            await asyncio.shield(opened.close())
            raise
        return opened

    async def _claim(self, machine: str) -> bytes | None:
        before = asyncio.get_running_loop().time()
        try:
            async with self._db.connection() as connection:
                claim = await self._store.claim(connection, machine, self._partition, self._holder, self._plan.claim)
        except asyncpg.ForeignKeyViolationError:
            raise missing(machine) from None
        if claim.owner:
            raise FailedPrecondition(
                _ELSEWHERE,
                f"the replica {claim.owner} has this console open, and somebody reads it there",
                metadata={"owner": claim.owner},
            )
        self._good_until[machine] = before + self._plan.claim.total_seconds()
        return claim.former

    async def _renew(self) -> None:
        before = asyncio.get_running_loop().time()
        mine = {machine: self._consoles[machine][0] for machine in self._good_until if machine in self._consoles}
        idle = {machine: not console.readers for machine, console in mine.items()}
        try:
            async with self._db.connection() as connection:
                kept = await self._store.renew(connection, idle, self._holder, self._plan.claim)
        except (Problem, asyncpg.PostgresError, OSError) as error:
            log.warning("console.claims_not_renewed", cause=type(error).__name__)
            lost = {machine for machine in mine if self._good_until.get(machine, 0.0) <= before}
        else:
            lost = mine.keys() - kept
            for machine in kept & self._good_until.keys():
                self._good_until[machine] = before + self._plan.claim.total_seconds()
        for machine in lost:
            mine[machine].abandon(
                Unavailable(_ELSEWHERE, "another replica has taken this console, or the BMC is no longer registered")
            )

    async def _release(self, machine: str) -> None:
        try:
            async with self._db.connection() as connection:
                await self._store.release(connection, machine, self._holder)
        except (Problem, asyncpg.PostgresError, OSError):
            log.warning("console.not_released", machine=machine)


def _problem(error: BmcError) -> Problem:
    kind = Unavailable if error.retryable and not isinstance(error, BmcAuthFailed) else FailedPrecondition
    return kind(f"BMC_{error.reason}", error.message)


def _refusal(refused: ConsoleRefused) -> Problem:
    if isinstance(refused, ConsoleTaken):
        return FailedPrecondition("CONSOLE_TAKEN", f"{refused}; take_over takes it", field="open.take_over")
    return Unimplemented("CONSOLE_UNSUPPORTED", str(refused))
