"""One exchange with a machine's BMC: the login and its account before, the observation after.

All talk to registered BMCs goes through here, so that four rules hold for commands, desired power and polls together:
only the owner asks, and only an owner's word is written; one exchange at a time per BMC, by rank; at most two refused
logins, then silence until the credentials change; and whatever the BMC says, or fails to say, is on record before
anyone decides by it. What is on record already is written with others.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

from metal_kit.clock import Clock
from metal_kit.controller import enqueue
from metal_kit.db import Database
from metal_kit.logs import get_logger

from metal_bmc import events, metrics
from metal_bmc.credentials import CredentialError, KeyRing
from metal_bmc.doors import Doors, Rank
from metal_bmc.drivers.errors import (
    BmcAuthFailed,
    BmcError,
    BmcUnsupported,
    DriverBusy,
    LoginBlocked,
    NoCredentials,
    Unreachable,
)
from metal_bmc.drivers.interface import BmcDriver, BootSetting, BootWish, DeviceInfo, Target
from metal_bmc.endpoint import Endpoint, Observation
from metal_bmc.identity import Match
from metal_bmc.journal import Journal
from metal_bmc.ownership import NotOwner, Ownership
from metal_bmc.pacing import next_look, opens
from metal_bmc.sharing import Tenure
from metal_bmc.store import EndpointStore

log = get_logger(__name__)

_T = TypeVar("_T")
Operation = Callable[[Endpoint, Target, float], Awaitable[_T]]
Sight = Callable[[Observation, _T], Observation]


def reconcile_kind(partition: str) -> str:
    """The kind in the reconcile queue: partitions may share a database, and each reaches its own BMCs only."""
    return f"bmc/{partition}"


@dataclass(frozen=True, slots=True)
class _Visit:
    """One exchange: what was known, by which right (None: as a guest, who writes nothing), what for, until when."""

    endpoint: Endpoint
    tenure: Tenure | None
    rank: Rank
    give_up: float


class BmcExchange:
    """Talks to registered BMCs by machine. Every method raises a BmcError after recording it; DriverBusy and
    Unreachable leave no record, since the BMC was not asked. NotOwner is raised when another replica has the BMC, or
    gets it meanwhile: then nothing of what was asked is recorded."""

    def __init__(
        self,
        db: Database,
        driver: BmcDriver,
        ring: KeyRing,
        clock: Clock,
        ownership: Ownership,
        *,
        doors: Doors,
        interval: timedelta,
    ) -> None:
        self._db, self._driver, self._ring, self._clock = db, driver, ring, clock
        self.ownership = ownership
        self._endpoints = EndpointStore()
        self._doors, self._interval = doors, interval
        self._refused_at: dict[str, float] = {}
        self._journal = Journal(db, ownership)

    async def powered(self, machine: str, *, deadline: float, rank: Rank = Rank.USER) -> bool:
        """Read the power."""

        async def ask(_endpoint: Endpoint, target: Target, left: float) -> bool:
            return await self._driver.powered(target, deadline=left)

        return await self._exchange(machine, deadline, ask, lambda seen, on: replace(seen, powered=on), rank)

    async def inspect(self, machine: str, *, deadline: float, rank: Rank = Rank.INVENTORY) -> DeviceInfo:
        """Read power and identity."""

        async def ask(_endpoint: Endpoint, target: Target, left: float) -> DeviceInfo:
            return await self._driver.inspect(target, deadline=left)

        def see(seen: Observation, info: DeviceInfo) -> Observation:
            now = self._clock.now()
            return replace(
                seen,
                powered=info.powered,
                firmware=info.firmware,
                fru=info.fru,
                inspected_at=now,
                capabilities=info.capabilities,
                guid=info.guid,
                manufacturer=info.manufacturer_id,
                said_mac=info.mac,
            )

        return await self._exchange(machine, deadline, ask, see, rank)

    async def set_power(self, machine: str, *, on: bool, deadline: float, rank: Rank = Rank.USER) -> None:
        """Order power on or off; says nothing about whether it happened."""

        async def ask(_endpoint: Endpoint, target: Target, left: float) -> None:
            await self._driver.set_power(target, on=on, deadline=left)

        await self._exchange(machine, deadline, ask, _unchanged, rank)

    async def reset(self, machine: str, *, deadline: float) -> None:
        """Send one hard reset."""

        async def ask(_endpoint: Endpoint, target: Target, left: float) -> None:
            await self._driver.reset(target, deadline=left)

        await self._exchange(machine, deadline, ask, _unchanged)

    async def interrupt(self, machine: str, *, deadline: float) -> None:
        """Send one non-maskable interrupt."""

        async def ask(_endpoint: Endpoint, target: Target, left: float) -> None:
            await self._driver.interrupt(target, deadline=left)

        await self._exchange(machine, deadline, ask, _unchanged)

    async def soft_off(self, machine: str, *, deadline: float) -> None:
        """Ask the operating system to shut down; says nothing about whether it does."""

        async def ask(_endpoint: Endpoint, target: Target, left: float) -> None:
            await self._driver.soft_off(target, deadline=left)

        await self._exchange(machine, deadline, ask, _unchanged)

    async def set_boot(self, machine: str, wish: BootWish, *, deadline: float) -> BootSetting:
        """Set the boot override; returns what reads back."""

        async def ask(_endpoint: Endpoint, target: Target, left: float) -> BootSetting:
            return await self._driver.set_boot(target, wish, deadline=left)

        return await self._exchange(machine, deadline, ask, _unchanged)

    async def set_identify(self, machine: str, *, on: bool, deadline: float) -> bool | None:
        """Switch the identify light; returns what reads back, None when the BMC does not tell."""

        async def ask(_endpoint: Endpoint, target: Target, left: float) -> bool | None:
            return await self._driver.set_identify(target, on=on, deadline=left)

        return await self._exchange(machine, deadline, ask, _unchanged)

    async def through(self, machine: str, ask: Operation[_T], *, deadline: float) -> _T:
        """Do something else with the BMC by the same rules. What `ask` raises is a BmcError.

        Also in a replica that does not own the BMC: people's consoles are where they connected, and have a lease of
        their own. What is found out about the BMC is then left to the owner's next poll.
        """
        try:
            return await self._exchange(machine, deadline, ask, _unchanged, owned=False)
        except NotOwner:
            raise DriverBusy("another replica took the BMC over meanwhile") from None

    async def write(self) -> None:
        """Write what was nothing new. Somebody has to call it now and then."""
        await self._journal.write()

    async def poll(self, known: Endpoint, *, read_at: float, deadline: float) -> None:
        """Read the power of a BMC whose row was read at `read_at` on the event loop's clock. When it is asked
        again is written with the answer."""

        async def ask(_endpoint: Endpoint, target: Target, left: float) -> bool:
            return await self._driver.powered(target, deadline=left)

        see: Sight[bool] = lambda seen, on: replace(seen, powered=on)  # noqa: E731
        await self._exchange(known.machine, deadline, ask, see, Rank.POLL, (known, read_at))

    async def _exchange(
        self,
        machine: str,
        deadline: float,
        ask: Operation[_T],
        see: Sight[_T],
        rank: Rank = Rank.USER,
        read: tuple[Endpoint, float] | None = None,
        *,
        owned: bool = True,
    ) -> _T:
        give_up = asyncio.get_running_loop().time() + deadline
        right = self.ownership.using(machine) if owned or self.ownership.owns(machine) else nullcontext()
        async with self._doors.bmc(machine).passed(rank, give_up), right as tenure:
            known: Endpoint | None
            if read is not None and self._refused_at.get(machine, read[1]) <= read[1]:
                known = read[0]
            else:
                # What was read before a login was refused knows nothing of that.
                async with self._db.connection() as connection:
                    known = await self._endpoints.get(connection, machine)
            if known is None:
                raise NoCredentials("no BMC is registered for the machine")
            if known.by_hand:
                raise BmcUnsupported("the machine has no BMC; a person does what is ordered of it")
            if known.unreachable and rank is Rank.RECONCILE:
                raise Unreachable("the BMC has not answered for a while; it is asked now and then")
            async with self._doors.rack(known.rack).passed(rank, give_up):
                return await self._behind_the_doors(_Visit(known, tenure, rank, give_up), ask, see)

    async def _behind_the_doors(self, visit: _Visit, ask: Operation[_T], see: Sight[_T]) -> _T:
        endpoint = visit.endpoint
        try:
            target = await self._login(endpoint, visit.tenure)
        except NoCredentials as error:
            await self._record(visit, _failure(error), error)
            raise
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            result = await ask(endpoint, target, max(0.1, visit.give_up - started))
        except DriverBusy as error:
            # Says nothing about the BMC, which was not asked.
            metrics.EXCHANGES.labels(error.reason).observe(loop.time() - started)
            await self._settle(endpoint, endpoint.refused_logins)
            raise
        except BmcError as error:
            metrics.EXCHANGES.labels(error.reason).observe(loop.time() - started)
            await self._after_failure(endpoint, error)
            await self._record(visit, _failure(error), error)
            raise
        except asyncio.CancelledError:
            await asyncio.shield(self._settle(endpoint, endpoint.refused_logins))
            raise
        metrics.EXCHANGES.labels("OK").observe(loop.time() - started)
        await self._settle(endpoint, 0)
        await self._answered(visit, lambda seen: see(seen, result))
        return result

    async def _answered(self, visit: _Visit, see: Callable[[Observation], Observation]) -> None:
        now, endpoint, known = self._clock.now(), visit.endpoint, visit.endpoint.observation
        seen = see(known)
        # An identity that was read is written at once, with the time of it.
        same = endpoint.calm and not _news(endpoint, seen) and seen.inspected_at == known.inspected_at
        if same and visit.tenure is not None:
            after = self._next_look(seen, None) if visit.rank >= Rank.POLL else None
            self._journal.add(endpoint, visit.tenure, now, after)
            return
        await self._record(visit, lambda seen: replace(see(seen), observed_at=now, reason="", error="", failures=0))

    async def _login(self, endpoint: Endpoint, tenure: Tenure | None) -> Target:
        if endpoint.blocked:
            raise LoginBlocked("logins were refused twice; nothing is tried until the credentials change")
        if endpoint.sealed is None or not endpoint.host:
            raise NoCredentials("the BMC has no password on record" if endpoint.host else "the BMC has no address")
        try:
            password = self._ring.open(endpoint.machine, endpoint.sealed)
        except CredentialError as error:
            log.warning("bmc.credential_unusable", machine=endpoint.machine, cause=str(error))
            raise NoCredentials("the stored password cannot be opened with the configured keys") from None
        if endpoint.refused_logins:
            # Only one login is left; a replica that was the owner until now may want it at this moment.
            async with self._db.transaction(purpose="take the last login of a BMC") as connection:
                if tenure is not None:
                    await self.ownership.check(connection, tenure)
                if not await self._endpoints.take_second_try(connection, endpoint.machine):
                    raise LoginBlocked("logins were refused twice; nothing is tried until the credentials change")
        return Target(endpoint.host, endpoint.port, endpoint.login, password, endpoint.driver, endpoint.quirks)

    async def _after_failure(self, endpoint: Endpoint, error: BmcError) -> None:
        if isinstance(error, BmcAuthFailed):
            # Whoever owns it by now: the BMC has counted it, too.
            self._refused_at[endpoint.machine] = asyncio.get_running_loop().time()
            async with self._db.connection() as connection:
                await self._endpoints.count_refusal(connection, endpoint)
        else:
            # No answer to the login says nothing about it; any other failure came after it went well.
            silent = error.before_login or error.outcome_unknown
            await self._settle(endpoint, endpoint.refused_logins if silent else 0)

    async def _settle(self, endpoint: Endpoint, refused: int) -> None:
        if endpoint.refused_logins:
            async with self._db.connection() as connection:
                await self._endpoints.settle_login(connection, endpoint, refused)

    async def _record(
        self, visit: _Visit, see: Callable[[Observation], Observation], error: BmcError | None = None
    ) -> None:
        before = visit.endpoint
        if visit.tenure is None:
            return
        async with self._db.transaction(purpose="observe a BMC") as connection:
            await self.ownership.check(connection, visit.tenure)
            endpoint = await self._endpoints.get(connection, before.machine, lock=True)
            if endpoint is None or not endpoint.same_way_in(before):
                # Meanwhile it got another address or login: what came of the old ones says nothing about it.
                return
            seen = see(endpoint.observation)
            unreachable = opens(seen.reason, seen.failures)
            turned = unreachable != endpoint.unreachable
            news = _news(endpoint, seen) or endpoint.blocked != before.blocked or turned
            # People's orders do not put off the next poll; but one that finds out that a BMC is gone, or back, does.
            moves = turned or visit.rank >= Rank.POLL
            after = await self._endpoints.observe(
                connection, endpoint, seen, news=news, unreachable=unreachable,
                next_look=self._next_look(seen, error) if moves else None,
            )  # fmt: skip
            if news:
                await events.endpoint_changed(connection, after)
            if after.match is Match.OTHER and endpoint.match is not Match.OTHER:
                log.warning("bmc.other_identity", machine=after.machine, guid=seen.guid.hex())
            # Only for news: the reconciler's own readings come by here too, and would end its waits between two orders.
            if news and after.wants_power_change and not after.blocked and not seen.reason:
                await enqueue(connection, reconcile_kind(after.partition), after.machine)

    def _next_look(self, seen: Observation, error: BmcError | None) -> timedelta:
        told = timedelta(seconds=getattr(error, "retry_after", 0.0) or 0.0)
        return next_look(self._interval, seen.reason, seen.failures, random.random(), told=told or None)


def _unchanged(seen: Observation, _result: object) -> Observation:
    return seen


def _failure(error: BmcError) -> Callable[[Observation], Observation]:
    # What was known stays: an unreachable BMC does not make the last reading wrong, only old.
    return lambda seen: replace(seen, reason=error.reason, error=error.message, failures=seen.failures + 1)


def _news(before: Endpoint, seen: Observation) -> bool:
    return _says(seen) != _says(before.observation)


def _says(seen: Observation) -> tuple[object, ...]:
    """What makes an observation news. The error's text is left out: it varies with times and codes."""
    identity = (seen.guid, seen.said_mac, dict(seen.fru))
    return (seen.powered, seen.reason, seen.firmware, seen.capabilities, *identity)
