"""First contact with a BMC that nobody registered, and what is known of a BMC that answers somewhere new.

An expected machine's BMC is asked with its initial credential, any other with the factory login. Whoever refuses a
login is left alone until somebody registers it or changes what is expected, because guessing passwords on live BMCs
locks them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta

from metal_kit.backoff import Backoff
from metal_kit.clock import Clock
from metal_kit.db import Connection, Database
from metal_kit.logs import get_logger

from metal_bmc import address, events
from metal_bmc.credentials import CredentialError, KeyRing
from metal_bmc.drivers.errors import BmcAuthFailed, BmcError
from metal_bmc.drivers.interface import BmcDriver, DeviceInfo, DriverKind, Target
from metal_bmc.endpoint import Endpoint, Policy
from metal_bmc.expectations import Unknowns
from metal_bmc.expected import ExpectedMachine
from metal_bmc.identity import readings, serials
from metal_bmc.registry import Registry, Wish
from metal_bmc.store import EndpointStore, ExpectedStore, Sighting, SightingStore
from metal_bmc.whose import Whose

log = get_logger(__name__)

NOT_EXPECTED = "NOT_EXPECTED"
_SILENT = Backoff(timedelta(seconds=30), timedelta(minutes=15), least=timedelta(seconds=5))
_ALIVE = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class ContactPlan:
    """How unknown BMCs are asked. Without `user`, only those with an initial credential are; others are noted.

    `ports` are those of each kind of driver, `deadline` seconds for one BMC.
    """

    port: int = address.RMCP_PORT
    redfish_port: int = address.HTTPS_PORT
    user: str = ""
    password: str = field(default="", repr=False)
    deadline: float = 20.0
    unknowns: Unknowns = Unknowns.REGISTER


@dataclass(frozen=True, slots=True)
class _Login:
    """The login that is tried; `expected` is set when it is of that machine."""

    target: Target
    expected: ExpectedMachine | None
    own: bool


class Contact:
    """Asks BMCs where they are not expected, each login once, and registers what they turn out to be."""

    def __init__(
        self,
        db: Database,
        driver: BmcDriver,
        ring: KeyRing,
        clock: Clock,
        registry: Registry,
        whose: Whose,
        *,
        partition: str,
        plan: ContactPlan,
    ) -> None:
        self._db, self._driver, self._ring, self._clock, self._registry = db, driver, ring, clock, registry
        self._partition, self._plan, self._whose = partition, plan, whose
        self._endpoints, self._sightings, self._expected = EndpointStore(), SightingStore(), ExpectedStore()

    async def follow(self, known: Endpoint, sighting: Sighting) -> None:
        """Follow a registered BMC to where it was seen, once it has proved by its own login to be the same."""
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

    async def onboard(self, sighting: Sighting) -> None:
        """Register a BMC that nobody did, if it lets us in and names its machine."""
        login = await self._login(sighting)
        info = None if login is None else await self._ask(login.target, sighting)
        if login is None or info is None:
            return
        if not info.machine:
            log.warning("bmc.discovery.no_machine", mac=sighting.mac)
            await self._close(sighting, "NO_MACHINE_UUID")
            return
        info = replace(info, machine=await self._whose.machine(info))
        if login.expected is None:
            login = replace(login, expected=await self._expected_by_serial(info))
        if login.expected is None and self._plan.unknowns is Unknowns.LEAVE:
            await self._close(sighting, NOT_EXPECTED)
            return
        await self._take_in(sighting, info, login)

    async def _login(self, sighting: Sighting) -> _Login | None:
        """What to try; None: nothing is."""
        plan = self._plan
        async with self._db.connection() as connection:
            expected = await self._expected.by_mac(connection, self._partition, sighting.mac)
            # It may be expected by its serial number, and to learn that takes a login.
            unknown = expected is None and plan.unknowns is Unknowns.LEAVE
            if unknown and not await self._expected.unmatched(connection, self._partition, 1):
                await self._sightings.refused(connection, self._partition, sighting.mac, NOT_EXPECTED)
                return None
        kind = expected.expectation.driver if expected is not None else DriverKind.IPMI
        port = plan.redfish_port if kind is DriverKind.REDFISH else plan.port
        if expected is not None and expected.expectation.sealed is not None:
            wish = expected.expectation
            try:
                password = self._ring.open(wish.bound_to, expected.expectation.sealed)
            except CredentialError as error:
                log.warning("bmc.credential_unusable", expected=wish.id, cause=str(error))
                return None
            return _Login(Target(sighting.host, port, wish.login, password, kind), expected, own=True)
        if not plan.user:
            return None
        return _Login(Target(sighting.host, port, plan.user, plan.password, kind), expected, own=False)

    async def _expected_by_serial(self, info: DeviceInfo) -> ExpectedMachine | None:
        async with self._db.connection() as connection:
            found = await self._expected.by_serials(connection, self._partition, sorted(serials(info.fru)))
        return found[0] if len(found) == 1 else None

    async def _ask(self, target: Target, sighting: Sighting) -> DeviceInfo | None:
        """Who answers there; None when nobody does or the login is refused, which is then on record."""
        try:
            return await self._driver.inspect(target, deadline=self._plan.deadline)
        except BmcAuthFailed as error:
            log.warning("bmc.discovery.login_refused", mac=sighting.mac, host=sighting.host)
            await self._close(sighting, error.reason)
        except BmcError as error:
            await self._postpone(sighting, error.reason)
        return None

    async def _close(self, sighting: Sighting, reason: str) -> None:
        async with self._db.connection() as connection:
            await self._sightings.refused(connection, self._partition, sighting.mac, reason)

    async def _postpone(self, sighting: Sighting, reason: str) -> None:
        async with self._db.connection() as connection:
            after = _SILENT.delay(sighting.tries)
            await self._sightings.postpone(connection, self._partition, sighting.mac, reason, after)

    async def _move(self, known: Endpoint, host: str) -> None:
        async with self._db.transaction(purpose="follow a BMC that moved") as connection:
            now = await self._endpoints.get(connection, known.machine, lock=True)
            if now is None or not now.same_way_in(known) or (now.partition, now.mac) != (known.partition, known.mac):
                return  # Forgotten or changed while it was asked: what it answered proves nothing any more.
            endpoint = await self._register(connection, replace(Wish.keeping(now), host=host))
        log.info("bmc.discovered", machine=endpoint.machine, mac=endpoint.mac, host=endpoint.host)

    async def _take_in(self, sighting: Sighting, info: DeviceInfo, login: _Login) -> None:
        expectation = login.expected.expectation if login.expected is not None else None
        async with self._db.transaction(purpose="register a discovered BMC") as connection:
            known = await self._endpoints.get(connection, info.machine, lock=True)
            if known is not None and self._is_another(known, sighting):
                endpoint = None
            else:
                endpoint = await self._register(connection, self._wish(sighting, info, login, known))
                await self._endpoints.mark_discovered(connection, endpoint.machine)
                await self._sightings.forget(connection, self._partition, sighting.mac)
                if expectation is not None:
                    await self._expected.match(connection, expectation.id, endpoint.machine)
                    if login.own:
                        await self._expected.spend(connection, expectation.id, expectation.sealed)
        if endpoint is None:
            log.warning("bmc.discovery.duplicate_machine", machine=info.machine, mac=sighting.mac)
            await self._postpone(sighting, "DUPLICATE_MACHINE")
            return
        log.info("bmc.discovered", machine=endpoint.machine, mac=endpoint.mac, host=endpoint.host)

    def _wish(self, sighting: Sighting, info: DeviceInfo, login: _Login, known: Endpoint | None) -> Wish:
        target, serial = login.target, known.serial if known is not None else ""
        rack = known.rack if known is not None else ""
        if not rack and login.expected is not None:
            rack = login.expected.expectation.rack
        return Wish(
            machine=info.machine,
            partition=self._partition,
            host=target.host,
            port=target.port,
            mac=sighting.known_mac or info.mac or (known.mac if known is not None else ""),
            login=target.user,
            # It let us in with this just now, whatever was on record before.
            password=target.password,
            desired_on=known.desired_on if known is not None else None,
            driver=target.driver,
            serial=login.expected.expectation.serial if login.expected is not None else serial,
            rack=rack,
            policy=known.wish.policy if known is not None else Policy.ENFORCE,
        )

    def _is_another(self, known: Endpoint, sighting: Sighting) -> bool:
        """Whether the machine's BMC is another one that answers: boards are sold with the same UUID now and then."""
        seen = known.observation
        alive = seen.observed_at is not None and not seen.reason and self._clock.now() - seen.observed_at < _ALIVE
        return alive and bool(known.mac and sighting.known_mac) and known.mac != sighting.known_mac

    async def _register(self, connection: Connection, wish: Wish) -> Endpoint:
        for loser in await self._endpoints.free_address(
            connection, partition=wish.partition, host=wish.host, port=wish.port, but=wish.machine
        ):
            await events.endpoint_changed(connection, loser)
        return await self._registry.register(connection, wish)
