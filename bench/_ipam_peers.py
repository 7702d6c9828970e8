"""How two others do it, on the same Postgres: enough of their ways to compare the cost, and no more.

`Documents` is an emulation of the layout that the field's standard library has: one JSON document a prefix with all its
addresses, read, searched from the first address on, and written back whole under a version check. `NetBox` is its
available-IP scan as SQL: the used addresses are rows, and the first gap is looked for under one advisory lock for all.
Neither serves gRPC here, keeps owners or history, or answers a retry: what is compared is the way to a free address.
"""

from __future__ import annotations

import ipaddress
import json
import time
from dataclasses import dataclass

import asyncpg
from _ipam_plane import Bench, Cpu

_SCHEMA = """
    CREATE SCHEMA IF NOT EXISTS peer;
    CREATE TABLE IF NOT EXISTS peer.prefixes (cidr text PRIMARY KEY, prefix jsonb NOT NULL);
    CREATE INDEX IF NOT EXISTS prefixes_document ON peer.prefixes USING gin (prefix);
    CREATE TABLE IF NOT EXISTS peer.address (prefix integer, addr inet, PRIMARY KEY (prefix, addr));
"""
_GAP = """
    SELECT a.addr + 1 FROM peer.address a
    WHERE a.prefix = 1 AND NOT EXISTS (SELECT FROM peer.address b WHERE b.prefix = 1 AND b.addr = a.addr + 1)
    ORDER BY a.addr LIMIT 1
"""


@dataclass(frozen=True)
class Figures:
    """Of pairs of an acquire and a release: CPU in µs an operation, the client's included, and how long one took."""

    cpu_each: float
    samples: list[float]  # milliseconds an operation


async def documents(bench: Bench, used: int, pairs: int) -> Figures:
    """The document layout with so many of a /16 used."""
    network = ipaddress.ip_network("10.0.0.0/16")
    async with bench.database.acquire() as connection:
        await connection.execute(_SCHEMA)
        ips = {str(network[number]): True for number in range(used)}
        await connection.execute("DELETE FROM peer.prefixes")
        document = json.dumps({"Version": 1, "IPs": ips})
        await connection.execute("INSERT INTO peer.prefixes VALUES ($1, $2)", str(network), document)

        async def change(address: str | None) -> str:
            row = await connection.fetchval("SELECT prefix FROM peer.prefixes WHERE cidr = $1", str(network))
            document = json.loads(row)
            version, taken = document["Version"], document["IPs"]
            if address is None:
                address = next(text for host in network if (text := str(host)) not in taken)
                taken[address] = True
            else:
                del taken[address]
            document["Version"] = version + 1
            async with connection.transaction():
                await connection.execute(
                    "SELECT FROM peer.prefixes WHERE cidr = $1 AND prefix @> jsonb_build_object('Version', $2::int)"
                    " FOR UPDATE",
                    *(str(network), version),
                )
                await connection.execute(
                    "UPDATE peer.prefixes SET prefix = $3 WHERE cidr = $1 AND (prefix ->> 'Version')::int = $2",
                    *(str(network), version, json.dumps(document)),
                )
            return address

        async def pair(samples: list[float]) -> None:
            address = await _timed(samples, lambda: change(None))
            await _timed(samples, lambda: change(address))

        return await _measure(bench, pair, pairs)


async def netbox(bench: Bench, used: int, pairs: int) -> Figures:
    """The scan with so many of a /16 used; the gap is where the used ones end."""
    async with bench.database.acquire() as connection:
        await connection.execute(_SCHEMA)
        await connection.execute("TRUNCATE peer.address")
        await connection.execute(
            "INSERT INTO peer.address SELECT 1, inet '10.0.0.0' + n FROM generate_series(0, $1::int) AS n", used
        )
        await connection.execute("ANALYZE peer.address")

        async def acquire() -> str:
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock(1)")
                address = await connection.fetchval(_GAP)
                await connection.execute("INSERT INTO peer.address VALUES (1, $1)", address)
            return str(address)

        async def release(address: str) -> str:
            await connection.execute("DELETE FROM peer.address WHERE prefix = 1 AND addr = $1", address)
            return address

        async def pair(samples: list[float]) -> None:
            address = await _timed(samples, acquire)
            await _timed(samples, lambda: release(address))

        return await _measure(bench, pair, pairs)


async def ours(bench: Bench, prefix_id: int, pairs: int) -> Figures:
    """The same without gRPC: our SQL functions, one address a call, from this process."""
    async with bench.database.acquire() as connection:
        await connection.execute("SET search_path TO ipam, public")

        async def acquire() -> str:
            return str(
                await connection.fetchval("SELECT address FROM acquire_n($1, $2, '[{}]', '')", prefix_id, [None])
            )

        async def release(address: str) -> str:
            entry = json.dumps([{"addr": address}])
            outcome = await connection.fetchval("SELECT outcome FROM release_entries($1, $2)", prefix_id, entry)
            if outcome != "ok":
                raise RuntimeError(f"{address} was not released: {outcome}")
            return address

        async def pair(samples: list[float]) -> None:
            address = await _timed(samples, acquire)
            await _timed(samples, lambda: release(address))

        try:
            return await _measure(bench, pair, pairs)
        finally:
            await connection.execute("RESET search_path")


async def _timed(samples: list[float], work: object) -> str:
    began = time.perf_counter()
    result: str = await work()  # type: ignore[operator]
    samples.append((time.perf_counter() - began) * 1000)
    return result


async def _measure(bench: Bench, pair: object, pairs: int) -> Figures:
    await pair([])  # type: ignore[operator]
    samples: list[float] = []
    before = bench.cpu()
    for _ in range(pairs):
        await pair(samples)  # type: ignore[operator]
    spent: Cpu = bench.cpu() - before
    return Figures((spent.client + spent.postgres) * 1e6 / (2 * pairs), samples)


__all__ = ["Figures", "asyncpg", "documents", "netbox", "ours"]
