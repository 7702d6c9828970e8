"""A database with the kit's tables, for tests of the kit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from metal_kit.db import Database

SCHEMA = "kit"


@pytest.fixture
async def kit_url(new_database: Callable[..., Awaitable[str]]) -> str:
    """URL of a fresh database whose schema `kit` has the kit's tables."""
    return await new_database(SCHEMA)


@pytest.fixture
async def db(kit_url: str) -> AsyncIterator[Database]:
    """That database, open."""
    database = await Database.open(kit_url, SCHEMA)
    yield database
    await database.close()


@pytest.fixture
async def things(db: Database) -> Database:
    """That database with the table of `controller_things`."""
    async with db.connection() as connection:
        await connection.execute(
            """
            CREATE TABLE thing (
                key text PRIMARY KEY, phase text NOT NULL DEFAULT 'A', version int NOT NULL DEFAULT 1,
                note text NOT NULL DEFAULT ''
            )
            """
        )
    return db
