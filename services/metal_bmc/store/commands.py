"""Rows of `command`. A command that has ended never changes again."""

from __future__ import annotations

from datetime import datetime, timedelta

import asyncpg
from metal_kit.controller import StaleSnapshot
from metal_kit.db import Connection

from metal_bmc.command import Command, Finish, State
from metal_bmc.drivers.interface import BootMode
from metal_bmc.order import Order
from metal_bmc.plan import Action

_COLUMNS = """id::text, machine::text, partition, action, state, step, tries, step_at, sent_at, reason, error,
    coalesce(allocation::text, '') AS allocation, requester, deadline, created_at, started_at, ended_at, version,
    boot_persistent, boot_mode, hard_after, by_hand"""
_LAST = "ffffffff-ffff-ffff-ffff-ffffffffffff"
_OPEN = "state IN ('pending', 'running')"


def _from_row(row: asyncpg.Record) -> Command:
    values = dict(row)
    mode = None if values["boot_mode"] is None else BootMode(values["boot_mode"])
    kinds = {"action": Action(values["action"]), "state": State(values["state"]), "boot_mode": mode}
    return Command(**{**values, **kinds})


class CommandStore:
    """Commands by id, and the open ones by machine."""

    async def get(self, connection: Connection, command_id: str) -> Command | None:
        """One command."""
        row = await connection.fetchrow(f"SELECT {_COLUMNS} FROM command WHERE id = $1", command_id)
        return None if row is None else _from_row(row)

    async def insert(
        self,
        connection: Connection,
        order: Order,
        *,
        command_id: str,
        partition: str,
        requester: str,
        timeout: timedelta,
        by_hand: bool,
    ) -> Command:
        """Add a pending command, whose deadline is `timeout` from now by the database's clock."""
        row = await connection.fetchrow(
            f"""INSERT INTO command (id, machine, partition, action, state, allocation, requester, deadline,
                boot_persistent, boot_mode, hard_after, by_hand)
            VALUES ($1, $2, $3, $4, 'pending', $5, $6, now() + $7::interval, $8, $9, $10, $11) RETURNING {_COLUMNS}""",
            command_id,
            order.machine,
            partition,
            order.action,
            order.allocation or None,
            requester,
            timeout,
            order.boot_persistent,
            order.boot_mode,
            order.hard_after,
            by_hand,
        )
        assert row is not None
        return _from_row(row)

    async def page(self, connection: Connection, *, machine: str, before: str | None, limit: int) -> list[Command]:
        """Commands, newest first, older than that id."""
        arguments: list[object] = [before or _LAST]
        of_machine = ""
        if machine:
            arguments.append(machine)
            of_machine = "AND machine = $2"
        # Two statements, as one has one plan; command.id, since a bare one would be the text of the result.
        rows = await connection.fetch(
            f"SELECT {_COLUMNS} FROM command WHERE id < $1 {of_machine} ORDER BY command.id DESC LIMIT {limit:d}",
            *arguments,
        )
        return [_from_row(row) for row in rows]

    async def oldest_open(self, connection: Connection, machine: str) -> Command | None:
        """The command whose turn it is: they are carried out one after the other, in the order they were given."""
        row = await connection.fetchrow(
            f"SELECT {_COLUMNS} FROM command WHERE machine = $1 AND {_OPEN} ORDER BY command.id LIMIT 1",
            machine,
        )
        return None if row is None else _from_row(row)

    async def open_count(self, connection: Connection, machine: str) -> int:
        """How many commands wait or run."""
        query = f"SELECT count(*) FROM command WHERE machine = $1 AND {_OPEN}"
        return int(await connection.fetchval(query, machine))

    async def machines_with_open(self, connection: Connection, partition: str) -> list[str]:
        """Machines with commands that have not ended."""
        rows = await connection.fetch(
            f"SELECT DISTINCT machine::text FROM command WHERE partition = $1 AND {_OPEN}",
            partition,
        )
        return [str(row["machine"]) for row in rows]

    async def mark_sent(self, connection: Connection, command_id: str) -> bool:
        """Note that the order is about to be sent. False when it was noted before: it must not be sent again."""
        status = await connection.execute(
            f"UPDATE command SET sent_at = now() WHERE id = $1 AND sent_at IS NULL AND {_OPEN}",
            command_id,
        )
        return status == "UPDATE 1"

    async def advance(self, connection: Connection, command: Command, *, step: int) -> Command:
        """Enter a step. Raises StaleSnapshot when the command is not as it was."""
        return await self._changed(
            connection,
            command,
            "state = 'running', started_at = coalesce(started_at, now()), step = $3, tries = 0, step_at = now()",
            step,
        )

    async def retry(self, connection: Connection, command: Command, *, reason: str, error: str) -> Command:
        """Count one more try on the step, with what went wrong so far."""
        return await self._changed(
            connection,
            command,
            "state = 'running', started_at = coalesce(started_at, now()), tries = tries + 1, reason = $3, error = $4",
            reason,
            error,
        )

    async def finish(self, connection: Connection, command: Command, end: Finish) -> Command:
        """End a command. Raises StaleSnapshot when it is not as it was."""
        return await self._changed(
            connection,
            command,
            "state = $3, reason = $4, error = $5, ended_at = now()",
            end.state,
            end.reason,
            end.message,
        )

    async def finish_all(self, connection: Connection, machine: str, end: Finish) -> list[Command]:
        """End all open commands of a machine."""
        rows = await connection.fetch(
            f"""UPDATE command SET state = $2, reason = $3, error = $4, ended_at = now(), version = version + 1
            WHERE machine = $1 AND {_OPEN} RETURNING {_COLUMNS}""",
            machine,
            end.state,
            end.reason,
            end.message,
        )
        return [_from_row(row) for row in rows]

    async def expire_waiting(self, connection: Connection, partition: str, end: Finish) -> list[Command]:
        """End the commands whose deadline passed before they were begun."""
        rows = await connection.fetch(
            f"""UPDATE command SET state = $2, reason = $3, error = $4, ended_at = now(), version = version + 1
            WHERE partition = $1 AND state = 'pending' AND deadline <= now() RETURNING {_COLUMNS}""",
            partition,
            end.state,
            end.reason,
            end.message,
        )
        return [_from_row(row) for row in rows]

    async def forget_ended(self, connection: Connection, before: datetime, *, most: int) -> int:
        """Remove commands that ended before a time; returns how many."""
        status = await connection.execute(
            f"""DELETE FROM command WHERE id = ANY (ARRAY(
                SELECT id FROM command WHERE NOT ({_OPEN}) AND ended_at < $1 ORDER BY ended_at LIMIT $2))""",
            before,
            most,
        )
        return int(status.rpartition(" ")[2])

    async def _changed(self, connection: Connection, command: Command, changes: str, *values: object) -> Command:
        row = await connection.fetchrow(
            f"UPDATE command SET {changes}, version = version + 1 WHERE id = $1 AND version = $2 RETURNING {_COLUMNS}",
            command.id,
            command.version,
            *values,
        )
        if row is None:
            raise StaleSnapshot
        return _from_row(row)
