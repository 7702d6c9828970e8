"""Bringing about the power that is wanted, one attempt at a time, and the turns of machines of one rack."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from metal_kit.controller import Done, Failed, Outcome, Wait
from metal_kit.db import Database
from metal_kit.logs import get_logger

from metal_bmc.announcer import Announcer
from metal_bmc.doors import Rank
from metal_bmc.drivers.errors import BmcError, LoginBlocked, NoCredentials, Unreachable
from metal_bmc.endpoint import Endpoint
from metal_bmc.exchange import BmcExchange
from metal_bmc.store import EndpointStore, RackStore

log = get_logger(__name__)

RACK_POWER = "RACK_POWER"
OTHERS_START = "other machines of the rack are being switched on; they start a few at a time"
_SETTLE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Stagger:
    """At most `most` machines of a rack are switched on in any span of `within`, by all replicas together: what starts
    takes more current than what runs. A machine whose rack is not known does not wait."""

    most: int = 4
    within: timedelta = timedelta(seconds=2)


class PowerOns:
    """Whose turn it is to be switched on."""

    def __init__(self, db: Database, stagger: Stagger) -> None:
        self._db, self._stagger, self._racks = db, stagger, RackStore()

    async def wait_of(self, endpoint: Endpoint) -> timedelta | None:
        """None: now, and it is counted. Else how long to wait before asking again."""
        if not endpoint.rack:
            return None
        async with self._db.connection() as connection:
            return await self._racks.may_switch_on(
                connection, endpoint.partition, endpoint.rack, most=self._stagger.most, within=self._stagger.within
            )


class Enforcer:
    """Enforces desired power. `announcer` None: inventory is not configured. `step_seconds` bounds one exchange."""

    def __init__(
        self,
        db: Database,
        exchange: BmcExchange,
        announcer: Announcer | None,
        power_ons: PowerOns,
        *,
        announce: timedelta,
        step_seconds: float,
    ) -> None:
        self._db, self._exchange, self._announcer, self._power_ons = db, exchange, announcer, power_ons
        self._announce_within, self._step_seconds = announce, step_seconds
        self._endpoints = EndpointStore()

    async def enforce(self, endpoint: Endpoint) -> Outcome:
        """One attempt. Raises NotOwner."""
        if not endpoint.wants_power_change:
            return Done()
        try:
            outcome = await self._attempt(endpoint, on=bool(endpoint.desired_on))
        except (LoginBlocked, NoCredentials, Unreachable) as error:
            # New credentials, a new address or the first answer bring the machine back here.
            outcome = Done(error.reason, error.message)
        except BmcError as error:
            outcome = Failed(error.reason, error.message)
        await self._note(endpoint, outcome)
        return outcome

    async def _attempt(self, endpoint: Endpoint, *, on: bool) -> Outcome:
        machine, order = endpoint.machine, "on" if on else "off"
        if await self._powered(machine) == on:
            return Done()
        wait = await self._power_ons.wait_of(endpoint) if on else None
        if wait is not None:
            return Wait(RACK_POWER, OTHERS_START, after=wait)
        log.info("bmc.power.enforced", machine=machine, desired=order)
        if not on:
            await self._announce(machine)
        await self._exchange.set_power(machine, on=on, deadline=self._step_seconds, rank=Rank.RECONCILE)
        await asyncio.sleep(_SETTLE_SECONDS)
        if await self._powered(machine) == on:
            return Done("REACHED", f"the power is {order} as wanted")
        # A slow machine shows it at the next look; for one that never does, the looks get rarer.
        return Failed("NOT_REACHED", f"the BMC accepted power {order}, and the machine has not followed yet")

    async def _powered(self, machine: str) -> bool:
        return await self._exchange.powered(machine, deadline=self._step_seconds, rank=Rank.RECONCILE)

    async def _note(self, endpoint: Endpoint, outcome: Outcome) -> None:
        """Only attempts count: neither a turn that is waited for nor a machine that is as wanted already."""
        if isinstance(outcome, Wait) or outcome == Done():
            return
        reached = outcome.reason == "REACHED"
        tenure = self._exchange.ownership.tenure(endpoint.machine)
        async with self._db.transaction(purpose="note an attempt at the wanted power") as connection:
            await self._exchange.ownership.check(connection, tenure)
            reason, message = ("", "") if reached else (outcome.reason, outcome.message)
            await self._endpoints.tried(connection, endpoint, reason, message)

    async def _announce(self, machine: str) -> None:
        if self._announcer is None:
            return
        async with self._db.connection() as connection:
            event = await self._endpoints.off_event(connection, machine)
        if event:
            message = "switched off, as its BMC's desired power says"
            await self._announcer.planned_reboot(
                machine, event=event, command="", message=message, within=self._announce_within
            )
