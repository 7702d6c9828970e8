"""Functions whose plans were made while a prefix was nearly empty read as little when it has become full."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, ip_network

import pytest
from metal_kit.db import Connection, Database

FEW, MANY = 5, 4000
# Rows of addresses that an operation on one may look at.
LOOKS = 12
_READ = """
    SELECT coalesce(idx_tup_fetch, 0) + seq_tup_read FROM pg_stat_xact_user_tables WHERE relid = 'ip'::regclass
"""
_ROOT = "SELECT prefix_id FROM create_root(1, NULL, $1, 'leaf', false, '0', 'test')"


class Operations:
    """Single changes of one prefix, by one connection."""

    def __init__(self, connection: Connection, prefix_id: int) -> None:
        self._connection = connection
        self._prefix_id = prefix_id
        self._requests = 0

    async def take(self, count: int) -> list[IPv4Address]:
        self._requests += 1
        ids = [f"request {self._requests}/{n}" for n in range(count)]
        rows = await self._connection.fetch(
            "SELECT address FROM acquire_n($1, $2, $3, 'test')", self._prefix_id, ids, [{}] * count
        )
        return [row["address"] for row in rows]

    async def take_and_release(self) -> None:
        """What callers of single addresses do."""
        [address] = await self.take(1)
        entry = [{"addr": str(address), "request_id": f"release {self._requests}"}]
        outcome = await self._connection.fetchval("SELECT outcome FROM release_entries($1, $2)", self._prefix_id, entry)
        assert outcome == "ok"

    async def take_and_release_as_found(self) -> None:
        """What a release by owner does."""
        [address] = await self.take(1)
        outcome = await self._connection.fetchval(
            "SELECT outcome FROM release_n(ARRAY[1], ARRAY[$1::inet], ARRAY[NULL], ARRAY[NULL], 'test')", address
        )
        assert outcome == "ok"

    async def repeat(self) -> None:
        """A request that was served before."""
        await self.take(1)
        self._requests -= 1
        await self.take(1)


@pytest.mark.parametrize(
    "operation", [Operations.take_and_release, Operations.take_and_release_as_found, Operations.repeat]
)
async def test_an_operation_on_one_address_does_not_look_at_the_others(
    db: Database, operation: Callable[[Operations], Awaitable[None]]
) -> None:
    async with db.connection() as connection:
        prefix_id = await connection.fetchval(_ROOT, ip_network("10.0.0.0/16"))
        operations = Operations(connection, prefix_id)
        await operations.take(FEW)
        for _ in range(12):  # from the sixth time on Postgres may keep a plan for good
            await operation(operations)
        await operations.take(MANY)
        async with connection.transaction():
            before = await connection.fetchval(_READ) or 0
            await operation(operations)
            assert await connection.fetchval(_READ) - before <= LOOKS
