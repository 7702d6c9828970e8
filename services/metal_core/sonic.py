"""SONiC's databases as the agent uses them: rows of CONFIG_DB in and out, and what is known about ports.

Keys are found by SCAN, never by KEYS, which would stop Redis and with it the whole switch for the time of the search.
Rows are written in transactions. Whatever else lives in these databases is read past: other types than hashes and bytes
that are not text do no harm. This module decides nothing about what ought to be there; what the hardware has followed
is in `facts`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from metal_core.configdb import PLACEHOLDER, READ_TABLES, table_of
from metal_core.databases import Location
from metal_core.desired import Desired, Fec

# Seconds until a command is given up. Redis on a Unix socket answers in microseconds unless the switch is in trouble.
COMMAND_LIMIT = 5.0
_SCAN_COUNT = 1000
Hash = dict[str, str]


class SonicUnavailable(Exception):
    """Redis did not answer; nothing is known about whether the last write took place."""


class Sonic:
    """Clients of the databases; one instance a process, closed by `close`. Methods raise SonicUnavailable."""

    def __init__(self, locations: Mapping[str, Location], password: str = "") -> None:
        self.locations = dict(locations)
        self._clients = {name: _client(location, password) for name, location in locations.items()}

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()

    async def config(self, tables: Collection[str] = READ_TABLES) -> dict[str, Hash]:
        """All rows of `tables` in CONFIG_DB, keyed `TABLE|key`, without SONiC's placeholder for empty rows."""
        async with self.database("CONFIG_DB") as db:
            rows = await hashes(db, [key for key in await scan(db, "*") if table_of(key) in tables])
        return {key: {name: value for name, value in row.items() if name != "NULL"} for key, row in rows.items()}

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete rows of CONFIG_DB in one transaction; a missing row is no error."""
        async with self.database("CONFIG_DB") as db, db.pipeline(transaction=True) as batch:
            for key in keys:
                batch.delete(key)
            await batch.execute()

    async def write(self, rows: Mapping[str, Mapping[str, str]], drop: Mapping[str, Collection[str]]) -> None:
        """Set fields of rows and drop some in one transaction; a row without fields gets SONiC's placeholder."""
        async with self.database("CONFIG_DB") as db, db.pipeline(transaction=True) as batch:
            for key, row in rows.items():
                # Nothing to set but something to drop: a row that has other fields than the agent's.
                for name, value in (row or ({} if key in drop else PLACEHOLDER)).items():
                    batch.hset(key, name, value)
                gone = [*drop.get(key, ()), *(PLACEHOLDER if row else ())]
                if gone:
                    batch.hdel(key, *gone)
            await batch.execute()

    async def abilities(self, desired: Desired) -> dict[str, Hash]:
        """Rows of STATE_DB's PORT_TABLE, which say what a port can do, by port of which something is wanted."""
        ports = [port.name for port in desired.ports if port.speed or port.fec is not Fec.KEEP]
        return await self.rows("STATE_DB", "PORT_TABLE", ports) if ports else {}

    async def port_init_done(self) -> bool:
        """Whether SONiC has created its ports (APPL_DB PORT_TABLE:PortInitDone); before that rows may be lost."""
        async with self.database("APPL_DB") as db:
            return bool(await db.exists(self.key("APPL_DB", "PORT_TABLE", "PortInitDone")))

    async def oper_states(self, ports: Iterable[str]) -> dict[str, str]:
        """`oper_status` by port from APPL_DB's PORT_TABLE; ports without one are left out."""
        rows = await self.rows("APPL_DB", "PORT_TABLE", ports)
        return {name: row["oper_status"] for name, row in rows.items() if "oper_status" in row}

    async def lldp_neighbours(self, ports: Iterable[str]) -> dict[str, Hash]:
        """Rows of APPL_DB's LLDP_ENTRY_TABLE by port: lldp_rem_chassis_id, lldp_rem_sys_name, …"""
        return await self.rows("APPL_DB", "LLDP_ENTRY_TABLE", ports)

    def key(self, database: str, *parts: str) -> str:
        """The key of an object in `database`."""
        return self.locations[database].separator.join(parts)

    def client(self, database: str) -> Redis:
        """The client of one database, whose own exceptions its user has to expect."""
        return self._clients[database]

    @asynccontextmanager
    async def database(self, name: str) -> AsyncIterator[Redis]:
        """The client of one database; failures of Redis become SonicUnavailable."""
        try:
            async with asyncio.timeout(4 * COMMAND_LIMIT):
                yield self._clients[name]
        except (RedisError, OSError, TimeoutError) as error:
            # The client library sometimes turns a cancellation of ours into a timeout of its own.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise asyncio.CancelledError from error
            raise SonicUnavailable(f"{name}: {error or type(error).__name__}") from error

    async def rows(self, database: str, table: str, names: Iterable[str]) -> dict[str, Hash]:
        """The rows of a table in a database by name; those that are missing are left out."""
        keys = {self.key(database, table, name): name for name in names}
        async with self.database(database) as db:
            return {keys[key]: row for key, row in (await hashes(db, keys)).items()}


async def scan(db: Redis, pattern: str) -> list[str]:
    """All keys that match and hold a hash, sorted."""
    # SCAN may return a key more than once while the database changes.
    return sorted({key async for key in db.scan_iter(match=pattern, count=_SCAN_COUNT, _type="hash")})


async def hashes(db: Redis, keys: Collection[str]) -> dict[str, Hash]:
    """The hashes at `keys` in one round trip; those that are missing or of another type are left out.

    Whatever else Redis refuses is raised: a busy or loading server would otherwise look like one without rows, and a
    wait for an object to go would end at once.
    """
    async with db.pipeline(transaction=False) as batch:
        for key in keys:
            batch.hgetall(key)
        values = await batch.execute(raise_on_error=False)
    for value in values:
        if isinstance(value, Exception) and not str(value).startswith("WRONGTYPE"):
            raise value
    return {key: row for key, row in zip(keys, values, strict=True) if row and isinstance(row, dict)}


def _client(location: Location, password: str) -> Redis:
    return Redis(
        unix_socket_path=location.socket,
        db=location.number,
        password=password or None,
        decode_responses=True,
        # A key that is not UTF-8 is somebody's mistake, but not a reason to stop reading.
        encoding_errors="surrogateescape",
        socket_timeout=COMMAND_LIMIT,
        socket_connect_timeout=COMMAND_LIMIT,
        # The caller retries with the state re-read; repeating a write blindly is not for the client library.
        retry=Retry(NoBackoff(), 0),
    )
