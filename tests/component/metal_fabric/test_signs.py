"""Signs of life are written together, and a leaf whose row is held keeps nobody else waiting."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import asyncpg
import pytest
from metal_fabric import signs
from metal_fabric.signs import Signs
from metal_fabric.store import SyncStore
from metal_kit.db import Database
from metal_kit.ids import uuid7

NOTHING = "UPDATE leaf_sync SET seen_time = NULL"


@pytest.fixture
async def pair(fabric: Any, eventually: Any) -> None:
    """Two leaves that do not beat."""
    for name in ("leaf01", "leaf02"):
        leaf = await fabric.leaf(name).open(silent=True)
        await eventually(lambda leaf=leaf: leaf.states)


@pytest.fixture
def db(fabric: Any, pair: Any, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Two leaves' fabric, whose streams say nothing meanwhile, and a short time to gather."""
    monkeypatch.setattr(signs, "GATHER", 0.05)
    database: Database = fabric.replicas[0].runtime.db
    return database


async def seen(fabric: Any) -> dict[str, datetime | None]:
    return {row["switch_id"]: row["seen_time"] for row in await fabric.rows("SELECT * FROM leaf_sync")}


async def sessions(fabric: Any) -> dict[str, str]:
    return {row["switch_id"]: str(row["session"]) for row in await fabric.rows("SELECT * FROM leaf_sync")}


async def test_signs_of_many_leaves_share_a_statement(
    fabric: Any, db: Database, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, str]] = []
    write = SyncStore.seen

    async def counted(self: SyncStore, conn: Any, heard: Mapping[str, str]) -> set[str]:
        calls.append(dict(heard))
        return await write(self, conn, heard)

    monkeypatch.setattr(SyncStore, "seen", counted)
    await fabric.rows(NOTHING)
    together, speakers = Signs(db), await sessions(fabric)
    for name, session in speakers.items():
        for _ in range(3):
            together.heard(name, session)

    async def written() -> bool:
        return all((await seen(fabric)).values())

    await eventually(written)
    assert calls.count(speakers) == 1
    await together.close()


async def test_a_session_that_speaks_no_more_is_not_heard_and_not_tried_for_ever(
    fabric: Any, db: Database, eventually: Any
) -> None:
    await fabric.rows(NOTHING)
    old, gone = Signs(db), Signs(db)
    old.heard("leaf01", uuid7())
    session = (await sessions(fabric))["leaf02"]
    gone.heard("leaf02", session)
    gone.ended("leaf02", session)
    await eventually(lambda: old._writing is None and gone._writing is None)
    assert not any((await seen(fabric)).values())


async def test_a_leaf_whose_row_is_held_is_written_when_it_is_free_and_the_others_before(
    fabric: Any, db: Database, eventually: Any
) -> None:
    await fabric.rows(NOTHING)
    together = Signs(db)
    connection = await asyncpg.connect(fabric.settings["database_url"], server_settings={"search_path": "fabric"})
    try:
        async with connection.transaction():
            await SyncStore().hold(connection, ["leaf01"])
            for name, session in (await sessions(fabric)).items():
                together.heard(name, session)

            async def other() -> bool:
                return (await seen(fabric))["leaf02"] is not None

            await eventually(other)
            assert (await seen(fabric))["leaf01"] is None
    finally:
        await connection.close()

    async def both() -> bool:
        return all((await seen(fabric)).values())

    await eventually(both)
    await together.close()


@pytest.mark.parametrize(
    "error", [asyncpg.AdminShutdownError("the database restarts"), asyncpg.InterfaceError("another operation runs")]
)
async def test_what_postgres_refuses_is_written_without_another_sign(
    fabric: Any, db: Database, eventually: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    write = SyncStore.seen
    failed: list[Mapping[str, str]] = []

    async def failing(self: SyncStore, conn: Any, heard: Mapping[str, str]) -> set[str]:
        if not failed:
            failed.append(heard)
            raise error
        return await write(self, conn, heard)

    monkeypatch.setattr(SyncStore, "seen", failing)
    await fabric.rows(NOTHING)
    together, speakers = Signs(db), await sessions(fabric)
    together.heard("leaf01", speakers["leaf01"])

    async def written() -> bool:
        return (await seen(fabric))["leaf01"] is not None

    await eventually(written)
    await together.close()
    assert failed


async def test_a_statement_that_is_stuck_is_given_up_and_its_leaves_are_tried_again_with_the_others(
    fabric: Any, db: Database, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Mapping[str, str]] = []
    write = SyncStore.seen

    async def counted(self: SyncStore, conn: Any, heard: Mapping[str, str]) -> set[str]:
        tried.append(heard)
        return await write(self, conn, heard)

    monkeypatch.setattr(SyncStore, "seen", counted)
    monkeypatch.setattr(signs, "WRITE_SECONDS", 0.3)
    await fabric.rows(NOTHING)
    together, speakers = Signs(db), await sessions(fabric)
    connection = await asyncpg.connect(fabric.settings["database_url"], server_settings={"search_path": "fabric"})
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE leaf_sync IN ACCESS EXCLUSIVE MODE")
            together.heard("leaf01", speakers["leaf01"])
            await eventually(lambda: tried)
            together.heard("leaf02", speakers["leaf02"])
            await eventually(lambda: speakers in tried, seconds=5)
    finally:
        await connection.close()

    async def both() -> bool:
        return all((await seen(fabric)).values())

    await eventually(both)
    await together.close()
