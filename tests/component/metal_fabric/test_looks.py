"""Streams that look at the same moment share one statement, and none is told what was true before it asked."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import pytest
from metal_fabric.looks import Looks
from metal_fabric.store import SyncStore
from metal_fabric.store.syncs import Position


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The switches of each statement."""
    calls: list[set[str]] = []
    positions = SyncStore.positions

    async def counted(self: SyncStore, conn: Any, switch_ids: Collection[str]) -> dict[str, Position]:
        calls.append(set(switch_ids))
        return await positions(self, conn, switch_ids)

    monkeypatch.setattr(SyncStore, "positions", counted)
    return calls


async def test_all_who_look_at_once_share_a_statement(fabric: Any, pair: Any, asked: list[set[str]]) -> None:
    looks = Looks(fabric.replicas[0].runtime.db)
    asked.clear()
    answers = await asyncio.gather(*(looks.position(name) for name in ["leaf01", "leaf02", "gone", "leaf01"] * 25))
    assert [names for names in asked if "gone" in names] == [{"leaf01", "leaf02", "gone"}]
    assert [answer.desired if answer else None for answer in answers[:4]] == [1, 1, None, 1]
    assert answers[0] != answers[1], "each has its own session"
    await looks.close()


async def test_one_who_gives_up_takes_nobody_else_with_him(fabric: Any, pair: Any) -> None:
    looks = Looks(fabric.replicas[0].runtime.db)
    first, second = (asyncio.create_task(looks.position("leaf01")) for _ in range(2))
    await asyncio.wait([first], timeout=0)
    first.cancel()
    found = await second
    assert found is not None
    assert found.desired == 1
    assert first.cancelled()
    left = asyncio.create_task(looks.position("leaf01"))
    await asyncio.wait([left], timeout=0)
    await looks.close()
    with pytest.raises(asyncio.CancelledError):
        await left


async def test_a_look_begins_after_it_was_asked_for(
    fabric: Any, pair: Any, asked: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notification that arrives while a statement runs is about something that the statement may not see."""
    looks = Looks(fabric.replicas[0].runtime.db)
    begun, go_on = asyncio.Event(), asyncio.Event()
    store = SyncStore()

    async def slow(conn: Any, switch_ids: Collection[str]) -> dict[str, Position]:
        if "leaf02" in switch_ids:
            begun.set()
            await go_on.wait()
        return await SyncStore.positions(store, conn, switch_ids)

    # Of these looks alone: fabric's own streams look for both leaves too, and would begin in their place.
    monkeypatch.setattr(store, "positions", slow)
    monkeypatch.setattr(looks, "_syncs", store)
    async with asyncio.timeout(20):
        earlier = asyncio.create_task(looks.position("leaf02"))
        await begun.wait()
        assert await looks.position("leaf01") is not None
        assert not earlier.done()
        go_on.set()
        assert await earlier is not None
    await looks.close()
