"""The reconciler of one machine's BMC: its commands one after the other, then its desired power.

Keyed by the machine, so the controller's lease is what makes commands to one BMC wait for each other. A command that
was given to any replica is carried out by the BMC's owner, whose controller looks at its own machines only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from metal_kit.controller import Done, Failed, Go, Outcome, StaleSnapshot, Wait, enqueue
from metal_kit.db import Connection, Database
from metal_kit.logs import get_logger

from metal_bmc import events, metrics
from metal_bmc.announcer import Announcer, event_of
from metal_bmc.command import (
    Advance,
    Again,
    Command,
    Finish,
    Patience,
    State,
    Verdict,
    announce_within,
    done,
    expired,
    judge_error,
    judge_power,
    judge_setting,
    judge_soft_off,
    unknown_outcome,
)
from metal_bmc.desk import TaskDesk
from metal_bmc.drivers.errors import BmcError, BmcTimeout, Unreachable
from metal_bmc.endpoint import WISH_SPAN, Endpoint
from metal_bmc.enforcement import OTHERS_START, RACK_POWER, Enforcer, PowerOns
from metal_bmc.exchange import BmcExchange, reconcile_kind
from metal_bmc.ownership import NotOwner
from metal_bmc.plan import ONE_SHOT, Action, Step, desired_at_end, holds, reboots
from metal_bmc.registry import Registry
from metal_bmc.sharing import Tenure
from metal_bmc.store import CommandStore, EndpointStore

log = get_logger(__name__)

_IDLE, _ENFORCING, _BY_HAND = "IDLE", "ENFORCING", "BY_HAND"
_SOON = timedelta(seconds=1)
Now = Callable[[], datetime]


@dataclass
class Work:
    """The snapshot: what is to be done for one machine, and what came of it (`verdict`, for `save`).

    `loaded_at` is the database's time, which deadlines go by, and `loop_at` the loop's at that moment.
    """

    endpoint: Endpoint
    command: Command | None
    tenure: Tenure
    loaded_at: datetime
    loop_at: float
    verdict: Verdict | None = None

    def now(self) -> datetime:
        """The database's time, from the snapshot's and what has passed since."""
        return self.loaded_at + timedelta(seconds=asyncio.get_running_loop().time() - self.loop_at)

    @property
    def phase(self) -> str:
        """The command's step, or whether the power is being enforced."""
        if self.command is not None:
            return self.command.current_step
        if not self.endpoint.wants_power_change:
            return _IDLE
        return _BY_HAND if self.endpoint.by_hand else _ENFORCING

    @property
    def version(self) -> int:
        """Version of the row that `save` changes."""
        return self.command.version if self.command is not None else self.endpoint.version


