"""A migrated ipam schema, and what tests of the SQL functions need around a prefix."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import uuid4

import asyncpg
import pytest
from metal_kit.db import Database
from metal_kit.migrations import migrate

NewPrefix = Callable[..., Awaitable[int]]


@pytest.fixture
async def ipam_url(database_url: str) -> str:
    """URL of a database with the service's schema `ipam`."""
    await migrate(database_url, "ipam", "metal_ipam")
    return database_url


@pytest.fixture
async def db(ipam_url: str) -> AsyncIterator[Database]:
    """The service's view of that database, with connections enough for a crowd."""
    database = await Database.open(ipam_url, "ipam", max_size=34)
    yield database
    await database.close()


async def open_connection(url: str) -> asyncpg.Connection:
    """A bare connection with the schema on its path; jsonb as Python values."""
    connection = await asyncpg.connect(url, server_settings={"search_path": "ipam, public"}, timeout=10)
    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
    return connection


async def new_prefix(connection: asyncpg.Connection, cidr: str, kind: str = "leaf", *, all_usable: bool = False) -> int:
    """A root prefix in a namespace and network of its own."""
    name = uuid4().hex
    namespace = await connection.fetchval("INSERT INTO namespace (name) VALUES ($1) RETURNING id", name)
    await connection.execute(
        "INSERT INTO network (id, namespace_id, type) VALUES ($1, $2, 'external')", name, namespace
    )
    row = await connection.fetchrow(
        "SELECT * FROM create_root($1, $2, $3::text::cidr, $4, $5, '0', 'test')",
        *(namespace, name, cidr, kind, all_usable),
    )
    assert row is not None
    assert row["outcome"] == "ok"
    return int(row["prefix_id"])
