"""Rows of `expected_machine` and `expected_difference`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import asyncpg
from metal_kit.db import Connection
from metal_kit.errors import AlreadyExists

from metal_bmc.drivers.interface import DriverKind
from metal_bmc.expected import Attempt, Difference, Expectation, ExpectedMachine, KnownDifference

_FIRST = "00000000-0000-0000-0000-000000000000"
_WISH = ("partition", "mac", "serial", "login", "sealed", "vendor", "model", "driver", "rack")
_REST = ("found_at", "revision", "created_at", "updated_at")
_COLUMNS = ", ".join(f"expected_machine.{name}" for name in (*_WISH, *_REST)) + (
    ", expected_machine.id::text AS id, coalesce(expected_machine.machine::text, '') AS machine"
)
_TAKEN = {
    "expected_machine_mac": ("MAC_TAKEN", "a machine with this BMC is expected already", "expected_machine.mac"),
    "expected_machine_serial": ("SERIAL_TAKEN", "this serial number is expected already", "expected_machine.serial"),
}


@dataclass(frozen=True, slots=True)
class Unexpected:
    """A BMC that was found and that nobody expects: its machine, or empty, and where it is."""

    machine: str
    mac: str
    host: str
    since: datetime


class ExpectedStore:
    """Expected machines, and what is not as expected of them."""

    async def get(self, connection: Connection, expected: str, *, lock: bool = False) -> ExpectedMachine | None:
        """One; `lock` keeps the row until the transaction ends."""
        tail = "FOR UPDATE" if lock else ""
        row = await connection.fetchrow(f"SELECT {_COLUMNS} FROM expected_machine WHERE id = $1 {tail}", expected)
        return None if row is None else (await self._with_differences(connection, [row]))[0]

    async def by_mac(self, connection: Connection, partition: str, mac: str) -> ExpectedMachine | None:
        """The one whose BMC has the MAC address."""
        row = await connection.fetchrow(
            f"SELECT {_COLUMNS} FROM expected_machine WHERE partition = $1 AND mac = $2 AND mac <> ''", partition, mac
        )
        return None if row is None else _from_row(row)

    async def by_serials(self, connection: Connection, partition: str, serials: Sequence[str]) -> list[ExpectedMachine]:
        """Those that were not found and have one of the serial numbers, which are in lower case."""
        rows = await connection.fetch(
            f"""SELECT {_COLUMNS} FROM expected_machine
            WHERE partition = $1 AND lower(serial) = ANY($2::text[]) AND serial <> '' AND machine IS NULL""",
            partition,
            serials,
        )
        return [_from_row(row) for row in rows]

    async def page(
        self, connection: Connection, *, partition: str, after: str | None, limit: int
    ) -> list[ExpectedMachine]:
        """In the order of their ids, after that one."""
        arguments: list[object] = [after or _FIRST]
        of_partition = ""
        if partition:
            arguments.append(partition)
            of_partition = "AND partition = $2"
        rows = await connection.fetch(
            f"""SELECT {_COLUMNS} FROM expected_machine WHERE id > $1 {of_partition}
            ORDER BY expected_machine.id LIMIT {limit:d}""",
            *arguments,
        )
        return await self._with_differences(connection, rows)

    async def wishes(self, connection: Connection, partition: str, after: str | None, limit: int) -> list[Expectation]:
        """What is expected in a partition, in the order of the ids, after that one."""
        rows = await connection.fetch(
            f"""SELECT {_COLUMNS} FROM expected_machine WHERE id > $1 AND partition = $2
            ORDER BY expected_machine.id LIMIT {limit:d}""",
            after or _FIRST,
            partition,
        )
        return [_from_row(row).expectation for row in rows]

    async def unmatched(self, connection: Connection, partition: str, limit: int) -> list[ExpectedMachine]:
        """Those with a serial number that were not found."""
        rows = await connection.fetch(
            f"""SELECT {_COLUMNS} FROM expected_machine WHERE partition = $1 AND machine IS NULL AND serial <> ''
            ORDER BY expected_machine.id LIMIT {limit:d}""",
            partition,
        )
        return [_from_row(row) for row in rows]

    async def insert(self, connection: Connection, wish: Expectation) -> ExpectedMachine:
        """Add one. Raises AlreadyExists when its MAC address or serial number is expected."""
        places = ", ".join(f"${number}" for number in range(2, 2 + len(_WISH)))
        return await self._write(
            connection,
            f"INSERT INTO expected_machine (id, {', '.join(_WISH)}) VALUES ($1, {places}) RETURNING {_COLUMNS}",
            wish,
        )

    async def change(self, connection: Connection, wish: Expectation, *, anew: bool) -> ExpectedMachine:
        """Write what people changed; `anew` forgets which machine it turned out to be. Raises as `insert`."""
        sets = ", ".join(f"{name} = ${number}" for number, name in enumerate(_WISH, start=2))
        found = ", machine = NULL, found_at = NULL" if anew else ""
        return await self._write(
            connection,
            f"""UPDATE expected_machine SET {sets}, revision = revision + 1, updated_at = now() {found}
            WHERE id = $1 RETURNING {_COLUMNS}""",
            wish,
        )

    async def delete(self, connection: Connection, expected: str) -> None:
        """Remove it, with what is not as expected of it."""
        await connection.execute("DELETE FROM expected_machine WHERE id = $1", expected)

    async def spend(self, connection: Connection, expected: str, sealed: bytes | None) -> None:
        """Erase the initial password that was used, unless there is another one by now."""
        await connection.execute(
            """UPDATE expected_machine SET sealed = NULL, revision = revision + 1, updated_at = now()
            WHERE id = $1 AND sealed = $2""",
            expected,
            sealed,
        )

    async def reseal(self, connection: Connection, expected: str, *, old: bytes, new: bytes) -> bool:
        """Replace the sealed password by the same one under a newer key, unless it changed meanwhile."""
        status = await connection.execute(
            "UPDATE expected_machine SET sealed = $3 WHERE id = $1 AND sealed = $2", expected, old, new
        )
        return status == "UPDATE 1"

    async def match_by_mac(self, connection: Connection, partition: str) -> None:
        """Give those that are open the machine whose BMC has their MAC address; take it from those whose BMC is no
        longer registered."""
        await connection.execute(
            """UPDATE expected_machine SET machine = NULL WHERE partition = $1 AND machine IS NOT NULL
            AND NOT EXISTS (SELECT FROM endpoint WHERE endpoint.machine = expected_machine.machine)""",
            partition,
        )
        await connection.execute(
            """UPDATE expected_machine SET machine = endpoint.machine, found_at = now() FROM endpoint
            WHERE expected_machine.partition = $1 AND expected_machine.machine IS NULL AND expected_machine.mac <> ''
            AND endpoint.partition = $1 AND endpoint.mac = expected_machine.mac AND endpoint.mac <> ''
            AND NOT EXISTS (SELECT FROM expected_machine AS other WHERE other.machine = endpoint.machine)""",
            partition,
        )

    async def match(self, connection: Connection, expected: str, machine: str) -> bool:
        """Note which machine it turned out to be; False when it has one, or another one has this."""
        status = await connection.execute(
            """UPDATE expected_machine SET machine = $2, found_at = now() WHERE id = $1 AND machine IS NULL
            AND NOT EXISTS (SELECT FROM expected_machine AS other WHERE other.machine = $2)""",
            expected,
            machine,
        )
        return status == "UPDATE 1"

    async def expected_of(self, connection: Connection, machines: Sequence[str]) -> set[str]:
        """Which of the machines are expected."""
        rows = await connection.fetch(
            "SELECT machine::text FROM expected_machine WHERE machine = ANY($1::uuid[])", machines
        )
        return {row["machine"] for row in rows}

    async def attempts(self, connection: Connection, partition: str, macs: Sequence[str]) -> Mapping[str, Attempt]:
        """BMCs with these MAC addresses that were asked in vain."""
        rows = await connection.fetch(
            "SELECT mac, host, reason FROM sighting WHERE partition = $1 AND mac = ANY($2::text[]) AND refused",
            partition,
            macs,
        )
        return {row["mac"]: Attempt(row["host"], row["reason"]) for row in rows}

    async def settle(self, connection: Connection, expected: str, found: Iterable[Difference]) -> None:
        """Write what is not as expected now: what was there stays with its time, what is gone goes."""
        now = sorted(found, key=lambda each: each.field)
        await connection.execute(
            "DELETE FROM expected_difference WHERE expected = $1 AND field <> ALL($2::text[])",
            expected,
            [each.field for each in now],
        )
        for each in now:
            # The expected machine may have been deleted since it was read.
            await connection.execute(
                """INSERT INTO expected_difference (expected, field, wanted, seen)
                SELECT id, $2, $3, $4 FROM expected_machine WHERE id = $1 FOR KEY SHARE
                ON CONFLICT (expected, field) DO UPDATE SET wanted = excluded.wanted, seen = excluded.seen""",
                expected,
                each.field,
                each.wanted,
                each.seen,
            )

    async def different(self, connection: Connection, partition: str, limit: int) -> list[ExpectedMachine]:
        """Those of which something is not as expected."""
        rows = await connection.fetch(
            f"""SELECT {_COLUMNS} FROM expected_machine
            WHERE partition = $1 AND EXISTS (SELECT FROM expected_difference WHERE expected = expected_machine.id)
            ORDER BY expected_machine.id LIMIT {limit:d}""",
            partition,
        )
        return await self._with_differences(connection, rows)

    async def unexpected(self, connection: Connection, partition: str, limit: int) -> list[Unexpected]:
        """BMCs that discovery registered and nobody expects."""
        rows = await connection.fetch(
            f"""SELECT machine::text, mac, host, discovered_at AS since FROM endpoint
            WHERE partition = $1 AND discovered_at IS NOT NULL
            AND NOT EXISTS (SELECT FROM expected_machine WHERE expected_machine.machine = endpoint.machine)
            ORDER BY endpoint.machine LIMIT {limit:d}""",
            partition,
        )
        return [Unexpected(**dict(row)) for row in rows]

    async def left_alone(self, connection: Connection, partition: str, limit: int) -> list[Unexpected]:
        """BMCs that were seen and, as nobody expects them, not registered."""
        rows = await connection.fetch(
            f"""SELECT '' AS machine, mac, host, first_seen_at AS since FROM sighting
            WHERE partition = $1 AND reason = 'NOT_EXPECTED'
            AND NOT EXISTS (SELECT FROM endpoint WHERE endpoint.partition = $1 AND endpoint.mac = sighting.mac
                AND endpoint.mac <> '')
            ORDER BY sighting.mac LIMIT {limit:d}""",
            partition,
        )
        return [Unexpected(**dict(row)) for row in rows]

    async def _write(self, connection: Connection, statement: str, wish: Expectation) -> ExpectedMachine:
        try:
            row = await connection.fetchrow(statement, wish.id, *(getattr(wish, name) for name in _WISH))
        except asyncpg.UniqueViolationError as error:
            reason, message, field = _TAKEN.get(str(error.constraint_name), ("TAKEN", "already in use", ""))
            raise AlreadyExists(reason, message, field=field) from error
        assert row is not None
        return (await self._with_differences(connection, [row]))[0]

    async def _with_differences(self, connection: Connection, rows: Sequence[asyncpg.Record]) -> list[ExpectedMachine]:
        found: dict[str, list[KnownDifference]] = {}
        known = await connection.fetch(
            """SELECT expected::text, field, wanted, seen, since FROM expected_difference
            WHERE expected = ANY($1::uuid[]) ORDER BY expected, field""",
            [row["id"] for row in rows],
        )
        for each in known:
            difference = Difference(each["field"], each["wanted"], each["seen"])
            found.setdefault(each["expected"], []).append(KnownDifference(difference, each["since"]))
        return [replace(_from_row(row), differences=tuple(found.get(row["id"], ()))) for row in rows]


def _from_row(row: asyncpg.Record) -> ExpectedMachine:
    wish: dict[str, Any] = {name: row[name] for name in ("id", *_WISH)}
    rest: dict[str, Any] = {name: row[name] for name in ("machine", *_REST)}
    return ExpectedMachine(Expectation(**{**wish, "driver": DriverKind(row["driver"])}), **rest)