class BmcReconciler:
    """Carries out commands and enforces desired power.

    `announcer` None: inventory is not configured and hears of no reboots. `step_seconds` bounds one exchange.
    """

    # A command has a deadline of its own, checked at each look; enforcing goes on for as long as it is wanted.
    deadlines: Mapping[str, timedelta] = {_ENFORCING: WISH_SPAN}

    def __init__(
        self,
        db: Database,
        exchange: BmcExchange,
        announcer: Announcer | None,
        registry: Registry,
        desk: TaskDesk,
        power_ons: PowerOns,
        *,
        partition: str,
        patience: Patience,
        step_seconds: float = 20.0,
    ) -> None:
        self._db, self._exchange, self._announcer = db, exchange, announcer
        self._ownership, self._power_ons = exchange.ownership, power_ons
        self._enforcer = Enforcer(
            db, exchange, announcer, power_ons, announce=patience.announce, step_seconds=step_seconds
        )
        self._partition, self._patience, self._step_seconds = partition, patience, step_seconds
        self._registry, self._desk = registry, desk
        self._commands, self._endpoints = CommandStore(), EndpointStore()
        self.kind = reconcile_kind(partition)

    async def sweep(self, connection: Connection) -> Iterable[str]:
        """Machines with open commands, or without the power they should have."""
        with_commands = await self._commands.machines_with_open(connection, self._partition)
        return {*with_commands, *await self._endpoints.unsettled(connection, self._partition)}

    async def load(self, connection: Connection, key: str) -> Work | None:
        """The machine's endpoint and the command whose turn it is."""
        endpoint = await self._endpoints.get(connection, key)
        if endpoint is None:
            return None
        command = await self._commands.oldest_open(connection, key)
        try:
            tenure = self._ownership.tenure(key)
        except NotOwner:
            raise StaleSnapshot from None
        loaded_at = await connection.fetchval("SELECT clock_timestamp()")
        return Work(endpoint, command, tenure, loaded_at, asyncio.get_running_loop().time())

    async def act(self, snapshot: Work) -> Outcome:
        """One step of the command, or one attempt to enforce the power."""
        try:
            return await self._act(snapshot)
        except NotOwner:
            # `save` finds that, too, and leaves all as it is for the new owner.
            return Wait("OTHER_OWNER", "another replica has the BMC now", after=_SOON)

    async def _act(self, snapshot: Work) -> Outcome:
        if snapshot.command is None:
            by_hand = snapshot.endpoint.by_hand
            return await (self._desk.enforce if by_hand else self._enforcer.enforce)(snapshot.endpoint)
        verdict = snapshot.verdict = await self._carry_out(snapshot.command, snapshot.endpoint, snapshot.now)
        if isinstance(verdict, Advance):
            return Go(snapshot.command.plan[snapshot.command.step + 1])
        if isinstance(verdict, Finish):
            return Done(verdict.reason or verdict.state.upper(), verdict.message)
        if verdict.failed:
            return Failed(verdict.reason, verdict.message, retry_after=verdict.after)
        return Wait(verdict.reason, verdict.message, after=verdict.after)

    async def save(self, connection: Connection, snapshot: Work, outcome: Outcome, *, overdue: bool) -> None:
        """Write the command's progress; an overdue enforcement shows in the queue and its history."""
        del outcome, overdue
        try:
            await self._ownership.check(connection, snapshot.tenure)
        except NotOwner:
            raise StaleSnapshot from None
        command, verdict = snapshot.command, snapshot.verdict
        if command is None or verdict is None:
            return
        if isinstance(verdict, Advance):
            changed = await self._commands.advance(connection, command, step=command.step + 1)
            if command.state is State.PENDING:
                await events.command_changed(connection, changed)
        elif isinstance(verdict, Again):
            told = not command.by_hand or command.reason == verdict.reason
            if verdict.failed or command.state is State.PENDING or not told:
                changed = await self._commands.retry(connection, command, reason=verdict.reason, error=verdict.message)
                await events.command_changed(connection, changed)
        else:
            ended = await self._commands.finish(connection, command, verdict)
            await events.command_finished(connection, ended)
            await self._follow(connection, ended)
            if ended.by_hand:
                await self._desk.withdraw_of(connection, ended)
            metrics.COMMANDS.labels(ended.action, ended.state, ended.reason).inc()
            log.info("bmc.command.finished", command=ended.id, machine=ended.machine, action=str(ended.action),
                     state=str(ended.state), reason=ended.reason)  # fmt: skip
            # The next command, or the desired power, has waited for this one.
            await enqueue(connection, self.kind, command.machine)

    async def _follow(self, connection: Connection, ended: Command) -> None:
        endpoint = await self._endpoints.get(connection, ended.machine, lock=True)
        if endpoint is None or ended.state is not State.SUCCEEDED:
            return
        desired_on = desired_at_end(ended.action, endpoint.desired_on, by_hand=ended.by_hand)
        if desired_on != endpoint.desired_on:
            await self._registry.desire(connection, endpoint, desired_on)

    async def _carry_out(self, command: Command, endpoint: Endpoint, now: Now) -> Verdict:
        began = now()
        over = expired(command, began)
        if over is not None:
            return over
        limit = min(self._step_seconds, (command.deadline - began).total_seconds())
        try:
            return await self._step(command, endpoint, limit, now)
        except BmcError as error:
            command = await self._reread(command)
            if endpoint.unreachable and isinstance(error, BmcTimeout) and command.sent_at is None:
                since = f"{endpoint.silent_since:%Y-%m-%d %H:%M:%S} UTC"
                message = f"the BMC has not answered since {since}; it was tried once more and did not answer either"
                return Finish(State.FAILED, Unreachable.reason, message)
            return judge_error(command, error, now(), self._patience)

    async def _step(self, command: Command, endpoint: Endpoint, limit: float, now: Now) -> Verdict:
        machine, step = command.machine, command.current_step
        if step is Step.SET_BOOT:
            setting = await self._exchange.set_boot(machine, command.boot_wish, deadline=limit)
            kept = holds(command.boot_wish, setting, endpoint.quirks)
            return judge_setting(command, "boot device", kept, self._patience)
        if step is Step.ANNOUNCE:
            await self._announce(command, endpoint, limit, now)
            return done(command)
        if step in (Step.TURN_ON, Step.TURN_OFF):
            wait = await self._power_ons.wait_of(endpoint) if step is Step.TURN_ON else None
            if wait is not None:
                return Again(wait, RACK_POWER, OTHERS_START, failed=False)
            await self._exchange.set_power(machine, on=step is Step.TURN_ON, deadline=limit)
            return done(command)
        if step in (Step.CONFIRM_ON, Step.CONFIRM_OFF):
            powered = await self._exchange.powered(machine, deadline=limit)
            return judge_power(command, powered, now(), self._patience)
        if step is Step.REST:
            left = command.step_at + self._patience.rest - now()
            return (
                Again(left, "RESTING", "a moment without power", failed=False) if left > timedelta(0) else done(command)
            )
        if step is Step.PERSON:
            return await self._desk.carry_out(command, now())
        if step in ONE_SHOT:
            return await self._shoot(command, limit)
        if step is Step.ASK_OFF:
            if not await self._exchange.powered(machine, deadline=limit):
                return Finish(State.SUCCEEDED)
            await self._exchange.soft_off(machine, deadline=limit)
            return done(command)
        if step is Step.AWAIT_OFF:
            return judge_soft_off(command, await self._exchange.powered(machine, deadline=limit), now())
        on = command.action is Action.IDENTIFY_ON
        lit = await self._exchange.set_identify(machine, on=on, deadline=limit)
        return judge_setting(command, "identify light", lit in (on, None), self._patience)

    async def _announce(self, command: Command, endpoint: Endpoint, limit: float, now: Now) -> None:
        # The controller of an allocation records what its commands do to the machine, with the allocation's guard.
        if self._announcer is None or command.allocation:
            return
        if command.by_hand:
            # Nobody else knows; a machine that nobody has spoken of may be on.
            powered = endpoint.observation.powered is not False
        else:
            # Asked first, so that inventory hears nothing of reboots that a dead BMC or a refused login prevents.
            powered = await self._exchange.powered(command.machine, deadline=limit)
        if not reboots(command.action, powered):
            return
        await self._announcer.planned_reboot(
            command.machine,
            event=event_of(command.id),
            command=command.id,
            message=f"{command.action}, BMC command {command.id}",
            within=announce_within(command, now(), self._patience),
        )

    async def _shoot(self, command: Command, limit: float) -> Verdict:
        order = command.current_step.lower()
        if command.sent_at is not None:
            return unknown_outcome(command, "the service was interrupted")
        # Proves that the login works and that there is something to reset, before the one shot is spent.
        if not await self._exchange.powered(command.machine, deadline=limit):
            return Finish(State.FAILED, "POWERED_OFF", f"the machine is off; there is nothing to {order}")
        async with self._db.transaction(purpose=f"mark the {order} as sent") as connection:
            await self._ownership.check(connection, self._ownership.tenure(command.machine))
            if not await self._commands.mark_sent(connection, command.id):
                return unknown_outcome(command, "another worker sent it")
        send = self._exchange.reset if command.current_step is Step.RESET else self._exchange.interrupt
        await send(command.machine, deadline=limit)
        return done(command)

    async def _reread(self, command: Command) -> Command:
        """The command with the mark that `_shoot` may have set."""
        if command.current_step not in ONE_SHOT:
            return command
        async with self._db.connection() as connection:
            return await self._commands.get(connection, command.id) or command
