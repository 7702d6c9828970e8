"""Verify finds every kind of corruption, and repair heals what can be rebuilt; and ranges too large to count."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest
from metal_kit.db import Connection, Database


@pytest.fixture
async def connection(db: Database) -> AsyncIterator[Connection]:
    async with db.connection() as one:
        yield one


async def root(connection: Connection, cidr: str, kind: str = "leaf") -> int:
    name = uuid4().hex
    namespace = await connection.fetchval("INSERT INTO namespace (name) VALUES ($1) RETURNING id", name)
    await connection.execute("INSERT INTO network (id, namespace_id, type) VALUES ($1, $2, 'super')", name, namespace)
    prefix_id: int = await connection.fetchval(
        "SELECT prefix_id FROM create_root($1, $2, $3, $4, false, '0', 'test')",
        *(namespace, name, ipaddress.ip_network(cidr), kind),
    )
    return prefix_id


async def acquire(connection: Connection, prefix_id: int, n: int) -> list[str]:
    rows = await connection.fetch(
        "SELECT address FROM acquire_n($1, $2, $3, 'test') ORDER BY ord", prefix_id, [None] * n, [{}] * n
    )
    return [str(row["address"]) for row in rows]


async def findings(connection: Connection, prefix_id: int) -> list[str]:
    return [row[0] for row in await connection.fetch("SELECT * FROM verify_prefix($1)", prefix_id)]


LEAF_CORRUPTIONS = {
    "a free range is missing": "DELETE FROM free_range WHERE prefix_id = $1",
    "a free range reaches into used ones": "UPDATE free_range SET lo = '10.0.0.2' WHERE prefix_id = $1",
    "a free range reaches into reserved ones": "UPDATE free_range SET hi = '10.0.0.63' WHERE prefix_id = $1",
    "a free range lies outside": "INSERT INTO free_range VALUES ($1, '10.0.1.9', '10.0.1.1')",
    "two free ranges are adjacent": """
        WITH cut AS (UPDATE free_range SET lo = '10.0.0.30' WHERE prefix_id = $1)
        INSERT INTO free_range VALUES ($1, '10.0.0.29', '10.0.0.5')""",
    "the counter is too high": "UPDATE prefix SET used = used + 1 WHERE id = $1",
    "the counter is too low": "UPDATE prefix SET used = used - 1 WHERE id = $1",
    "the reserved counter is wrong": "UPDATE prefix SET reserved = 0 WHERE id = $1",
    "the quarantine counter is wrong": "UPDATE prefix SET quarantined = 1 WHERE id = $1",
    "an address vanished": "DELETE FROM ip WHERE prefix_id = $1 AND addr = '10.0.0.2'",
    "free space of the other kind": "INSERT INTO free_block VALUES ($1, 26, '10.0.0.0/26')",
}


@pytest.mark.parametrize("corruption", LEAF_CORRUPTIONS.values(), ids=LEAF_CORRUPTIONS.keys())
async def test_a_corrupt_leaf_is_found_and_repaired(connection: Connection, corruption: str) -> None:
    prefix_id = await root(connection, "10.0.0.0/26")
    await acquire(connection, prefix_id, 4)
    assert await findings(connection, prefix_id) == []
    await connection.execute(corruption, prefix_id)
    assert await findings(connection, prefix_id) != []
    await connection.execute("SELECT repair_prefix($1)", prefix_id)
    assert await findings(connection, prefix_id) == []


CONTAINER_CORRUPTIONS = {
    "a free block is missing": "DELETE FROM free_block WHERE prefix_id = $1 AND len = 25",
    "a free block covers a child": "INSERT INTO free_block VALUES ($1, 26, '10.0.0.0/26')",
    "two buddies are free": """
        WITH gone AS (DELETE FROM free_block WHERE prefix_id = $1 AND len = 25)
        INSERT INTO free_block VALUES ($1, 26, '10.0.0.128/26'), ($1, 26, '10.0.0.192/26')""",
    "a free block lies outside": "INSERT INTO free_block VALUES ($1, 26, '10.0.9.0/26')",
    "the child counter is wrong": "UPDATE prefix SET children = 7 WHERE id = $1",
    "the size counter is wrong": "UPDATE prefix SET child_used = 7 WHERE id = $1",
}


@pytest.mark.parametrize("corruption", CONTAINER_CORRUPTIONS.values(), ids=CONTAINER_CORRUPTIONS.keys())
async def test_a_corrupt_container_is_found_and_repaired(connection: Connection, corruption: str) -> None:
    prefix_id = await root(connection, "10.0.0.0/24", "container")
    network = await connection.fetchval("SELECT network_id FROM prefix WHERE id = $1", prefix_id)
    await connection.execute("SELECT acquire_children($1, $2)", prefix_id, [{"length": 26, "network": network}])
    assert await findings(connection, prefix_id) == []
    await connection.execute(corruption, prefix_id)
    assert await findings(connection, prefix_id) != []
    await connection.execute("SELECT repair_prefix($1)", prefix_id)
    assert await findings(connection, prefix_id) == []


async def test_the_constraints_alone_refuse_an_overlap_and_a_second_use(connection: Connection) -> None:
    prefix_id = await root(connection, "10.0.0.0/24", "container")
    insert = """INSERT INTO prefix (namespace_id, network_id, parent_id, cidr, kind)
                SELECT namespace_id, network_id, {}, $2, 'leaf' FROM prefix WHERE id = $1"""
    with pytest.raises(asyncpg.ExclusionViolationError):
        await connection.execute(insert.format("NULL"), prefix_id, ipaddress.ip_network("10.0.0.128/25"))
    await connection.execute(insert.format("id"), prefix_id, ipaddress.ip_network("10.0.0.128/25"))
    with pytest.raises(asyncpg.ExclusionViolationError):
        await connection.execute(insert.format("id"), prefix_id, ipaddress.ip_network("10.0.0.192/26"))
    leaf = await root(connection, "10.0.0.0/24")
    await acquire(connection, leaf, 1)
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute("INSERT INTO ip SELECT namespace_id, '10.0.0.1', id FROM prefix WHERE id = $1", leaf)
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute(
            "INSERT INTO ip SELECT namespace_id, '10.0.0.9/24', id FROM prefix WHERE id = $1", leaf
        )


async def test_an_address_of_one_namespace_is_free_in_another(connection: Connection) -> None:
    one, two = await root(connection, "10.0.0.0/30"), await root(connection, "10.0.0.0/30")
    assert await acquire(connection, one, 2) == ["10.0.0.1", "10.0.0.2"]
    assert await acquire(connection, two, 2) == ["10.0.0.1", "10.0.0.2"]


@pytest.mark.parametrize("cidr", ["2001:db8::/32", "2001:db8::/64", "::/0", "8000::/1", "0.0.0.0/0"])
async def test_ranges_too_large_to_count_work(connection: Connection, cidr: str) -> None:
    network = ipaddress.ip_network(cidr)
    prefix_id = await root(connection, cidr)
    first = int(network.network_address)
    got = await acquire(connection, prefix_id, 3)
    assert got == [str(type(network.network_address)(first + n)) for n in (1, 2, 3)]
    middle = type(network.network_address)(first + network.num_addresses // 2)
    row = await connection.fetchrow(
        "SELECT * FROM acquire_specific($1, $2, NULL, '{}', '{}', 'test')", prefix_id, middle
    )
    assert row is not None
    assert row["outcome"] == "ok"
    got += await acquire(connection, prefix_id, 600)
    assert len(set(got)) == 603
    assert await findings(connection, prefix_id) == []
    namespace = await connection.fetchval("SELECT namespace_id FROM prefix WHERE id = $1", prefix_id)
    addresses = [ipaddress.ip_address(a) for a in [*got, str(middle)]]
    n = len(addresses)
    await connection.execute(
        "SELECT release_n($1, $2, $3, $4, 'test')", [namespace] * n, addresses, [None] * n, [None] * n
    )
    assert await findings(connection, prefix_id) == []
    assert await connection.fetchval("SELECT count(*) FROM free_range WHERE prefix_id = $1", prefix_id) == 1


async def test_thousands_of_cycles_leave_no_rows_behind(connection: Connection) -> None:
    prefix_id = await root(connection, "10.0.0.0/24")
    await connection.execute(
        """DO $$
           DECLARE p bigint := (SELECT max(id) FROM prefix); ns int := (SELECT namespace_id FROM prefix WHERE id = p);
                   a inet;
           BEGIN
               FOR i IN 1..3000 LOOP
                   SELECT address INTO a FROM acquire_n(p, ARRAY[NULL], '[{}]', 'test');
                   COMMIT;
                   PERFORM release_n(ARRAY[ns], ARRAY[a], ARRAY[NULL], ARRAY[NULL], 'test');
               END LOOP;
           END $$"""
    )
    for table, rows in (("ip", 0), ("free_range", 1), ("spent_request", 0)):
        assert await connection.fetchval(f"SELECT count(*) FROM {table}") == rows
    assert await findings(connection, prefix_id) == []


async def test_the_history_tells_who_had_an_address_when(connection: Connection) -> None:
    prefix_id = await root(connection, "10.0.0.0/30")
    namespace = await connection.fetchval("SELECT namespace_id FROM prefix WHERE id = $1", prefix_id)
    for owner in ("first", "second"):
        await connection.fetch(
            "SELECT acquire_n($1, ARRAY[NULL], $2, 'somebody')", prefix_id, [{"owner_kind": "other", "owner_id": owner}]
        )
        await connection.execute(
            "SELECT release_n(ARRAY[$1::int], ARRAY['10.0.0.1'::inet], ARRAY['other'], ARRAY[$2], 'somebody')",
            namespace, owner,
        )  # fmt: skip
    rows = await connection.fetch(
        "SELECT operation, owner_id FROM history WHERE namespace_id = $1 AND object = '10.0.0.1' ORDER BY seq",
        namespace,
    )
    assert [tuple(row) for row in rows] == [
        ("acquire", "first"), ("release", "first"), ("acquire", "second"), ("release", "second"),
    ]  # fmt: skip


async def test_a_retry_that_waited_behind_its_twin_gets_the_twin_s_address(db: Database) -> None:
    call = "SELECT outcome, address FROM acquire_n($1, ARRAY['twin'], '[{}]', 'test')"
    async with db.pool.acquire() as one, db.pool.acquire() as two:
        prefix_id = await root(one, "10.0.0.0/24")
        transaction = one.transaction()
        await transaction.start()
        first = await one.fetchrow(call, prefix_id)
        waiting = asyncio.create_task(two.fetchrow(call, prefix_id))
        blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = $1"
        while not await one.fetchval(blocked, two.get_server_pid()):  # noqa: ASYNC110 - the server tells no other way
            await asyncio.sleep(0.01)
        await transaction.commit()
        assert await waiting == first


async def test_a_call_that_waited_sees_what_the_one_before_it_took(db: Database) -> None:
    call = "SELECT address FROM acquire_n($1, ARRAY[NULL], '[{}]', 'test')"
    async with db.pool.acquire() as one, db.pool.acquire() as two:
        prefix_id = await root(one, "10.0.0.0/30")
        transaction = one.transaction()
        await transaction.start()
        assert str(await one.fetchval(call, prefix_id)) == "10.0.0.1"
        waiting = asyncio.create_task(two.fetchval(call, prefix_id))
        blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = $1"
        while not await one.fetchval(blocked, two.get_server_pid()):  # noqa: ASYNC110 - the server tells no other way
            await asyncio.sleep(0.01)
        await transaction.rollback()  # What was not committed was not taken.
        assert str(await waiting) == "10.0.0.1"
