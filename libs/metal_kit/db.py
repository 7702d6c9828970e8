"""A service's Postgres: an asyncpg pool bound to its schema, a connection that is reserved, and one that listens.

Transactions are short, named by their purpose, READ COMMITTED, and never contain a call that leaves the process (see
`metal_kit.guard`). Limits on statements, locks and idle transactions are set on the server's side, because a stuck
transaction holds back the events of every service in the same cluster (see `metal_kit.outbox`).

This is not a query builder and not an ORM: SQL is written by hand in the stores. `jsonb` columns come and go as Python
values; the schema `public` is on the search path for extensions only.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from json.scanner import make_scanner
from typing import TYPE_CHECKING, Any, cast

import asyncpg

from metal_kit.errors import Aborted, InvalidArgument, Problem, Unavailable
from metal_kit.guard import in_transaction
from metal_kit.listen import Listener
from metal_kit.logs import get_logger

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
else:
    Connection = asyncpg.Connection
    Pool = asyncpg.Pool

log = get_logger(__name__)

CONNECT_SECONDS = 10.0
ACQUIRE_SECONDS = 10.0
COMMAND_SECONDS = 30.0
_CLOSE_SECONDS = 10.0
_SCHEMA_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}", re.ASCII)

# What the server itself enforces, should this process be too stuck to do it; and what it plans by.
_SERVER_SETTINGS = {
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "30s",
    "timezone": "UTC",
    "jit": "off",
    # What is asked for again and again is in memory. With the default of 4, for rotating disks, fifty look-ups by key
    # seem dearer than reading a table of ten thousand rows.
    "random_page_cost": "1.1",
}

_UNREACHABLE = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
)
_CONFLICT = (
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    asyncpg.SerializationError,
)


class DatabaseUnreachable(Exception):
    """Postgres cannot be reached or refuses us; the message is one line for the person who starts the service."""


class Database:
    """The pool and the listener of one schema. `await Database.open(...)`, and `close()` it."""

    def __init__(self, pool: Pool, reserve: Pool, listener: Listener, schema: str) -> None:
        self.pool = pool
        self._reserve = reserve
        self.listener = listener
        self.schema = schema

    @classmethod
    async def open(cls, url: str, schema: str, *, min_size: int = 1, max_size: int = 10) -> Database:
        """Connect to `url` with `schema` as the search path; the schema is created by `migrations.migrate`.

        Args:
            min_size: connections that are kept.
            max_size: connections at most, without the listener's and the reserved one; callers beyond it wait up to
                ACQUIRE_SECONDS.

        Raises:
            DatabaseUnreachable: no server, wrong password, no such database.
        """
        checked_schema(schema)
        settings = _SERVER_SETTINGS | {"search_path": f"{schema}, public", "application_name": f"metal-{schema}"}

        async def pool_of(least: int, most: int) -> Pool:
            return await asyncpg.create_pool(
                url,
                min_size=least,
                max_size=most,
                timeout=CONNECT_SECONDS,
                command_timeout=COMMAND_SECONDS,
                server_settings=settings,
                init=_prepare,
                reset=_keep,
            )

        try:
            pool, reserve = await pool_of(min_size, max_size), await pool_of(0, 1)
        except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise unreachable(url, error) from error
        listener = Listener(url, channel_of(schema), server_settings={"application_name": f"metal-{schema}-listen"})
        listener.start()
        return cls(pool, reserve, listener, schema)

    async def close(self) -> None:
        """Close the listener and the pools; connections that are still in use after 10 s are cut."""
        await self.listener.close()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await asyncio.gather(self.pool.close(), self._reserve.close())
        except TimeoutError:
            log.warning("database.close_forced", schema=self.schema)
            self.pool.terminate()
            self._reserve.terminate()

    @asynccontextmanager
    async def transaction(self, *, purpose: str) -> AsyncIterator[Connection]:
        """A transaction; commits at the end of the block, rolls back when it raises.

        `purpose` shows up in errors of the guard. Transactions do not nest: with a bounded pool, nesting deadlocks.

        Raises:
            Unavailable: Postgres is away or all connections are busy. When it goes away during the commit, whether
                the change happened is unknown; a repeated request with its `request_id` finds out.
            Aborted: lost against a concurrent transaction (deadlock, lock time limit).
            InvalidArgument: a text with a NUL character, which Postgres cannot store.
        """
        outer = in_transaction.get()
        if outer:
            raise RuntimeError(f"transaction {purpose!r} opened inside the transaction {outer!r}")
        async with self._acquired(self.pool) as connection:
            in_transaction.set(purpose)
            try:
                async with connection.transaction():
                    yield connection
            finally:
                # Not reset(token): a test's fixture may be set up and torn down in different contexts.
                in_transaction.set("")

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for reads, each statement its own transaction; same errors as `transaction`."""
        async with self._acquired(self.pool) as connection:
            yield connection

    @asynccontextmanager
    async def reserved(self) -> AsyncIterator[Connection]:
        """The one connection that is not of the pool, made when it is first asked for; same errors as `connection`.

        For one loop whose short statements every call waits for: handlers that wait for each other's locks have the
        whole pool at times, and those that have nothing to do with it would wait as well.
        """
        async with self._acquired(self._reserve) as connection:
            yield connection

    @asynccontextmanager
    async def _acquired(self, pool: Pool) -> AsyncIterator[Connection]:
        try:
            connection = await pool.acquire(timeout=ACQUIRE_SECONDS)
        except TimeoutError as error:
            raise Unavailable("DATABASE_BUSY", "all database connections are in use; try again") from error
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            raise _unavailable() from error
        try:
            yield connection
        except (TimeoutError, asyncpg.QueryCanceledError) as error:
            raise Unavailable("DATABASE_SLOW", "the database did not answer in time; try again") from error
        except (asyncpg.CharacterNotInRepertoireError, asyncpg.UntranslatableCharacterError) as error:
            # The one valid string of a contract that Postgres cannot hold, in text or (the second) in jsonb. Which
            # field it was, it does not say.
            raise InvalidArgument("INVALID_TEXT", "a text of the request holds a NUL character") from error
        except _CONFLICT as error:
            raise Aborted("CONCURRENT_CHANGE", "lost against a concurrent change; try again") from error
        except asyncpg.InternalClientError as error:
            # The server hung up at a moment for which asyncpg's state machine has no name. The connection is of no use.
            connection.terminate()
            raise _unavailable() from error
        except _UNREACHABLE as error:
            # An InterfaceError on a living connection is a defect of ours (wrong arguments), not an outage.
            if isinstance(error, asyncpg.InterfaceError) and not _is_dead(connection):
                raise
            raise _unavailable() from error
        finally:
            await pool.release(connection, timeout=_CLOSE_SECONDS)


