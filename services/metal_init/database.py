"""A database role for each service: it owns its schema and cannot read another's.

The services make their schemas themselves (`metal_kit.migrations`); here are only the roles, so that a managed Postgres
works as well as the one in the compose file.
"""

from __future__ import annotations

from collections.abc import Mapping

import asyncpg

CONNECT_SECONDS = 10.0
COMMAND_SECONDS = 30.0


class DatabaseRefused(Exception):
    """Postgres cannot be reached, or does not let us make roles; the message is one line."""


async def make_roles(url: str, passwords: Mapping[str, str]) -> list[str]:
    """Have a role with its password for each name, and no rights on the database for anybody else; the names of the
    roles that are new. Roles that exist get the password again, which repairs one that was changed.

    Raises DatabaseRefused.
    """
    try:
        connection = await asyncpg.connect(url, timeout=CONNECT_SECONDS, command_timeout=COMMAND_SECONDS)
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise DatabaseRefused(f"cannot connect to Postgres: {error or type(error).__name__}") from None
    try:
        return await _make_roles(connection, passwords)
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise DatabaseRefused(f"cannot make the roles: {error or type(error).__name__}") from None
    finally:
        await connection.close(timeout=CONNECT_SECONDS)


async def _make_roles(connection: asyncpg.Connection[asyncpg.Record], passwords: Mapping[str, str]) -> list[str]:
    made = []
    async with connection.transaction():
        # Statements with passwords must not end in the server's log.
        await connection.execute("SET LOCAL log_statement = 'none'; SET LOCAL log_min_error_statement = 'panic'")
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('metal-init roles', 0))")
        database = str(await connection.fetchval("SELECT current_database()"))
        await _run(connection, "REVOKE ALL ON DATABASE %I FROM PUBLIC", database)
        for name, password in sorted(passwords.items()):
            exists = await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", name)
            if not exists:
                await _run(connection, "CREATE ROLE %I", name)
                made.append(name)
            await _run(connection, "ALTER ROLE %I LOGIN PASSWORD %L", name, password)
            # CREATE is for the schema, and for trusted extensions (PostgreSQL, "CREATE EXTENSION").
            await _run(connection, "GRANT CONNECT, CREATE, TEMPORARY ON DATABASE %I TO %I", database, name)
    return made


async def _run(connection: asyncpg.Connection[asyncpg.Record], template: str, *values: str) -> None:
    """Run a statement that takes no parameters, with names and texts quoted by the server itself."""
    places = ", ".join(f"${number}::text" for number in range(2, len(values) + 2))
    await connection.execute(await connection.fetchval(f"SELECT format($1, {places})", template, *values))
