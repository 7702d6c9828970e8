"""A database with the kit's tables, for tests of the kit."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from metal_kit.db import Database
from metal_kit.migrations import migrate

SCHEMA = "kit"


@pytest.fixture
async def kit_url(database_url: str) -> str:
    """URL of a fresh database whose schema `kit` has the kit's tables."""
    await migrate(database_url, SCHEMA, "")
    return database_url


@pytest.fixture
async def db(kit_url: str) -> AsyncIterator[Database]:
    """That database, open."""
    database = await Database.open(kit_url, SCHEMA)
    yield database
    await database.close()
