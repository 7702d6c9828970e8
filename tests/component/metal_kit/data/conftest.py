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
