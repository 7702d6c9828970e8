"""Bring a schema up to date: the kit's steps first, then the service's.

Several replicas may start at once: a session advisory lock lets one of them work while the others wait, and then find
nothing to do. What was applied is kept in `schema_version`, with a checksum, because a step that was edited after it
ran means that two installations with the same version number differ.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.resources
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import asyncpg

from metal_kit.db import CONNECT_SECONDS, Connection, checked_schema, unreachable
from metal_kit.logs import get_logger

log = get_logger(__name__)

KIT = "metal_kit"
LOCK_TIMEOUT = timedelta(seconds=4)
STATEMENT_TIMEOUT = timedelta(seconds=60)
_ATTEMPTS = 5
_LOCK_WAIT = timedelta(seconds=120)
_LOCK_POLL_SECONDS = 0.1
_FILE = re.compile(r"(\d{4})_[a-z0-9_]+\.sql", re.ASCII)


class MigrationError(Exception):
    """The schema could not be brought up to date; the message says which step and why."""


class SchemaTooNew(MigrationError):
    """The schema was made by a newer release than this one."""


@dataclass(frozen=True)
class Step:
    """One file of a package's `migrations` folder."""

    component: str
    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the statements, in hex."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


async def migrate(
    url: str,
    schema: str,
    package: str,
    *,
    lock_timeout: timedelta = LOCK_TIMEOUT,
    statement_timeout: timedelta = STATEMENT_TIMEOUT,
) -> None:
    """Create `schema` if needed and apply every step that is missing; `package` may be empty (the kit's steps only).

    Raises:
        DatabaseUnreachable: no server, wrong password, no such database.
        SchemaTooNew: the schema has steps that this release does not know; nothing was changed.
        MigrationError: a step failed or could not get its locks; the steps before it are applied.
    """
    steps = [*read_steps(KIT), *(read_steps(package) if package else [])]
    try:
        connection = await asyncpg.connect(
            url,
            timeout=CONNECT_SECONDS,
            command_timeout=statement_timeout.total_seconds() + 10,
            server_settings={
                "search_path": f"{checked_schema(schema)}, public",
                "application_name": f"migrate-{schema}",
            },
        )
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise unreachable(url, error) from error
    try:
        await _take_lock(connection, schema)
        await _create_schema(connection, schema)
        for step in await _missing(connection, schema, steps):
            await _apply(connection, schema, step, lock_timeout, statement_timeout)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        raise MigrationError(f"schema {schema}: {error}") from error
    finally:
        connection.terminate()  # and with it the advisory lock goes


def read_steps(package: str) -> list[Step]:
    """The steps of a package, in order. Raises MigrationError for a gap, a double number or a misnamed file."""
    folder = importlib.resources.files(package) / "migrations"
    steps: list[Step] = []
    if not folder.is_dir():
        return steps
    for entry in sorted(folder.iterdir(), key=lambda each: each.name):
        if not entry.name.endswith(".sql"):
            continue
        match = _FILE.fullmatch(entry.name)
        if match is None:
            raise MigrationError(f"{package}: {entry.name} must be named NNNN_lower_case.sql")
        if int(match[1]) != len(steps) + 1:
            raise MigrationError(f"{package}: {entry.name} should have the number {len(steps) + 1:04}")
        steps.append(Step(package, int(match[1]), entry.name, entry.read_text()))
    return steps


async def _take_lock(connection: Connection, schema: str) -> None:
    # Asked for again and again instead of waited for: a waiting statement would be cut by the statement limit, and
    # holds a snapshot that blocks CREATE INDEX CONCURRENTLY of the one who works.
    limit = asyncio.get_running_loop().time() + _LOCK_WAIT.total_seconds()
    while not await connection.fetchval("SELECT pg_try_advisory_lock(hashtextextended('migrate ' || $1, 0))", schema):
        if asyncio.get_running_loop().time() > limit:
            raise MigrationError(f"schema {schema}: another process has been migrating for {_LOCK_WAIT}; look at it")
        await asyncio.sleep(_LOCK_POLL_SECONDS)


async def _create_schema(connection: Connection, schema: str) -> None:
    exists = await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", f"{schema}.schema_version")
    if exists:
        return
    async with connection.transaction():
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        await connection.execute(
            """
            CREATE TABLE IF NOT EXISTS schema_version (
                component text NOT NULL,
                number int NOT NULL,
                name text NOT NULL,
                checksum text NOT NULL,
                applied_at timestamptz NOT NULL DEFAULT now(),
                PRIMARY KEY (component, number)
            )
            """
        )


async def _missing(connection: Connection, schema: str, steps: Sequence[Step]) -> list[Step]:
    rows = await connection.fetch("SELECT component, number, name, checksum FROM schema_version")
    applied = {(row["component"], row["number"]): (row["name"], row["checksum"]) for row in rows}
    known = {(step.component, step.number): step for step in steps}
    for key, (name, checksum) in sorted(applied.items()):
        step = known.get(key)
        if step is None:
            raise SchemaTooNew(
                f"schema {schema} has step {key[0]}/{name}, which this release does not know: "
                "start the release that made it, or restore a backup"
            )
        if step.checksum != checksum:
            raise MigrationError(
                f"schema {schema}: {key[0]}/{step.name} was edited after it had been applied; "
                "put it back and make the change in a new step"
            )
    return [step for step in steps if (step.component, step.number) not in applied]


async def _apply(
    connection: Connection, schema: str, step: Step, lock_timeout: timedelta, statement_timeout: timedelta
) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {_milliseconds(lock_timeout)}")
                await connection.execute(f"SET LOCAL statement_timeout = {_milliseconds(statement_timeout)}")
                await connection.execute(step.sql)
                await connection.execute(
                    "INSERT INTO schema_version (component, number, name, checksum) VALUES ($1, $2, $3, $4)",
                    *(step.component, step.number, step.name, step.checksum),
                )
        except asyncpg.LockNotAvailableError as error:
            # The running release holds the table; its transactions are short, so the next attempt may get in.
            if attempt == _ATTEMPTS:
                raise MigrationError(
                    f"schema {schema}: {step.component}/{step.name} did not get its locks in {attempt} attempts of "
                    f"{lock_timeout.total_seconds():g} s; end the transaction that holds them (pg_stat_activity)"
                ) from error
            await asyncio.sleep(lock_timeout.total_seconds() * random.uniform(0.1, 0.5))
        except asyncpg.PostgresError as error:
            raise MigrationError(f"schema {schema}: {step.component}/{step.name} failed: {error}") from error
        else:
            log.info("migration.applied", schema=schema, component=step.component, step=step.name)
            return


def _milliseconds(span: timedelta) -> int:
    return int(span.total_seconds() * 1000)
