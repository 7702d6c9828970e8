"""The SQL functions of a leaf prefix against the simplest model there is: a set of free addresses.

Small prefixes at both ends of both families, because that is where address arithmetic overflows.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Coroutine
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

Address = Any  # of one family in each run, which the types cannot say

CIDRS = [
    "0.0.0.0/28", "255.255.255.240/28", "10.0.0.16/29", "10.0.0.8/30", "10.0.0.6/31", "10.0.0.7/32",
    "::/124", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124", "2001:db8::7ff8/125", "2001:db8::6/127", "2001:db8::7/128",
    "2001:db8:0:0:7fff:ffff:ffff:fff0/124",
]  # fmt: skip


class LeafMachine(RuleBasedStateMachine):
    """Acquire, release, reserve and rest at random; the database must say what the model says, after each step."""

    loop: asyncio.AbstractEventLoop
    connection: asyncpg.Connection

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    @initialize(cidr=st.sampled_from(CIDRS), all_usable=st.booleans())
    def create(self, cidr: str, all_usable: bool) -> None:
        network = ipaddress.ip_network(cidr)
        name = uuid4().hex
        self.namespace = self.run(
            self.connection.fetchval("INSERT INTO namespace (name) VALUES ($1) RETURNING id", name)
        )
        self.run(
            self.connection.execute(
                "INSERT INTO network (id, namespace_id, type) VALUES ($1, $2, 'external')", name, self.namespace
            )
        )
        row = self.run(
            self.connection.fetchrow(
                "SELECT * FROM create_root($1, $2, $3, 'leaf', $4, '0', 'test')",
                *(self.namespace, name, network, all_usable),
            )
        )
        assert row["outcome"] == "ok"
        self.prefix = row["prefix_id"]
        self.all: list[Address] = list(network)
        spared: set[Address] = set()
        if not all_usable and network.num_addresses > 2:
            spared = {self.all[0], self.all[-1]} if network.version == 4 else {self.all[0]}
        self.reserved: dict[tuple[Address, Address], None] = {(a, a): None for a in spared}
        self.free = set(self.all) - spared
        self.used: dict[Address, str] = {}
        self.held_reserved: set[Address] = set()
        self.resting: set[Address] = set()
        self.rest = False
        self.requests: dict[str, Address] = {}

    @rule(n=st.integers(1, 20))
    def acquire_some(self, n: int) -> None:
        requests = [uuid4().hex for _ in range(n)]
        rows = self.run(
            self.connection.fetch(
                "SELECT * FROM acquire_n($1, $2, $3, 'test') ORDER BY ord",
                *(self.prefix, requests, [{"owner_kind": "other", "owner_id": "o", "request_hash": "h"}] * n),
            )
        )
        expected = sorted(self.free)[:n]
        assert [row["address"] for row in rows] == expected + [None] * (n - len(expected))
        assert [row["outcome"] for row in rows] == ["ok"] * len(expected) + ["full"] * (n - len(expected))
        for address, request in zip(expected, requests, strict=False):
            self._take(address, request)

    @rule(data=st.data(), take_reserved=st.booleans(), take_resting=st.booleans())
    def acquire_given(self, data: st.DataObject, take_reserved: bool, take_resting: bool) -> None:
        address = data.draw(st.sampled_from(self.all))
        request = uuid4().hex
        take = ["reserved"] * take_reserved + ["quarantine"] * take_resting
        outcome = self._specific(address, request, take)
        if address in self.resting:
            assert outcome == ("ok" if take_resting else "quarantine")
            if take_resting:
                self.resting.remove(address)
                self._take(address, request)
        elif address in self.used:
            assert outcome == "taken"
        elif address in self.free:
            assert outcome == "ok"
            self._take(address, request)
        else:
            assert outcome == ("ok" if take_reserved else "reserved")
            if take_reserved:
                self.held_reserved.add(address)
                self.used[address] = request
                self.requests[request] = address

    @rule()
    def a_given_address_outside_is_refused(self) -> None:
        outside = ipaddress.ip_address("192.0.2.77" if self.all[0].version == 6 else "2001:db8:ffff::77")
        assert self._specific(outside, uuid4().hex, []) == "outside"

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def a_repeated_request_gets_the_same_address(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(sorted(self.used)))
        request = self.used[address]
        entries = [{"owner_kind": "other", "owner_id": "o", "request_hash": "h"}]
        sql = "SELECT * FROM acquire_n($1, $2, $3, 'test')"
        row = self.run(self.connection.fetchrow(sql, self.prefix, [request], entries))
        assert (row["outcome"], row["address"]) == ("ok", address)
        entries[0]["request_hash"] = "another request"
        row = self.run(self.connection.fetchrow(sql, self.prefix, [request], entries))
        assert row["outcome"] == "request_reused"

    @precondition(lambda self: bool(set(self.requests) - set(self.used.values())))
    @rule(data=st.data())
    def a_request_whose_address_was_released_takes_no_second_one(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(set(self.requests) - set(self.used.values()))))
        sql = "SELECT * FROM acquire_n($1, $2, $3, 'test')"
        row = self.run(self.connection.fetchrow(sql, self.prefix, [request], [{"request_hash": "h"}]))
        assert row["outcome"] == "request_spent"

    @rule(data=st.data())
    def release_some(self, data: st.DataObject) -> None:
        addresses = data.draw(st.lists(st.sampled_from(self.all), min_size=1, max_size=8))
        outcomes = self._release(addresses, "o")
        expected = []
        for address in addresses:
            expected.append("ok" if address in self.used else "unknown")
            if address in self.used:
                self._give(address)
        assert outcomes == expected

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def another_owner_cannot_release(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(sorted(self.used)))
        assert self._release([address], "somebody else") == ["foreign"]

    @rule(data=st.data())
    def reserve(self, data: st.DataObject) -> None:
        lo, hi = sorted(data.draw(st.lists(st.sampled_from(self.all), min_size=2, max_size=2)))
        outcome = self.run(self.connection.fetchval("SELECT reserve($1, $2, $3, 'test', 'test')", self.prefix, lo, hi))
        wanted = {a for a in self.all if lo <= a <= hi}
        assert outcome == ("ok" if wanted <= self.free else "in_use")
        if outcome == "ok":
            self.free -= wanted
            self.reserved[lo, hi] = None

    @precondition(lambda self: self.reserved)
    @rule(data=st.data())
    def unreserve(self, data: st.DataObject) -> None:
        lo, hi = data.draw(st.sampled_from(sorted(self.reserved)))
        outcome = self.run(self.connection.fetchval("SELECT unreserve($1, $2, $3, 'test')", self.prefix, lo, hi))
        inside = {a for a in self.all if lo <= a <= hi}
        assert outcome == ("in_use" if inside & self.held_reserved else "ok")
        if outcome == "ok":
            self.free |= inside
            del self.reserved[lo, hi]

    @rule(on=st.booleans())
    def set_quarantine(self, on: bool) -> None:
        self.rest = on
        self.run(
            self.connection.execute(
                "UPDATE prefix SET quarantine = $2::text::interval WHERE id = $1", self.prefix, "1 hour" if on else "0"
            )
        )

    @rule(data=st.data())
    def end_quarantine(self, data: st.DataObject) -> None:
        due = [a for a in sorted(self.resting) if data.draw(st.booleans())]
        self.run(
            self.connection.execute(
                "UPDATE ip SET release_after = now() - interval '1 s' WHERE namespace_id = $1 AND addr = ANY ($2)",
                *(self.namespace, due),
            )
        )
        assert self.run(self.connection.fetchval("SELECT end_quarantine(1000)")) == len(due)
        self.resting -= set(due)
        self.free |= set(due)

    @rule()
    def repair_changes_nothing_that_is_right(self) -> None:
        self.run(self.connection.execute("SELECT repair_prefix($1)", self.prefix))

    @invariant()
    def the_accounts_are_the_model(self) -> None:
        if not hasattr(self, "prefix"):
            return
        rows = self.run(
            self.connection.fetch("SELECT lo, hi FROM free_range WHERE prefix_id = $1 ORDER BY hi", self.prefix)
        )
        in_database = [a for row in rows for a in self.all if row["lo"] <= a <= row["hi"]]
        assert in_database == sorted(self.free)
        counters = self.run(
            self.connection.fetchrow("SELECT used, quarantined, reserved FROM prefix WHERE id = $1", self.prefix)
        )
        ordinary = set(self.used) - self.held_reserved
        assert counters["used"] == len(ordinary) + len(self.resting)
        assert counters["quarantined"] == len(self.resting)
        assert counters["reserved"] == len(self.all) - len(self.free) - len(ordinary) - len(self.resting)
        assert self.run(self.connection.fetch("SELECT * FROM verify_prefix($1)", self.prefix)) == []

    def _take(self, address: Address, request: str) -> None:
        self.free.discard(address)
        self.used[address] = request
        self.requests[request] = address

    def _give(self, address: Address) -> None:
        del self.used[address]
        if address in self.held_reserved:
            self.held_reserved.remove(address)
        elif self.rest:
            self.resting.add(address)
        else:
            self.free.add(address)

    def _specific(self, address: Address, request: str, take: list[str]) -> str:
        row = self.run(
            self.connection.fetchrow(
                "SELECT * FROM acquire_specific($1, $2, $3, $4, $5, 'test')",
                *(self.prefix, address, request, {"owner_kind": "other", "owner_id": "o", "request_hash": "h"}, take),
            )
        )
        assert (row["outcome"] == "ok") == (row["address"] == address)
        return str(row["outcome"])

    def _release(self, addresses: list[Address], owner: str) -> list[str]:
        n = len(addresses)
        rows = self.run(
            self.connection.fetch(
                "SELECT * FROM release_n($1, $2, $3, $4, 'test') ORDER BY ord",
                *([self.namespace] * n, addresses, ["other"] * n, [owner] * n),
            )
        )
        return [row["outcome"] for row in rows]


@pytest.mark.timeout(300)
def test_a_leaf_behaves_like_a_set_of_free_addresses(ipam_url: str) -> None:
    loop = asyncio.new_event_loop()
    try:
        connection = loop.run_until_complete(_open(ipam_url))
        LeafMachine.loop, LeafMachine.connection = loop, connection
        run_state_machine_as_test(
            LeafMachine,
            settings=settings(max_examples=60, stateful_step_count=25, suppress_health_check=list(HealthCheck)),
        )
        loop.run_until_complete(connection.close())
    finally:
        loop.close()


async def _open(url: str) -> asyncpg.Connection:
    connection = await asyncpg.connect(url, server_settings={"search_path": "ipam, public"}, timeout=10)
    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
    return connection
