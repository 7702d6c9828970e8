"""Compares the machines that are expected with those that are there, and keeps what is not as expected.

Which BMC is whose goes by its MAC address first, then by a serial number that the machine tells and nobody else does.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import asyncpg
from metal_kit.backoff import pause
from metal_kit.clock import Clock
from metal_kit.db import Connection, Database
from metal_kit.errors import Problem
from metal_kit.issues import Issue, Severity
from metal_kit.logs import get_logger

from metal_bmc.expected import ExpectedMachine, KnownDifference, comparable, differences
from metal_bmc.identity import serials
from metal_bmc.store import EndpointStore, ExpectedStore, Unexpected

log = get_logger(__name__)

_BATCH = 500
_MOST_ISSUES = 200
_SERIOUS = frozenset({"mac", "serial", "login", "onboarding", "presence"})
_HELP = {
    "mac": "was the board replaced? If so, change the MAC address of what is expected (UpdateExpectedMachine)",
    "serial": "is it the machine that was ordered, and in the right place? If so, change what is expected",
    "vendor": "check the delivery, or change what is expected",
    "model": "check the delivery, or change what is expected",
    "driver": "change the driver of the BMC (UpdateBmc), or what is expected",
    "login": "give it the right initial credential (UpdateExpectedMachine), or register the BMC (RegisterBmc)",
    "onboarding": "register its BMC by hand (RegisterBmc)",
    "presence": "check power, cable and switch port, or expect it no more (DeleteExpectedMachine)",
}


class Unknowns(StrEnum):
    """What becomes of a BMC that is found and that nobody expects: registered, registered and an issue, or left alone
    and an issue."""

    REGISTER = "register"
    REPORT = "report"
    LEAVE = "leave"


@dataclass(frozen=True, slots=True)
class ExpectationPlan:
    """How often to compare, how long a machine may be away before that is an issue, and what of unknown BMCs."""

    interval: timedelta = timedelta(minutes=1)
    missing: timedelta = timedelta(hours=24)
    unknowns: Unknowns = Unknowns.REGISTER


class Expectations:
    """`run` it as a task; replicas find the same, and write it once."""

    def __init__(self, db: Database, clock: Clock, *, partition: str, plan: ExpectationPlan) -> None:
        self._db, self._clock, self._partition, self._plan = db, clock, partition, plan
        self._expected, self._endpoints = ExpectedStore(), EndpointStore()

    async def run(self, stopping: asyncio.Event) -> None:
        """Compare until `stopping` is set, first at once."""
        while not stopping.is_set():
            try:
                await self.compare()
            except (OSError, Problem, asyncpg.PostgresError) as error:
                log.warning("bmc.expectations.wait", cause=type(error).__name__)
            await pause(stopping, self._plan.interval)

    async def compare(self) -> None:
        """Find out which machine is which, and what is not as expected, once."""
        async with self._db.transaction(purpose="match expected machines by MAC address") as connection:
            await self._expected.match_by_mac(connection, self._partition)
        await self._match_by_serial()
        after: str | None = None
        while True:
            async with self._db.connection() as connection:
                page = await self._expected.page(connection, partition=self._partition, after=after, limit=_BATCH)
            await self._compare(page)
            if len(page) < _BATCH:
                return
            after = page[-1].expectation.id

    async def issues(self, now: datetime) -> list[Issue]:
        """What is not as expected. Of very many the first are named."""
        async with self._db.connection() as connection:
            page = await self._expected.different(connection, self._partition, _MOST_ISSUES + 1)
            unknown = await self._unknown(connection)
        found = [_issue(each, known) for each in page for known in each.differences]
        found += [_unexpected(each) for each in unknown]
        if len(found) <= _MOST_ISSUES:
            return found
        since = min(each.since for each in found)
        more = "more than are named here are not as expected; ListExpectedMachines has them all"
        return [*found[:_MOST_ISSUES], Issue("discovery/more", Severity.MAJOR, "expected machines", more, since)]

    async def _unknown(self, connection: Connection) -> list[Unexpected]:
        if self._plan.unknowns is Unknowns.REGISTER:
            return []
        registered = await self._expected.unexpected(connection, self._partition, _MOST_ISSUES)
        return [*registered, *await self._expected.left_alone(connection, self._partition, _MOST_ISSUES)]

    async def _match_by_serial(self) -> None:
        async with self._db.connection() as connection:
            waiting = await self._expected.unmatched(connection, self._partition, _BATCH)
        if not waiting:
            return
        machines = await self._free_machines_by_serial()
        for each in waiting:
            candidates = machines.get(comparable(each.expectation.serial), set())
            if len(candidates) != 1:
                continue
            async with self._db.transaction(purpose="match an expected machine by serial number") as connection:
                await self._expected.match(connection, each.expectation.id, next(iter(candidates)))

    async def _free_machines_by_serial(self) -> dict[str, set[str]]:
        """Machines that no expected one turned out to be, by the serial numbers that they tell."""
        found: dict[str, set[str]] = defaultdict(set)
        after: str | None = None
        while True:
            async with self._db.connection() as connection:
                page = await self._endpoints.page(connection, partition=self._partition, after=after, limit=_BATCH)
                taken = await self._expected.expected_of(connection, [each.machine for each in page])
            for endpoint in page:
                for serial in serials(endpoint.observation.fru) if endpoint.machine not in taken else ():
                    found[serial].add(endpoint.machine)
            if len(page) < _BATCH:
                return found
            after = page[-1].machine

    async def _compare(self, page: list[ExpectedMachine]) -> None:
        now = self._clock.now()
        async with self._db.connection() as connection:
            machines = [each.machine for each in page if each.machine]
            endpoints = {each.machine: each for each in await self._endpoints.of_machines(connection, machines)}
            macs = [each.expectation.mac for each in page if each.expectation.mac and not each.machine]
            attempts = await self._expected.attempts(connection, self._partition, macs)
        for each in page:
            wish = each.expectation
            seen = differences(each, endpoints.get(each.machine), attempts.get(wish.mac), now, self._plan.missing)
            if set(seen) == {known.difference for known in each.differences}:
                continue
            async with self._db.transaction(purpose="note what is not as expected") as connection:
                await self._expected.settle(connection, wish.id, seen)


def _issue(expected: ExpectedMachine, known: KnownDifference) -> Issue:
    what = known.difference
    severity = Severity.MAJOR if what.field in _SERIOUS else Severity.MINOR
    machine = f" of machine {expected.machine}" if expected.machine else ""
    return Issue(
        f"discovery/expected/{expected.expectation.id}/{what.field}",
        severity,
        f"expected machine {expected.expectation.title}",
        f"{what.field}{machine}: expected {what.wanted}, seen {what.seen}; {_HELP[what.field]}",
        known.since,
    )


def _unexpected(found: Unexpected) -> Issue:
    name = found.machine or found.mac
    became = f"registered for machine {found.machine}" if found.machine else "left alone"
    return Issue(
        f"discovery/unexpected/{name}",
        Severity.MINOR,
        f"BMC {found.mac or found.host}",
        f"found at {found.host or 'no address'}, not among the expected machines, and {became}; expect it "
        "(CreateExpectedMachine), or take it off the network and delete its BMC (DeleteBmc)",
        found.since,
    )
