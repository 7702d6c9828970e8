"""One exchange with a machine's BMC: the login and its account before, the observation after.

All talk to registered BMCs goes through here, so that three rules hold for commands, desired power and polls together:
one exchange at a time per BMC; at most two refused logins, then silence until the credentials change; and whatever the
BMC says, or fails to say, is on record before anyone decides by it. What is on record already is written with others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar
from weakref import WeakValueDictionary

from metal_kit.clock import Clock
from metal_kit.controller import enqueue
from metal_kit.db import Database
from metal_kit.logs import get_logger

from metal_bmc import events, metrics
from metal_bmc.credentials import CredentialError, KeyRing
from metal_bmc.drivers.errors import (
    BmcAuthFailed,
    BmcError,
    BmcUnsupported,
    DriverBusy,
    LoginBlocked,
    NoCredentials,
)
from metal_bmc.drivers.interface import BmcDriver, BootSetting, BootWish, DeviceInfo, Target
from metal_bmc.endpoint import Endpoint, Observation
from metal_bmc.identity import Match
from metal_bmc.journal import Journal
from metal_bmc.store import EndpointStore

log = get_logger(__name__)

_T = TypeVar("_T")
Operation = Callable[[Endpoint, Target, float], Awaitable[_T]]
Sight = Callable[[Observation, _T], Observation]


def reconcile_kind(partition: str) -> str:
    """The kind in the reconcile queue: partitions may share a database, and each reaches its own BMCs only."""
    return f"bmc/{partition}"


class BmcExchange:
    """Talks to registered BMCs by machine. Every method raises a BmcError after recording it; DriverBusy
    alone leaves no record, since the BMC was not asked."""

    def __init__(self, db: Database, driver: BmcDriver, ring: KeyRing, clock: Clock) -> None:
        self._db, self._driver, self._ring, self._clock = db, driver, ring, clock
        self._endpoints, self._journal = EndpointStore(), Journal(db)
        self._doors: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def powered(self, machine: str, *, deadline: float) -> bool:
        """Read the power."""

        async def ask(_endpoint: Endpoint, target: Target, left: float) -> bool:
            return await self._driver.powered(target, deadline=left)

        return await self._exchange(machine, deadline, ask, lambda seen, on: replace(seen, powered=on))

    async def glance(self, endpoint: Endpoint, *, after: timedelta, deadline: float) -> bool:
        """Read the power of a BMC that was read from the database a moment ago, without reading it again.

        True when nothing was new: then it will be polled again after `after`, which is written with the answer.
        """
        door = self._door(endpoint.machine)
        if door.locked() or not endpoint.calm:
            await self.powered(endpoint.machine, deadline=deadline)
            return False

        async def ask(_endpoint: Endpoint, target: Target, left: float) -> bool:
            return await self._driver.powered(target, deadline=left)

        async with door:
            powered = await self._answer(endpoint, asyncio.get_running_loop().time() + deadline, ask)
            return not await self._answered(endpoint, lambda seen: replace(seen, powered=powered), after)

    async def write(self) -> None:
        """Write what was nothing new. Somebody has to call it now and then."""
        await self._journal.write()

    async def inspect(self, machine: str, *, deadline: float) -> DeviceInfo:
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

        return await self._exchange(machine, deadline, ask, see)

    async def set_power(self, machine: str, *, on: bool, deadline: float) -> None:
        """Order power on or off; says nothing about whether it happened."""

        async def ask(_endpoint: Endpoint, target: Target, left: float) -> None:
            await self._driver.set_power(target, on=on, deadline=left)

        await self._exchange(machine, deadline, ask, _unchanged)

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
        """Do something else with the BMC by the same rules. What `ask` raises is a BmcError."""
        return await self._exchange(machine, deadline, ask, _unchanged)

    def _door(self, machine: str) -> asyncio.Lock:
        door = self._doors.get(machine) or asyncio.Lock()
        self._doors[machine] = door
        return door

    async def _exchange(self, machine: str, deadline: float, ask: Operation[_T], see: Sight[_T]) -> _T:
        door = self._door(machine)
        give_up = asyncio.get_running_loop().time() + deadline
        try:
            async with asyncio.timeout_at(give_up):
                await door.acquire()
        except TimeoutError:
            raise DriverBusy("another exchange with this BMC did not end in time") from None
        try:
            return await self._behind_the_door(machine, give_up, ask, see)
        finally:
            door.release()

    async def _behind_the_door(self, machine: str, give_up: float, ask: Operation[_T], see: Sight[_T]) -> _T:
        async with self._db.connection() as connection:
            endpoint = await self._endpoints.get(connection, machine)
        if endpoint is None:
            raise NoCredentials("no BMC is registered for the machine")
        if endpoint.by_hand:
            raise BmcUnsupported("the machine has no BMC; a person does what is ordered of it")
        result = await self._answer(endpoint, give_up, ask)
        await self._settle(endpoint, 0)
        await self._answered(endpoint, lambda seen: see(seen, result))
        return result

    async def _answer(self, endpoint: Endpoint, give_up: float, ask: Operation[_T]) -> _T:
        """What the BMC says; a failure is on record when it is raised."""
        try:
            target = await self._login(endpoint)
        except NoCredentials as error:
            await self._record(endpoint, _failure(error))
            raise
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            result = await ask(endpoint, target, max(0.1, give_up - started))
        except DriverBusy as error:
            # Says nothing about the BMC, which was not asked.
            metrics.EXCHANGES.labels(error.reason).observe(loop.time() - started)
            await self._settle(endpoint, endpoint.refused_logins)
            raise
        except BmcError as error:
            metrics.EXCHANGES.labels(error.reason).observe(loop.time() - started)
            await self._after_failure(endpoint, error)
            await self._record(endpoint, _failure(error))
            raise
        except asyncio.CancelledError:
            await asyncio.shield(self._settle(endpoint, endpoint.refused_logins))
            raise
        metrics.EXCHANGES.labels("OK").observe(loop.time() - started)
        return result

    async def _answered(
        self, endpoint: Endpoint, see: Callable[[Observation], Observation], after: timedelta | None = None
    ) -> bool:
        """Record an answer; whether it, or its time, was anything new."""
        now, known = self._clock.now(), endpoint.observation
        seen = see(known)
        if endpoint.calm and _says(seen) == _says(known) and seen.inspected_at == known.inspected_at:
            self._journal.add(endpoint, now, after)
            return False
        await self._record(endpoint, lambda seen: replace(see(seen), observed_at=now, reason="", error="", failures=0))
        return True

    async def _login(self, endpoint: Endpoint) -> Target:
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
            # Only one login is left; another replica may want it at this moment.
            async with self._db.connection() as connection:
                if not await self._endpoints.take_second_try(connection, endpoint.machine):
                    raise LoginBlocked("logins were refused twice; nothing is tried until the credentials change")
        return Target(endpoint.host, endpoint.port, endpoint.login, password, endpoint.driver, endpoint.quirks)

    async def _after_failure(self, endpoint: Endpoint, error: BmcError) -> None:
        if isinstance(error, BmcAuthFailed):
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

    async def _record(self, before: Endpoint, see: Callable[[Observation], Observation]) -> None:
        async with self._db.transaction(purpose="observe a BMC") as connection:
            endpoint = await self._endpoints.get(connection, before.machine, lock=True)
            if endpoint is None or not endpoint.same_way_in(before):
                # Meanwhile it got another address or login: what came of the old ones says nothing about it.
                return
            seen = see(endpoint.observation)
            news = _says(seen) != _says(endpoint.observation) or endpoint.blocked != before.blocked
            after = await self._endpoints.observe(connection, endpoint, seen, news=news)
            if news:
                await events.endpoint_changed(connection, after)
            if after.match is Match.OTHER and endpoint.match is not Match.OTHER:
                log.warning("bmc.other_identity", machine=after.machine, guid=seen.guid.hex())
            # Only for news: the reconciler's own readings come by here too, and would end its waits between two orders.
            if news and after.wants_power_change and not after.blocked and not seen.reason:
                await enqueue(connection, reconcile_kind(after.partition), after.machine)


def _unchanged(seen: Observation, _result: object) -> Observation:
    return seen


def _failure(error: BmcError) -> Callable[[Observation], Observation]:
    # What was known stays: an unreachable BMC does not make the last reading wrong, only old.
    return lambda seen: replace(seen, reason=error.reason, error=error.message, failures=seen.failures + 1)


def _says(seen: Observation) -> tuple[object, ...]:
    """What makes an observation news. The error's text is left out: it varies with times and codes."""
    identity = (seen.guid, seen.said_mac, dict(seen.fru))
    return (seen.powered, seen.reason, seen.firmware, seen.capabilities, *identity)
