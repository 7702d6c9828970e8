"""Finds BMCs in the DHCP server's lease file.

A BMC that is registered and got another address is followed there once it has proved, by login, to be the same. One
that nobody registered is asked once with the factory login: if it lets us in and says which machine it belongs to, it
is registered; if it refuses, it is never asked again, because guessing passwords on live BMCs locks them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import asyncpg
from metal_kit.backoff import Backoff, pause
from metal_kit.clock import Clock
from metal_kit.db import Database
from metal_kit.errors import Problem
from metal_kit.logs import get_logger

from metal_bmc import events, metrics
from metal_bmc.credentials import CredentialError, KeyRing
from metal_bmc.drivers.errors import BmcAuthFailed, BmcError
from metal_bmc.drivers.interface import BmcDriver, DeviceInfo, Target
from metal_bmc.endpoint import Endpoint
from metal_bmc.leases import Lease, Network, current, parse
from metal_bmc.registry import Registry, Wish
from metal_bmc.store import EndpointStore, SightingStore

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
    """`run` it as a task; more than one replica repeats the reading, not the asking."""

    def __init__(
        self, db: Database, driver: BmcDriver, ring: KeyRing, clock: Clock, *, partition: str, plan: DiscoveryPlan
    ) -> None:
        self._db, self._driver, self._ring, self._clock = db, driver, ring, clock
        self._partition, self._plan = partition, plan
        self._registry = Registry(ring, partition=partition)
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
        async with self._db.connection() as connection:
            known = await self._endpoints.by_mac(connection, self._partition, lease.mac)
        host = str(lease.address)
        if known is not None:
            if known.host != host and known.sealed is not None and not known.blocked:
                await self._follow_move(known, host)
            return
        async with self._db.connection() as connection:
            sighting = await self._sightings.see(connection, self._partition, lease.mac, host)
        if self._plan.user and sighting.due and not sighting.refused:
            await self._onboard(lease.mac, host, sighting.tries)

    async def _follow_move(self, known: Endpoint, host: str) -> None:
        try:
            password = self._ring.open(known.machine, known.sealed or b"")
            target = Target(host, known.port, known.login, password)
            info = await self._driver.inspect(target, deadline=self._plan.deadline)
        except (CredentialError, BmcError) as error:
            log.warning("bmc.discovery.not_followed", machine=known.machine, cause=type(error).__name__)
            return
        if info.machine and info.machine != known.machine:
            log.warning("bmc.discovery.other_machine", machine=known.machine, reported_machine=info.machine)
            return
        wish = Wish(known.machine, known.partition, host, known.port, known.mac, known.login, None, known.desired_on)
        await self._register(wish)

    async def _onboard(self, mac: str, host: str, tries: int) -> None:
        plan = self._plan
        target = Target(host, plan.port, plan.user, plan.password)
        try:
            info = await self._driver.inspect(target, deadline=plan.deadline)
        except BmcAuthFailed as error:
            log.warning("bmc.discovery.factory_login_refused", mac=mac)
            async with self._db.connection() as connection:
                await self._sightings.refused(connection, self._partition, mac, error.reason)
            return
        except BmcError as error:
            async with self._db.connection() as connection:
                await self._sightings.postpone(connection, self._partition, mac, error.reason, _SILENT.delay(tries))
            return
        if not info.machine:
            log.warning("bmc.discovery.no_machine", mac=mac)
            async with self._db.connection() as connection:
                await self._sightings.refused(connection, self._partition, mac, "NO_MACHINE_UUID")
            return
        await self._take_in(mac, host, info)

    async def _take_in(self, mac: str, host: str, info: DeviceInfo) -> None:
        plan = self._plan
        async with self._db.connection() as connection:
            known = await self._endpoints.get(connection, info.machine)
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
        )
        await self._register(wish)

    async def _register(self, wish: Wish) -> None:
        async with self._db.transaction(purpose="register a discovered BMC") as connection:
            for loser in await self._endpoints.free_address(
                connection, partition=wish.partition, host=wish.host, port=wish.port, but=wish.machine
            ):
                await events.endpoint_changed(connection, loser)
            endpoint = await self._registry.register(connection, wish)
        log.info("bmc.discovered", machine=endpoint.machine, mac=endpoint.mac, host=endpoint.host)


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MAX_FILE_BYTES).decode("utf-8", errors="replace")
