"""Cables between leaves and machines."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import asyncpg
from metal_kit.db import Connection

from metal_fabric.cabling import Cable

_LIST = """
    SELECT * FROM cable
    WHERE (switch_id, port) > ($1, $2) AND ($3 = '' OR switch_id = $3) AND ($4::uuid IS NULL OR machine = $4)
    ORDER BY switch_id, port LIMIT $5
"""
_INSERT = """
    INSERT INTO cable (switch_id, port, machine, nic_mac)
    SELECT * FROM unnest($1::text[], $2::text[], $3::uuid[], $4::text[])
"""
# Two index scans: one condition with OR over both columns would read all cables.
_ANNOUNCED = """
    SELECT * FROM cable WHERE nic_mac = ANY ($1)
    UNION
    SELECT * FROM cable WHERE machine = ANY ($2::uuid[])
"""
_NEIGHBOURS = """
    SELECT DISTINCT other.switch_id FROM cable c JOIN cable other USING (machine)
    WHERE c.switch_id = $1 AND other.switch_id <> $1
"""


class CableStore:
    """Cables, by switch and port."""

    async def of_machine(self, conn: Connection, machine: str) -> list[Cable]:
        """The machine's cables, by switch and port."""
        return _cables(await conn.fetch("SELECT * FROM cable WHERE machine = $1 ORDER BY switch_id, port", machine))

    async def of_switches(self, conn: Connection, switch_ids: Collection[str]) -> list[Cable]:
        """All cables of these switches."""
        query = "SELECT * FROM cable WHERE switch_id = ANY ($1) ORDER BY switch_id, port"
        return _cables(await conn.fetch(query, list(switch_ids)))

    async def neighbours(self, conn: Connection, switch_id: str) -> set[str]:
        """The other switches that machines of this one hang on."""
        return {row["switch_id"] for row in await conn.fetch(_NEIGHBOURS, switch_id)}

    async def put_of_switch(self, conn: Connection, switch_id: str, cables: Iterable[Cable]) -> None:
        """Make the switch's cables the given ones. It must be locked."""
        await conn.execute("DELETE FROM cable WHERE switch_id = $1", switch_id)
        await self._insert(conn, cables)

    async def of_announced(self, conn: Connection, macs: Collection[str], machines: Collection[str]) -> list[Cable]:
        """The cables of these NICs, and those of these machines."""
        return _cables(await conn.fetch(_ANNOUNCED, list(macs), list(machines)))

    async def put(self, conn: Connection, machine: str, cables: Iterable[Cable]) -> None:
        """Make the machine's cables the given ones, on all of its switches at once. The switches must be locked."""
        await conn.execute("DELETE FROM cable WHERE machine = $1", machine)
        await self._insert(conn, cables)

    async def _insert(self, conn: Connection, cables: Iterable[Cable]) -> None:
        every = list(cables)
        await conn.execute(
            _INSERT,
            [cable.switch_id for cable in every],
            [cable.port for cable in every],
            [cable.machine for cable in every],
            [cable.nic_mac for cable in every],
        )

    async def page(
        self, conn: Connection, *, after: tuple[str, str], switch_id: str, machine: str | None, limit: int
    ) -> list[Cable]:
        """Cables after a (switch id, port), of one switch and one machine if given."""
        return _cables(await conn.fetch(_LIST, *after, switch_id, machine, limit))


def _cables(rows: list[asyncpg.Record]) -> list[Cable]:
    return [Cable(row["switch_id"], row["port"], str(row["machine"]), row["nic_mac"]) for row in rows]
