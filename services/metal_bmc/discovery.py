"""Finds BMCs in the DHCP server's lease file.

A BMC that is registered and got another address is followed there once it has proved, by login, to be the same. One
that nobody registered is asked once with the factory login: if it lets us in and says which machine it belongs to, it
is registered. Whoever refuses a login is left alone until somebody registers it, because guessing passwords on live
BMCs locks them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import asyncpg
from metal_kit.backoff import Backoff, pause
from metal_kit.clock import Clock
from metal_kit.db import Connection, Database
from metal_kit.errors import Problem
from metal_kit.logs import get_logger

from metal_bmc import events, metrics
from metal_bmc.credentials import CredentialError, KeyRing
from metal_bmc.drivers.errors import BmcAuthFailed, BmcError
from metal_bmc.drivers.interface import BmcDriver, DeviceInfo, DriverKind, Target
from metal_bmc.endpoint import Endpoint
from metal_bmc.identity import readings
from metal_bmc.leases import Lease, Network, current, parse
from metal_bmc.ownership import Ownership
from metal_bmc.registry import Registry, Wish
from metal_bmc.store import EndpointStore, Sighting, SightingStore
from metal_bmc.whose import Whose

log = get_logger(__name__)

_MAX_FILE_BYTES = 64 << 20
_SILENT = Backoff(timedelta(seconds=30), timedelta(minutes=15), least=timedelta(seconds=5))


@dataclass(frozen=True, slots=True)
class DiscoveryPlan:
    """Where the leases are and how unknown BMCs are asked. Without `user`, unknown ones are only noted."""

    lease_file: Path
    interval: timedelta = timedelta(seconds=30)
    networks: Sequence[Network] = ()
    ignored_macs: frozenset[str] = frozenset()
    port: int = 623
    user: str = ""
    password: str = field(default="", repr=False)
    deadline: float = 20.0


class Discovery:
    """`run` it as a task. All replicas read the file; each follows the MAC addresses whose bucket is its own."""

    def __init__(
        self,
        db: Database,
        driver: BmcDriver,
        ring: KeyRing,
        clock: Clock,
        ownership: Ownership,
        *,
        partition: str,
        plan: DiscoveryPlan,
        whose: Whose | None = None,
    ) -> None:
        self._ownership, self._whose = ownership, whose or Whose(db, None)
        self._db, self._driver, self._ring, self._clock = db, driver, ring, clock
        self._partition, self._plan = partition, plan
        self._registry = Registry(ring, partition=partition, kinds=frozenset(DriverKind))
        self._endpoints, self._sightings = EndpointStore(), SightingStore()
        self._complained: set[tuple[int, str]] = set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Look at the file until `stopping` is set, first at once."""
        while not stopping.is_set():
            try:
                await self.look(stopping)
            except (OSError, Problem, asyncpg.PostgresError) as error:
                log.warning("bmc.discovery.waits", cause=type(error).__name__)
            await pause(stopping, self._plan.interval)

    async def look(self, stopping: asyncio.Event) -> None:
        """Read the file once and follow up on what it shows. Raises OSError when it cannot be read."""
        text = await asyncio.to_thread(_read, self._plan.lease_file)
        file = parse(text)
        problems = {(problem.line, problem.reason) for problem in file.problems}
        for line, reason in sorted(problems - self._complained):
            metrics.LEASE_PROBLEMS.inc()
            log.warning("bmc.discovery.lease_skipped", line=line, cause=reason)
        self._complained = problems
        plan = self._plan
        leases = current(file.leases, self._clock.now(), networks=plan.networks, ignored_macs=plan.ignored_macs)
        for lease in leases.values():
            if stopping.is_set():
                return
            try:
                await self._follow(lease)
            except Problem as problem:
                log.warning("bmc.discovery.lease_not_followed", mac=lease.mac, cause=problem.reason)

    async def _follow(self, lease: Lease) -> None:
        if not self._ownership.owns(lease.mac):
            return
        host = str(lease.address)
        async with self._db.connection() as connection:
            known = await self._endpoints.by_mac(connection, self._partition, lease.mac)
            if known is not None and known.host == host:
                return
            sighting = await self._sightings.see(connection, self._partition, lease.mac, host)
        if sighting.refused or not sighting.due:
            return
        if known is not None:
            await self._follow_move(known, sighting)
        elif self._plan.user:
            await self._onboard(sighting)

    async def _follow_move(self, known: Endpoint, sighting: Sighting) -> None:
        if known.sealed is None or known.blocked:
            return
        try:
            password = self._ring.open(known.machine, known.sealed)
        except CredentialError as error:
            log.warning("bmc.credential_unusable", machine=known.machine, cause=str(error))
            return
        target = Target(sighting.host, known.port, known.login, password, known.driver, known.quirks)
        info = await self._ask(target, sighting)
        if info is None:
            return
        if info.machine and known.machine not in (info.machine, *readings(info.guid).values()):
            log.warning("bmc.discovery.other_machine", machine=known.machine, reported_machine=info.machine)
            await self._close(sighting, "OTHER_MACHINE")
            return
        await self._move(known, sighting.host)

    async def _onboard(self, sighting: Sighting) -> None:
        info = await self._ask(Target(sighting.host, self._plan.port, self._plan.user, self._plan.password), sighting)
        if info is None:
            return
        if not info.machine:
            log.warning("bmc.discovery.no_machine", mac=sighting.mac)
            await self._close(sighting, "NO_MACHINE_UUID")
            return
        info = replace(info, machine=await self._whose.machine(info))
        await self._take_in(sighting.mac, sighting.host, info)

    async def _ask(self, target: Target, sighting: Sighting) -> DeviceInfo | None:
        """Who answers there; None when nobody does or the login is refused, which is then on record."""
        try:
            return await self._driver.inspect(target, deadline=self._plan.deadline)
        except BmcAuthFailed as error:
            log.warning("bmc.discovery.login_refused", mac=sighting.mac, host=sighting.host)
            await self._close(sighting, error.reason)
        except BmcError as error:
            after = _SILENT.delay(sighting.tries)
            async with self._db.connection() as connection:
                await self._sightings.postpone(connection, self._partition, sighting.mac, error.reason, after)
        return None

    async def _close(self, sighting: Sighting, reason: str) -> None:
        async with self._db.connection() as connection:
            await self._sightings.refused(connection, self._partition, sighting.mac, reason)

    async def _move(self, known: Endpoint, host: str) -> None:
        async with self._db.transaction(purpose="follow a BMC that moved") as connection:
            now = await self._endpoints.get(connection, known.machine, lock=True)
            if now is None or not now.same_way_in(known) or (now.partition, now.mac) != (known.partition, known.mac):
                return  # Forgotten or changed while it was asked: what it answered proves nothing any more.
            endpoint = await self._register(connection, replace(Wish.keeping(now), host=host))
        log.info("bmc.discovered", machine=endpoint.machine, mac=endpoint.mac, host=endpoint.host)

    async def _take_in(self, mac: str, host: str, info: DeviceInfo) -> None:
        plan = self._plan
        async with self._db.transaction(purpose="register a discovered BMC") as connection:
            known = await self._endpoints.get(connection, info.machine, lock=True)
            wish = Wish(
                machine=info.machine,
                partition=self._partition,
                host=host,
                port=plan.port,
                mac=mac,
                login=plan.user,
                # It let us in with the factory login just now, whatever was on record before.
                password=plan.password,
                desired_on=known.desired_on if known is not None else None,
                serial=known.serial if known is not None else "",
            )
            endpoint = await self._register(connection, wish)
        log.info("bmc.discovered", machine=endpoint.machine, mac=endpoint.mac, host=endpoint.host)

    async def _register(self, connection: Connection, wish: Wish) -> Endpoint:
        for loser in await self._endpoints.free_address(
            connection, partition=wish.partition, host=wish.host, port=wish.port, but=wish.machine
        ):
            await events.endpoint_changed(connection, loser)
        return await self._registry.register(connection, wish)


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MAX_FILE_BYTES).decode("utf-8", errors="replace")
