"""The migration runner against a real Postgres: concurrent starts, newer schemas, locks, failures in the middle."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from metal_kit.db import Database, DatabaseUnreachable
from metal_kit.migrations import MigrationError, SchemaTooNew, migrate
from metal_kit.migrations.runner import read_steps

Eventually = Callable[..., Awaitable[None]]
PACKAGE = "migrated_package"


class Package:
    """A package on the import path whose migrations the test writes."""

    def __init__(self, root: Path) -> None:
        self.folder = root / PACKAGE / "migrations"
        self.folder.mkdir(parents=True)
        (root / PACKAGE / "__init__.py").write_text("")

    def write(self, name: str, sql: str) -> None:
        (self.folder / name).write_text(sql)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    monkeypatch.syspath_prepend(tmp_path)
    yield Package(tmp_path)
    sys.modules.pop(PACKAGE, None)


@asynccontextmanager
async def connected(url: str, schema: str = "kit") -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(url, timeout=10, server_settings={"search_path": schema})
    try:
        yield connection
    finally:
        await connection.close()


async def applied(url: str) -> list[str]:
    async with connected(url) as connection:
        rows = await connection.fetch("SELECT name FROM schema_version WHERE component = $1 ORDER BY number", PACKAGE)
    return [row["name"] for row in rows]


async def test_steps_are_applied_once_and_in_order(database_url: str, package: Package) -> None:
    package.write("0001_thing.sql", "CREATE TABLE thing (n int); INSERT INTO thing VALUES (1);")
    await migrate(database_url, "kit", PACKAGE)
    package.write("0002_more.sql", "INSERT INTO thing SELECT n + 1 FROM thing;")
    await migrate(database_url, "kit", PACKAGE)
    await migrate(database_url, "kit", PACKAGE)
    async with connected(database_url) as connection:
        assert [row["n"] for row in await connection.fetch("SELECT n FROM thing ORDER BY n")] == [1, 2]
    assert await applied(database_url) == ["0001_thing.sql", "0002_more.sql"]


async def test_many_that_start_at_once_apply_each_step_once(database_url: str, package: Package) -> None:
    package.write("0001_thing.sql", "CREATE TABLE thing (n int); INSERT INTO thing VALUES (1); SELECT pg_sleep(0.2);")
    package.write("0002_more.sql", "INSERT INTO thing VALUES (2);")
    await asyncio.gather(*(migrate(database_url, "kit", PACKAGE) for _ in range(5)))
    async with connected(database_url) as connection:
        assert [row["n"] for row in await connection.fetch("SELECT n FROM thing ORDER BY n")] == [1, 2]


async def test_two_services_in_one_database_do_not_see_each_other(database_url: str, package: Package) -> None:
    package.write("0001_thing.sql", "CREATE TABLE thing (n int);")
    await migrate(database_url, "ipam", PACKAGE)
    await migrate(database_url, "fabric", PACKAGE)
    async with connected(database_url) as connection:
        rows = await connection.fetch("SELECT schemaname FROM pg_tables WHERE tablename = 'thing' ORDER BY 1")
    assert [row["schemaname"] for row in rows] == ["fabric", "ipam"]


async def test_a_schema_of_a_newer_release_is_refused_and_left_alone(database_url: str, package: Package) -> None:
    package.write("0001_thing.sql", "CREATE TABLE thing (n int);")
    package.write("0002_future.sql", "CREATE TABLE future (n int);")
    await migrate(database_url, "kit", PACKAGE)
    (package.folder / "0002_future.sql").unlink()
    with pytest.raises(SchemaTooNew, match=r"0002_future.sql, which this release does not know"):
        await migrate(database_url, "kit", PACKAGE)
    assert await applied(database_url) == ["0001_thing.sql", "0002_future.sql"]


async def test_a_step_that_was_edited_afterwards_is_refused(database_url: str, package: Package) -> None:
    package.write("0001_thing.sql", "CREATE TABLE thing (n int);")
    await migrate(database_url, "kit", PACKAGE)
    package.write("0001_thing.sql", "CREATE TABLE thing (n bigint);")
    with pytest.raises(MigrationError, match="was edited after it had been applied"):
        await migrate(database_url, "kit", PACKAGE)


async def test_a_step_that_fails_leaves_nothing_of_itself_and_the_earlier_ones(
    database_url: str, package: Package
) -> None:
    package.write("0001_thing.sql", "CREATE TABLE thing (n int);")
    package.write("0002_broken.sql", "CREATE TABLE half (n int); SELECT 1 / 0;")
    with pytest.raises(MigrationError, match=r"0002_broken.sql failed: division by zero"):
        await migrate(database_url, "kit", PACKAGE)
    assert await applied(database_url) == ["0001_thing.sql"]
    async with connected(database_url) as connection:
        assert await connection.fetchval("SELECT to_regclass('kit.half')") is None
    package.write("0002_broken.sql", "CREATE TABLE half (n int);")
    await migrate(database_url, "kit", PACKAGE)
    assert await applied(database_url) == ["0001_thing.sql", "0002_broken.sql"]


async def test_a_step_that_cannot_get_its_lock_gives_up_and_lets_others_work(
    database_url: str, package: Package
) -> None:
    package.write("0001_thing.sql", "CREATE TABLE thing (n int);")
    await migrate(database_url, "kit", PACKAGE)
    package.write("0002_alter.sql", "ALTER TABLE thing ADD COLUMN m int;")
    async with connected(database_url) as holder, connected(database_url) as other:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("INSERT INTO thing VALUES (1)")
        with pytest.raises(MigrationError, match=r"0002_alter.sql did not get its locks"):
            await migrate(database_url, "kit", PACKAGE, lock_timeout=timedelta(milliseconds=50))
        # An ALTER that went on waiting would stand in the way of everybody behind it.
        await other.execute("INSERT INTO thing VALUES (2)", timeout=5)
        await transaction.rollback()
    await migrate(database_url, "kit", PACKAGE)
    assert await applied(database_url) == ["0001_thing.sql", "0002_alter.sql"]


async def test_a_lock_that_is_let_go_in_time_is_waited_for(
    database_url: str, package: Package, eventually: Eventually
) -> None:
    package.write("0001_thing.sql", "CREATE TABLE thing (n int);")
    await migrate(database_url, "kit", PACKAGE)
    package.write("0002_alter.sql", "ALTER TABLE thing ADD COLUMN m int;")
    async with connected(database_url) as holder:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("INSERT INTO thing (n) VALUES (1)")
        migrating = asyncio.create_task(migrate(database_url, "kit", PACKAGE, lock_timeout=timedelta(milliseconds=100)))
        await eventually(lambda: _waits_for_lock(database_url))
        await transaction.commit()
        await migrating


async def _waits_for_lock(url: str) -> bool:
    async with connected(url) as connection:
        rows = await connection.fetch(
            "SELECT wait_event_type FROM pg_stat_activity WHERE application_name LIKE 'migrate-%'"
        )
    return any(row["wait_event_type"] == "Lock" for row in rows)


async def test_a_statement_that_takes_too_long_is_ended(database_url: str, package: Package) -> None:
    package.write("0001_slow.sql", "SELECT pg_sleep(60);")
    with pytest.raises(MigrationError, match=r"0001_slow.sql failed: canceling statement due to statement timeout"):
        await migrate(database_url, "kit", PACKAGE, statement_timeout=timedelta(milliseconds=100))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0002_first.sql"], "should have the number 0001"),
        (["0001_a.sql", "0003_c.sql"], "should have the number 0002"),
        (["0001_a.sql", "0001_b.sql"], "should have the number 0002"),
        (["1_a.sql"], "must be named NNNN_lower_case.sql"),
        (["0001_A.sql"], "must be named NNNN_lower_case.sql"),
    ],
)
def test_gaps_and_misnamed_files_are_refused(package: Package, names: list[str], message: str) -> None:
    for name in names:
        package.write(name, "SELECT 1;")
    with pytest.raises(MigrationError, match=message):
        read_steps(PACKAGE)


async def test_an_unreachable_server_is_one_clear_line_without_the_password(free_tcp_port: int) -> None:
    url = f"postgresql://postgres:swordfish@127.0.0.1:{free_tcp_port}/db"
    for attempt in (migrate(url, "kit", ""), Database.open(url, "kit")):
        with pytest.raises(DatabaseUnreachable) as caught:
            await attempt
        text = str(caught.value)
        assert text.startswith(f"Postgres at 127.0.0.1:{free_tcp_port}/db cannot be used: ")
        assert "swordfish" not in text
        assert "\n" not in text


async def test_a_missing_database_is_named(database_url: str) -> None:
    with pytest.raises(DatabaseUnreachable, match='database "never_was" does not exist'):
        await migrate(database_url.rpartition("/")[0] + "/never_was", "kit", "")


@pytest.mark.parametrize("schema", ["", "Kit", "1kit", "kit; DROP", "k" * 49, 'k"'])
async def test_a_schema_name_that_is_no_plain_name_is_refused(schema: str, database_url: str) -> None:
    with pytest.raises((ValueError, DatabaseUnreachable)) as caught:
        await migrate(database_url, schema, "")
    assert "lower-case" in str(caught.value)


@pytest.fixture
def free_tcp_port() -> Any:
    from metal_lab.servers.ports import free_port

    return free_port()
