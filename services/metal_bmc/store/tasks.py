"""Rows of `manual_task`. A task that has ended never changes again."""

from __future__ import annotations

from datetime import datetime, timedelta

import asyncpg
from metal_kit.db import Connection
from metal_kit.ids import uuid7

from metal_bmc.command import Command
from metal_bmc.endpoint import Endpoint
from metal_bmc.plan import Action
from metal_bmc.task import Task, TaskState

_COLUMNS = """id::text, machine::text, partition, coalesce(command::text, '') AS command, action, instruction, state,
    revision, note, person, deadline, reminders, created_at, ended_at, version"""
_FIRST = "00000000-0000-0000-0000-000000000000"
_ADD = f"""
    INSERT INTO manual_task (id, machine, partition, command, action, instruction, state, revision, deadline, remind_at)
    VALUES ($1, $2, $3, $4, $5, $6, 'open', $7, $8, now() + $9::interval) ON CONFLICT DO NOTHING RETURNING {_COLUMNS}
"""
_ENDED = f"""
    UPDATE manual_task SET state = $2, note = $3, person = $4, ended_at = now(), version = version + 1
    WHERE state = 'open' AND {{chosen}} RETURNING {_COLUMNS}
"""


def _from_row(row: asyncpg.Record) -> Task:
    values = dict(row)
    return Task(**{**values, "action": Action(values["action"]), "state": TaskState(values["state"])})