def checked_schema(schema: str) -> str:
    """`schema` itself. Raises ValueError unless it is a plain lower-case name, since it goes into SQL as it is."""
    if not _SCHEMA_NAME.fullmatch(schema):
        raise ValueError(f"schema {schema!r} must be lower-case letters, digits and _, at most 48")
    return schema


def channel_of(schema: str) -> str:
    """The NOTIFY channel of a schema; the SQL of the triggers builds the same name."""
    return f"metalplane_{schema}"


def unreachable(url: str, error: BaseException) -> DatabaseUnreachable:
    """One line that says which server did not let us in, and why; never the password."""
    where = url.rpartition("@")[2] or url
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DatabaseUnreachable(f"Postgres at {where} cannot be used: {reason}")


def is_outage(error: BaseException) -> bool:
    """Whether the error says that Postgres is away or overloaded, rather than that a statement was wrong."""
    if isinstance(error, Problem):
        return isinstance(error, Unavailable | Aborted)
    return isinstance(error, (*_UNREACHABLE, *_CONFLICT, OSError, TimeoutError))


def _is_dead(connection: Connection) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:  # the pool has taken it back, which it does when the server hangs up
        return True


def _unavailable() -> Unavailable:
    return Unavailable("DATABASE_UNREACHABLE", "the database cannot be reached; try again")


_scan_json: Callable[[str, int], tuple[Any, int]] = make_scanner(cast("Any", json.JSONDecoder()))


async def _prepare(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=_to_json, decoder=_from_json)


def _from_json(text: str) -> Any:
    """What Postgres wrote: one valid document without space around it, so that nothing else is to be looked at.

    json.loads takes more than twice as long for a few labels, and lists read thousands of them.
    """
    value, _ = _scan_json(text, 0)
    return value


async def _keep(_connection: object) -> None:
    """Instead of the pool's `RESET ALL` after each use, which costs a round trip as long as a small query.

    What is left open is rolled back all the same. The price: code here must not change the session (SET without LOCAL,
    session advisory locks, LISTEN, temporary tables).
    """


def _to_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
