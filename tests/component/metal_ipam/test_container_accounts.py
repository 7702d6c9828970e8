"""The SQL functions of containers and pools against naive models: a set of child prefixes, a set of numbers."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Coroutine, Iterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
SETTINGS = settings(max_examples=50, stateful_step_count=25, suppress_health_check=list(HealthCheck))


def free_blocks(block: Network, children: set[Network]) -> list[Network]:
    """The maximal aligned blocks that no child touches."""
    if not any(block.overlaps(child) for child in children):
        return [block]
    if block in children or block.prefixlen == block.max_prefixlen:
        return []
    return [free for half in block.subnets() for free in free_blocks(half, children)]


class ContainerMachine(RuleBasedStateMachine):
    """Cut and give back children of any length; the lowest block that fits best is handed out."""

    loop: asyncio.AbstractEventLoop
    connection: asyncpg.Connection

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    @initialize(cidr=st.sampled_from(["10.0.0.0/26", "255.255.255.192/26", "0.0.0.0/1", "2001:db8::/58", "ffc0::/10"]))
    def create(self, cidr: str) -> None:
        self.root: Network = ipaddress.ip_network(cidr)
        self.name = uuid4().hex
        namespace = self.run(
            self.connection.fetchval("INSERT INTO namespace (name) VALUES ($1) RETURNING id", self.name)
        )
        self.run(
            self.connection.execute(
                "INSERT INTO network (id, namespace_id, type) VALUES ($1, $2, 'super')", self.name, namespace
            )
        )
        row = self.run(
            self.connection.fetchrow(
                "SELECT * FROM create_root($1, $2, $3, 'container', false, '0', 'test')",
                *(namespace, self.name, self.root),
            )
        )
        self.prefix = row["prefix_id"]
        self.children: dict[Network, int] = {}

    @rule(extra=st.integers(0, 7))
    def cut_any(self, extra: int) -> None:
        length = self.root.prefixlen + extra
        row = self._cut(length, None)
        fitting = [b for b in free_blocks(self.root, set(self.children)) if b.prefixlen <= length]
        if extra == 0 or length > self.root.max_prefixlen:
            assert row["outcome"] == "length"
        elif not fitting:
            assert row["outcome"] == "full"
        else:
            best = min(fitting, key=lambda b: (-b.prefixlen, b))
            assert row["cidr"] == next(best.subnets(new_prefix=length))
            self.children[row["cidr"]] = row["prefix_id"]

    @rule(extra=st.integers(1, 6), place=st.integers(0, 63))
    def cut_given(self, extra: int, place: int) -> None:
        step = 1 << (self.root.max_prefixlen - self.root.prefixlen - extra)
        start = int(self.root.network_address) + (place % (1 << extra)) * step
        wanted = ipaddress.ip_network((start, self.root.prefixlen + extra))
        row = self._cut(None, wanted)
        if any(wanted.overlaps(child) for child in self.children):
            assert row["outcome"] == "taken"
        else:
            assert (row["outcome"], row["cidr"]) == ("ok", wanted)
            self.children[wanted] = row["prefix_id"]

    @rule()
    def a_given_child_outside_is_refused(self) -> None:
        outside = ipaddress.ip_network("198.51.100.0/24" if self.root.version == 4 else "1234::/64")
        assert self._cut(None, outside)["outcome"] in {"outside", "length"}

    @precondition(lambda self: self.children)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        child = data.draw(st.sampled_from(sorted(self.children)))
        outcome = self._delete(self.children.pop(child))
        assert outcome == "ok"

    @precondition(lambda self: self.children)
    @rule(data=st.data())
    def a_child_with_an_address_stays(self, data: st.DataObject) -> None:
        child = self.children[data.draw(st.sampled_from(sorted(self.children)))]
        row = self.run(self.connection.fetchrow("SELECT * FROM acquire_n($1, ARRAY[NULL], '[{}]', 'test')", child))
        if row["outcome"] == "full":
            return
        assert self._delete(child) == "has_addresses"
        released = self.run(
            self.connection.fetchval(
                """SELECT (release_n(ARRAY[namespace_id], ARRAY[addr], ARRAY[NULL], ARRAY[NULL], 'test')).outcome
                   FROM ip WHERE prefix_id = $1""",
                child,
            )
        )
        assert released == "ok"

    @precondition(lambda self: self.children)
    @rule()
    def a_parent_with_children_stays_and_gives_no_address(self) -> None:
        assert self._delete(self.prefix) == "has_children"
        row = self.run(self.connection.fetchrow("SELECT * FROM acquire_n($1, ARRAY['x'], '[{}]', 'test')", self.prefix))
        assert row["outcome"] == "wrong_kind"

    @rule()
    def repair_changes_nothing_that_is_right(self) -> None:
        self.run(self.connection.execute("SELECT repair_prefix($1)", self.prefix))

    @invariant()
    def the_accounts_are_the_model(self) -> None:
        if not hasattr(self, "prefix"):
            return
        rows = self.run(
            self.connection.fetch("SELECT cidr FROM free_block WHERE prefix_id = $1 ORDER BY cidr", self.prefix)
        )
        assert [row["cidr"] for row in rows] == free_blocks(self.root, set(self.children))
        for prefix in (self.prefix, *self.children.values()):
            assert self.run(self.connection.fetch("SELECT * FROM verify_prefix($1)", prefix)) == []

    @rule(data=st.data())
    def cut_several(self, data: st.DataObject) -> None:
        """One statement does what one each would do, in their order."""
        extras = data.draw(st.lists(st.integers(0, 5), min_size=2, max_size=6))
        rows = self._cut_all([{"length": self.root.prefixlen + extra} for extra in extras])
        assert [row["ord"] for row in rows] == list(range(1, len(extras) + 1))
        for row, extra in zip(rows, extras, strict=True):
            length = self.root.prefixlen + extra
            fitting = [b for b in free_blocks(self.root, set(self.children)) if b.prefixlen <= length]
            if extra and fitting:
                best = min(fitting, key=lambda b: (-b.prefixlen, b))
                assert row["cidr"] == next(best.subnets(new_prefix=length))
                self.children[row["cidr"]] = row["prefix_id"]
            else:
                assert row["outcome"] == ("full" if extra else "length")

    @precondition(lambda self: len(self.children) > 1)
    @rule(data=st.data())
    def give_several_back(self, data: st.DataObject) -> None:
        gone = data.draw(st.lists(st.sampled_from(sorted(self.children)), min_size=2, max_size=8, unique=True))
        ids = [self.prefix, *(self.children.pop(each) for each in gone)]
        rows = self.run(
            self.connection.fetch(
                "SELECT outcome FROM delete_prefixes($1, $2, true) ORDER BY ord", ids, ["test"] * len(ids)
            )
        )
        # The parent had children when the statement began.
        assert [row["outcome"] for row in rows] == ["has_children", *["ok"] * len(gone)]

    def _cut(self, length: int | None, cidr: Network | None) -> Any:
        [row] = self._cut_all([{"length": length} if cidr is None else {"cidr": str(cidr)}])
        return row

    def _cut_all(self, entries: list[dict[str, Any]]) -> Any:
        entries = [{"network": self.name, "actor": "test", **entry} for entry in entries]
        return self.run(
            self.connection.fetch(
                "SELECT * FROM acquire_children($1, $2) ORDER BY ord", self.prefix, json.dumps(entries)
            )
        )

    def _delete(self, prefix: int) -> str:
        outcome: str = self.run(
            self.connection.fetchval(
                "SELECT outcome FROM delete_prefixes(ARRAY[$1::bigint], ARRAY['test'], true)", prefix
            )
        )
        return outcome


class PoolMachine(RuleBasedStateMachine):
    """Acquire, ask for, release and rest numbers; one number an owner."""

    loop: asyncio.AbstractEventLoop
    connection: asyncpg.Connection

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    @initialize()
    def create(self) -> None:
        self.pool = self.run(
            self.connection.fetchval("INSERT INTO id_pool (name) VALUES ($1) RETURNING id", uuid4().hex)
        )
        self.auto: set[int] = set()
        self.on_request: set[int] = set()
        self.used: dict[int, str] = {}
        self.resting: set[int] = set()
        self.rest = False
        self.grow(True)

    @rule(auto=st.booleans())
    def grow(self, auto: bool) -> None:
        top = max(self.auto | self.on_request | {0})
        assert self._grow(top + 1, top + 4, auto) == "ok"
        (self.auto if auto else self.on_request).update(range(top + 1, top + 5))
        assert self._grow(top + 4, top + 6, auto) == "overlap"

    @rule(owner=st.sampled_from("abcdefghij"))
    def acquire_any(self, owner: str) -> None:
        row = self._acquire(owner, None)
        free = sorted(self.auto - set(self.used) - self.resting)
        if owner in self.used.values():
            assert (row["outcome"], self.used[row["value"]]) == ("ok", owner)
        elif not free:
            assert row["outcome"] == "full"
        else:
            assert (row["outcome"], row["value"]) == ("ok", free[0])
            self.used[row["value"]] = owner

    @rule(owner=st.sampled_from("abcdefghij"), number=st.integers(0, 30))
    def acquire_given(self, owner: str, number: int) -> None:
        row = self._acquire(owner, number)
        if owner in self.used.values():
            assert row["outcome"] == ("ok" if self.used.get(number) == owner else "has_other")
        elif number not in self.auto | self.on_request:
            assert row["outcome"] == "outside"
        elif number in self.used or number in self.resting:
            assert row["outcome"] == "taken"
            assert (row["holder_id"] or "") == self.used.get(number, "")
        else:
            assert row["outcome"] == "ok"
            self.used[number] = owner

    @rule(owner=st.sampled_from("abcdefghij"), everywhere=st.booleans())
    def release(self, owner: str, everywhere: bool) -> None:
        pool = None if everywhere else self.pool
        sql = "SELECT pool_release($1, 'other', $2, 'test')"
        count = self.run(self.connection.fetchval(sql, pool, self._id(owner)))
        had = [number for number, holder in self.used.items() if holder == owner]
        assert count == len(had)
        for number in had:
            del self.used[number]
            if self.rest:
                self.resting.add(number)

    @rule(on=st.booleans())
    def set_quarantine(self, on: bool) -> None:
        self.rest = on
        sql = "UPDATE id_pool SET quarantine = $2::text::interval WHERE id = $1"
        self.run(self.connection.execute(sql, self.pool, "1 hour" if on else "0"))

    @rule(data=st.data())
    def end_quarantine(self, data: st.DataObject) -> None:
        due = {number for number in sorted(self.resting) if data.draw(st.booleans())}
        sql = (
            "UPDATE id_used SET release_after = now() - interval '1 s' WHERE pool_id = $1 AND value = ANY ($2::int8[])"
        )
        self.run(self.connection.execute(sql, self.pool, list(due)))
        assert self.run(self.connection.fetchval("SELECT end_number_quarantine(1000)")) == len(due)
        self.resting -= due

    @invariant()
    def the_accounts_are_the_model(self) -> None:
        if not hasattr(self, "pool"):
            return
        rows = self.run(self.connection.fetch("SELECT auto, lo, hi FROM id_free WHERE pool_id = $1", self.pool))
        free = {(row["auto"], n) for row in rows for n in range(row["lo"], row["hi"] + 1)}
        taken = set(self.used) | self.resting
        assert free == {(True, n) for n in self.auto - taken} | {(False, n) for n in self.on_request - taken}
        assert self.run(self.connection.fetch("SELECT * FROM verify_pool($1)", self.pool)) == []

    def _id(self, owner: str) -> str:
        return f"{self.pool}-{owner}"

    def _grow(self, lo: int, hi: int, auto: bool) -> str:
        sql = "SELECT pool_grow($1, $2, $3, $4, 'test')"
        return str(self.run(self.connection.fetchval(sql, self.pool, lo, hi, auto)))

    def _acquire(self, owner: str, number: int | None) -> dict[str, Any]:
        sql = "SELECT * FROM pool_acquire($1, $2, 'other', $3, '', 'test')"
        row = dict(self.run(self.connection.fetchrow(sql, self.pool, number, self._id(owner))) or {})
        if row["holder_id"]:
            row["holder_id"] = row["holder_id"].rpartition("-")[2]
        return row


@pytest.fixture
def loop_and_connection(ipam_url: str) -> Iterator[tuple[asyncio.AbstractEventLoop, asyncpg.Connection]]:
    loop = asyncio.new_event_loop()
    connection = loop.run_until_complete(
        asyncpg.connect(ipam_url, server_settings={"search_path": "ipam, public"}, timeout=10)
    )
    yield loop, connection
    loop.run_until_complete(connection.close())
    loop.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("machine", [ContainerMachine, PoolMachine])
def test_it_behaves_like_its_model(
    machine: type[ContainerMachine | PoolMachine],
    loop_and_connection: tuple[asyncio.AbstractEventLoop, asyncpg.Connection],
) -> None:
    machine.loop, machine.connection = loop_and_connection
    run_state_machine_as_test(machine, settings=SETTINGS)