class TaskStore:
    """Tasks by id, by command, and the open ones."""

    async def get(self, connection: Connection, task_id: str, *, lock: bool = False) -> Task | None:
        """One task; `lock` keeps the row until the transaction ends."""
        tail = "FOR UPDATE" if lock else ""
        row = await connection.fetchrow(f"SELECT {_COLUMNS} FROM manual_task WHERE id = $1 {tail}", task_id)
        return None if row is None else _from_row(row)

    async def page(
        self, connection: Connection, *, machine: str, partition: str, ended: bool, after: str | None, limit: int
    ) -> list[Task]:
        """Tasks, oldest first, younger than that id; `ended` shows those that have ended, too."""
        arguments: list[object] = [after or _FIRST]
        chosen, order = "manual_task.id > $1", "manual_task.id"
        if machine:
            arguments.append(machine)
            chosen += f" AND machine = ${len(arguments)}"
        if partition:
            arguments.append(partition)
            # Partition and id together, as the index has them: with an equality the planner walks all ids instead.
            number = len(arguments)
            chosen += f" AND (partition, manual_task.id) > (${number}, $1) AND partition <= ${number}"
            order = "partition, manual_task.id"
        if not ended:
            chosen += " AND state = 'open'"
        # A statement each, as one has one plan; manual_task.id, since a bare one would be the text of the result.
        rows = await connection.fetch(
            f"SELECT {_COLUMNS} FROM manual_task WHERE {chosen} ORDER BY {order} LIMIT {limit:d}", *arguments
        )
        return [_from_row(row) for row in rows]

    async def of_command(self, connection: Connection, command: str) -> Task | None:
        """The task of a command."""
        row = await connection.fetchrow(f"SELECT {_COLUMNS} FROM manual_task WHERE command = $1", command)
        return None if row is None else _from_row(row)

    async def last_wish(self, connection: Connection, machine: str) -> Task | None:
        """The youngest task that is for the power that is wanted of a machine."""
        row = await connection.fetchrow(
            f"""SELECT {_COLUMNS} FROM manual_task WHERE machine = $1 AND command IS NULL
            ORDER BY manual_task.id DESC LIMIT 1""",
            machine,
        )
        return None if row is None else _from_row(row)

    async def open_for(
        self, connection: Connection, command: Command, instruction: str, remind: timedelta
    ) -> Task | None:
        """Open the task of a command; None when it has one."""
        return await self._add(
            connection,
            command.machine,
            command.partition,
            command.id,
            command.action,
            instruction,
            0,
            command.deadline,
            remind,
        )

    async def open_wish(
        self, connection: Connection, endpoint: Endpoint, action: Action, instruction: str, remind: timedelta
    ) -> Task | None:
        """Open the task for the power that is wanted; None when one is open."""
        place = (endpoint.machine, endpoint.partition)
        return await self._add(connection, *place, None, action, instruction, endpoint.revision, None, remind)

    async def _add(self, connection: Connection, *values: object) -> Task | None:
        row = await connection.fetchrow(_ADD, uuid7(), *values)
        return None if row is None else _from_row(row)

    async def end(self, connection: Connection, task: str, state: TaskState, *, note: str, person: str) -> Task | None:
        """End a task; None when it has ended."""
        row = await connection.fetchrow(_ENDED.format(chosen="id = $1"), task, state, note, person)
        return None if row is None else _from_row(row)

    async def withdraw_of(self, connection: Connection, command: str, note: str) -> list[Task]:
        """End the open task of a command, if there is one."""
        return await self._withdraw(connection, "command = $1", command, note)

    async def withdraw_wish(self, connection: Connection, machine: str, note: str) -> list[Task]:
        """End the open task for the power that is wanted, if there is one."""
        return await self._withdraw(connection, "machine = $1 AND command IS NULL", machine, note)

    async def withdraw_all(self, connection: Connection, machine: str, note: str) -> list[Task]:
        """End all open tasks of a machine."""
        return await self._withdraw(connection, "machine = $1", machine, note)

    async def due(self, connection: Connection, partition: str, *, most: int) -> list[Task]:
        """Open tasks of which people are to be reminded, locked, those that others have locked left out."""
        rows = await connection.fetch(
            f"""SELECT {_COLUMNS} FROM manual_task WHERE partition = $1 AND state = 'open' AND remind_at <= now()
            ORDER BY remind_at LIMIT $2 FOR UPDATE SKIP LOCKED""",
            partition,
            most,
        )
        return [_from_row(row) for row in rows]

    async def remind(self, connection: Connection, task: str, again: timedelta) -> Task:
        """Count a reminder; the next one comes `again` later."""
        row = await connection.fetchrow(
            f"""UPDATE manual_task SET reminders = reminders + 1, remind_at = now() + $2::interval,
            version = version + 1 WHERE id = $1 RETURNING {_COLUMNS}""",
            task,
            again,
        )
        assert row is not None
        return _from_row(row)

    async def declined_wishes(self, connection: Connection, partition: str, *, most: int) -> list[Task]:
        """Declined tasks for a power that is still wanted, and not reached."""
        rows = await connection.fetch(
            f"""SELECT {_COLUMNS} FROM manual_task WHERE manual_task.id IN (
                SELECT (SELECT id FROM manual_task AS task WHERE task.machine = endpoint.machine AND command IS NULL
                    AND state = 'declined' AND task.revision = endpoint.revision ORDER BY task.id DESC LIMIT 1)
                FROM endpoint WHERE partition = $1 AND driver = 'manual' AND desired_on IS NOT NULL
                AND reported_on IS DISTINCT FROM desired_on LIMIT $2)""",
            partition,
            most,
        )
        return [_from_row(row) for row in rows]

    async def forget_ended(self, connection: Connection, before: datetime, *, most: int) -> int:
        """Remove tasks that ended before a time; returns how many."""
        status = await connection.execute(
            """DELETE FROM manual_task WHERE id = ANY (ARRAY(
                SELECT id FROM manual_task WHERE state <> 'open' AND ended_at < $1 ORDER BY ended_at LIMIT $2))""",
            before,
            most,
        )
        return int(status.rpartition(" ")[2])

    async def _withdraw(self, connection: Connection, chosen: str, value: str, note: str) -> list[Task]:
        rows = await connection.fetch(_ENDED.format(chosen=chosen), value, TaskState.WITHDRAWN, note, "")
        return [_from_row(row) for row in rows]
