"""The desk where tasks for people are opened and what they say is taken in: what a driver is to machines with a BMC.

Opening is idempotent by the command, or by the machine for a power that is wanted; so a crash, or another replica that
looks at the same moment, makes no second task. What a person confirms is written as the machine's state, since nobody
else can tell it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

import asyncpg
from metal_kit.backoff import pause
from metal_kit.clock import Clock
from metal_kit.controller import Done, Outcome, enqueue
from metal_kit.db import Connection, Database
from metal_kit.errors import FailedPrecondition, InvalidArgument, NotFound, Problem
from metal_kit.issues import Issue
from metal_kit.logs import get_logger

from metal_bmc import events
from metal_bmc.command import Command, Verdict
from metal_bmc.endpoint import Endpoint
from metal_bmc.exchange import reconcile_kind
from metal_bmc.plan import Action
from metal_bmc.store import EndpointStore, TaskStore
from metal_bmc.task import (
    Task,
    TaskState,
    instruction,
    instruction_of,
    issue_of,
    judge_task,
    next_reminder,
    power_after,
)

log = get_logger(__name__)

_TICK = timedelta(seconds=5)
_BATCH = 100
_MOST_ISSUES = 500
_DECLINED = "a person declined to bring the machine to the power that is wanted"


class TaskDesk:
    """Tasks of one partition. `remind` is how long an open task waits until people are reminded of it first."""

    def __init__(self, db: Database, clock: Clock, *, partition: str, remind: timedelta) -> None:
        self._db, self._clock, self._partition, self._remind = db, clock, partition, remind
        self._tasks, self._endpoints = TaskStore(), EndpointStore()

    async def carry_out(self, command: Command, now: datetime) -> Verdict:
        """Open the command's task unless it has one, and look at what became of it."""
        async with self._db.transaction(purpose="open a task for a command") as connection:
            # Never two tasks at once that may contradict each other; what is still wanted afterwards comes back.
            note = "a command goes first"
            await self._withdrawn(connection, await self._tasks.withdraw_wish(connection, command.machine, note))
            task = await self._tasks.open_for(connection, command, instruction_of(command), self._remind)
            if task is not None:
                await self._opened(connection, task)
            else:
                task = await self._tasks.of_command(connection, command.id)
        assert task is not None
        return judge_task(command, task, now)

    async def enforce(self, endpoint: Endpoint) -> Outcome:
        """Keep one task open for the power that is wanted, and none for one that is reached or not wanted any more."""
        async with self._db.transaction(purpose="open a task for the wanted power") as connection:
            now = await self._endpoints.get(connection, endpoint.machine, lock=True)
            if now is None or not now.by_hand:
                return Done()
            action = Action.POWER_ON if now.desired_on else Action.POWER_OFF
            last = await self._tasks.last_wish(connection, now.machine)
            is_open = last is not None and last.state is TaskState.OPEN
            if is_open and (not now.wants_power_change or (last is not None and last.action is not action)):
                await self._withdrawn(
                    connection, await self._tasks.withdraw_wish(connection, now.machine, "it is not wanted any more")
                )
                is_open = False
            if not now.wants_power_change:
                return Done()
            if last is not None and last.state is TaskState.DECLINED and last.revision == now.revision:
                return Done("DECLINED", _DECLINED)
            if not is_open:
                task = await self._tasks.open_wish(connection, now, action, instruction(action, None), self._remind)
                if task is not None:
                    await self._opened(connection, task)
        # Whoever confirms it wakes the machine's reconciler.
        return Done("WAITING_FOR_PERSON", f"a person has to {instruction(action, None)}")

    async def answer(self, connection: Connection, task_id: str, *, decline: bool, note: str, person: str) -> Task:
        """Take in what a person says of a task. The same answer again returns the task as it is.

        Raises NotFound; InvalidArgument for declining without a note; FailedPrecondition when it ended otherwise.
        """
        if decline and not note.strip():
            raise InvalidArgument("NOTE_EMPTY", "say why it is declined", field="note")
        found = await self._tasks.get(connection, task_id)
        if found is None:
            raise NotFound("TASK_NOT_FOUND", f"task {task_id} does not exist", field="id")
        # The machine's row first, as everywhere, so that nobody waits for each other in a circle.
        endpoint = await self._endpoints.get(connection, found.machine, lock=True)
        wanted = TaskState.DECLINED if decline else TaskState.CONFIRMED
        ended = await self._tasks.end(connection, task_id, wanted, note=note, person=person)
        if ended is None:
            again = await self._tasks.get(connection, task_id)
            if again is None or again.state is not wanted:
                state = "gone" if again is None else f"{again.state}: {again.note}"
                raise FailedPrecondition("TASK_ENDED", f"the task has ended, {state}", field="id")
            return again
        await events.task_changed(connection, ended)
        if endpoint is not None:
            if not decline:
                await self._confirmed(connection, endpoint, ended)
            await enqueue(connection, reconcile_kind(endpoint.partition), endpoint.machine)
        log.info("bmc.task.ended", task=ended.id, machine=ended.machine, state=str(ended.state))
        return ended

    async def withdraw_of(self, connection: Connection, command: Command) -> None:
        """The command has ended; nobody waits for its task any more."""
        note = f"the command ended: {command.state}" + (f", {command.reason}" if command.reason else "")
        await self._withdrawn(connection, await self._tasks.withdraw_of(connection, command.id, note))

    async def run(self, stopping: asyncio.Event) -> None:
        """Remind people until `stopping` is set; run it in every replica."""
        while not stopping.is_set():
            try:
                while await self.remind() == _BATCH:
                    pass
            except (Problem, asyncpg.PostgresError, OSError) as error:
                log.warning("bmc.tasks.wait", cause=type(error).__name__)
            await pause(stopping, min(_TICK, self._remind))

    async def remind(self) -> int:
        """Remind people of what is due; returns of how many tasks."""
        async with self._db.transaction(purpose="remind of tasks") as connection:
            due = await self._tasks.due(connection, self._partition, most=_BATCH)
            for task in due:
                after = next_reminder(self._remind, task.reminders)
                reminded = await self._tasks.remind(connection, task.id, after)
                await events.task_changed(connection, reminded)
                log.warning("bmc.task.waits", task=task.id, machine=task.machine, instruction=task.instruction)
        return len(due)

    async def issues(self, now: datetime) -> list[Issue]:
        """What waits for people, and what they declined that is still wanted."""
        del now
        async with self._db.connection() as connection:
            waiting = await self._tasks.page(
                connection, machine="", partition=self._partition, ended=False, after=None, limit=_MOST_ISSUES
            )
            declined = await self._tasks.declined_wishes(connection, self._partition, most=_MOST_ISSUES)
        return [issue_of(task) for task in (*waiting, *declined)]

    async def _confirmed(self, connection: Connection, endpoint: Endpoint, task: Task) -> None:
        powered = power_after(task.action)
        seen = replace(endpoint.observation, observed_at=self._clock.now(), reason="", error="", failures=0)
        news = powered is not None and powered != seen.powered
        if powered is not None:
            seen = replace(seen, powered=powered)
        after = await self._endpoints.observe(connection, endpoint, seen, news=news)
        if news:
            await events.endpoint_changed(connection, after)

    async def _opened(self, connection: Connection, task: Task) -> None:
        await events.task_changed(connection, task)
        log.info("bmc.task.opened", task=task.id, machine=task.machine, instruction=task.instruction)

    async def _withdrawn(self, connection: Connection, tasks: Iterable[Task]) -> None:
        for task in tasks:
            await events.task_changed(connection, task)
