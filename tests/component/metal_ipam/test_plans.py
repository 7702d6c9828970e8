"""Statements of ipam over many networks, prefixes and addresses; and that taking one costs the same at any fill."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import Any

import pytest
from metal_ipam.addresses import Owner, Wish
from metal_ipam.networks import NetworkType
from metal_ipam.store import (
    address_changes,
    address_pages,
    addresses,
    copies,
    dumps,
    namespaces,
    networks,
    numbers,
    owners,
    places,
    prefixes,
    quotas,
    ranges,
)
from metal_kit.db import Connection
from metal_lab.servers import Postgres
from plans import Call, Plans, measured

# 20,000 networks: half of them of one project and cut from one super network, each with a prefix. One leaf prefix has
# 20,000 addresses in use (every second one of them free again), another one 100.
FILL = (
    "INSERT INTO network (id, namespace_id, type, name, partition_id) VALUES ('super', 1, 'super', 'super', 'p1')",
    "INSERT INTO network (id, namespace_id, type, name, partition_id) VALUES ('other', 1, 'super', 'other', 'p2')",
    """
    INSERT INTO network (id, namespace_id, type, name, project_id, partition_id, parent_id)
    SELECT 'n' || lpad(n::text, 5, '0'), 1, CASE WHEN n % 1000 = 3 THEN 'external' ELSE 'child' END, 'n' || n,
        CASE WHEN n % 2 = 0 THEN 'big' ELSE 'q' || n % 1000 END, CASE WHEN n % 1000 = 3 THEN 'p3' ELSE 'p1' END,
        CASE WHEN n % 1000 = 3 THEN NULL WHEN n % 1000 = 5 THEN 'other' ELSE 'super' END
    FROM generate_series(1, 20000) AS n
    """,
    "INSERT INTO network (id, namespace_id, type) VALUES ('alone', 1, 'external')",
    "SELECT create_root(1, 'super', '10.0.0.0/8', 'container', false, '0', '')",
    "SELECT create_root(1, 'n00001', '11.0.0.0/16', 'leaf', false, '0', '')",
    "SELECT create_root(1, 'n00002', '12.0.0.0/16', 'leaf', false, '0', '')",
    "SELECT create_root(1, 'n00004', '13.0.0.0/16', 'leaf', false, '1 hour', '')",
    "UPDATE prefix SET labels = '{\"use\": \"racks\"}' WHERE cidr = '10.0.0.0/8'",
    """
    INSERT INTO prefix (namespace_id, network_id, parent_id, cidr, kind)
    SELECT 1, 'n' || lpad(n::text, 5, '0'), (SELECT id FROM prefix WHERE cidr = '10.0.0.0/8'),
        set_masklen('10.0.0.0'::inet + n * 256, 24)::cidr, 'leaf'
    FROM generate_series(1, 20000) AS n
    """,
    # Addresses 1 to 20,000 without every fourth of the second half; and 1 to 100.
    """
    INSERT INTO ip (namespace_id, addr, prefix_id, project_id, owner_kind, owner_id, request_id)
    SELECT 1, '11.0.0.0'::inet + n, (SELECT id FROM prefix WHERE cidr = '11.0.0.0/16'),
        CASE WHEN n % 1000 = 1 THEN 'rare' ELSE 'big' END, 'allocation', 'a' || n / 4, 'r' || n
    FROM generate_series(1, 20000) AS n WHERE n <= 10000 OR n % 4 <> 3
    """,
    """
    INSERT INTO ip (namespace_id, addr, prefix_id, owner_kind, owner_id)
    SELECT 1, '12.0.0.0'::inet + n, (SELECT id FROM prefix WHERE cidr = '12.0.0.0/16'), 'allocation', 'b' || n
    FROM generate_series(1, 100) AS n
    """,
    "UPDATE free_range f SET lo = lo + CASE WHEN lo BETWEEN '12.0.0.0' AND '13.0.0.0' THEN 100 ELSE 20000 END "
    "WHERE masklen((SELECT cidr FROM prefix p WHERE p.id = f.prefix_id)) = 16",
    "INSERT INTO free_range SELECT id, '11.0.0.0'::inet + n, '11.0.0.0'::inet + n "
    "FROM prefix, generate_series(10003, 19999, 4) AS n WHERE cidr = '11.0.0.0/16'",
    "UPDATE prefix p SET used = (SELECT count(*) FROM ip i WHERE i.prefix_id = p.id) WHERE masklen(cidr) = 16",
    """
    INSERT INTO ip (namespace_id, addr, prefix_id, state, release_after)
    SELECT 1, '13.0.0.0'::inet + n, (SELECT id FROM prefix WHERE cidr = '13.0.0.0/16'), 'quarantine',
        now() + CASE WHEN n % 1000 = 0 THEN '-1 h' ELSE '1 h' END::interval FROM generate_series(1, 20000) AS n
    """,
    "UPDATE prefix SET used = 20000, quarantined = 20000 WHERE cidr = '13.0.0.0/16'",
    # A thousand other namespaces, each with one root of the same CIDR; and what happened to 20,000 addresses.
    "INSERT INTO namespace (name) SELECT 's' || n FROM generate_series(1, 1000) AS n UNION ALL SELECT 'empty'",
    "SELECT create_root(id, NULL, '172.16.0.0/24', 'leaf', false, '0', '') FROM namespace WHERE name ~ '^s[0-9]'",
    # Two hundred projects with a copy of a namespaced super network.
    "INSERT INTO network (id, namespace_id, type, copied_prefixes, default_child_v4) "
    "VALUES ('copied', 1, 'super_namespaced', '{10.64.0.0/16}', 24)",
    "INSERT INTO namespace (name, project_id, for_networks) "
    "SELECT 'project-t' || n, 't' || n, true FROM generate_series(1, 200) AS n",
    "SELECT create_root(id, 'copied', '10.64.0.0/16', 'container', false, '0', '') FROM namespace WHERE for_networks",
    "INSERT INTO history (actor, operation, namespace_id, object) "
    "SELECT 'x', 'acquire', 1, '11.0.0.0'::inet + n FROM generate_series(1, 20000) AS n",
    "INSERT INTO spent_request SELECT 't' || n, now() - n * interval '1 min' FROM generate_series(1, 20000) AS n",
    "INSERT INTO released_owner SELECT 'allocation', 'c' || n, now() - n * interval '1 min' "
    "FROM generate_series(1, 20000) AS n",
    "UPDATE network SET labels = jsonb_build_object('zone', id) WHERE type = 'child'",
    "UPDATE network SET labels = '{\"zone\": \"7\"}' WHERE id IN ('n00007', 'n01003', 'n02003')",
    "INSERT INTO history (actor, operation, namespace_id, object) "
    "SELECT '', 'acquire', 1, '14.0.0.0'::inet + n FROM generate_series(1, 20000) AS n",
    "INSERT INTO quota (project_id, prefixes) SELECT 'q' || n, 5 FROM generate_series(1, 20000) AS n",
    "INSERT INTO id_pool (name) VALUES ('vrf'), ('asn')",
    "SELECT pool_grow(id, 1, 1000000, true, '') FROM id_pool",
    "INSERT INTO id_used (pool_id, value, owner_kind, owner_id) SELECT p.id, n, 'network', 'n' || n "
    "FROM id_pool p, generate_series(1, 20000) AS n WHERE p.name = 'vrf' OR n <= 100",
    "UPDATE id_free f SET lo = (SELECT max(value) + 1 FROM id_used u WHERE u.pool_id = f.pool_id)",
    "UPDATE id_pool p SET used = (SELECT count(*) FROM id_used u WHERE u.pool_id = p.id)",
)


@pytest.fixture(scope="module")
async def plans(postgres: Postgres) -> AsyncIterator[Plans]:
    async with measured(postgres, "ipam", "metal_ipam", FILL) as made:
        yield made


def network_page(**filters: Any) -> Call:
    wanted = {"visible_to": None, "project": "", "kind": None, "partition": "", "parent": "", "after": "", "limit": 51}
    return partial(networks.page, **wanted | filters)


def address_page(**filters: Any) -> Call:
    wanted: dict[str, Any] = {
        "visible_to": None,
        "project": "",
        "network": "",
        "owner": Owner(),
        "after": None,
        "limit": 51,
    }
    return partial(address_pages.page, **wanted | filters)


FILTERS: dict[str, dict[str, Any]] = {
    "all": {},
    "project of many": {"project": "big"},
    "project of few": {"project": "q7"},
    "no project": {"project": "none"},
    "type of many": {"kind": NetworkType.CHILD},
    "type of few": {"kind": NetworkType.EXTERNAL},
    "partition of many": {"partition": "p1"},
    "partition of few": {"partition": "p3"},
    "parent of many": {"parent": "super"},
    "parent of few": {"parent": "other"},
    "seen by a project of many": {"visible_to": ["big"]},
    "seen by a project of few": {"visible_to": ["q7"]},
    "seen by two": {"visible_to": ["big", "q7"]},
    "seen by nobody": {"visible_to": []},
}


async def test_networks_and_prefixes_are_read_by_page(plans: Plans) -> None:
    cases = {f"{name}, first page": network_page(**filters) for name, filters in FILTERS.items()}
    cases |= {f"{name}, later page": network_page(**filters, after="n1") for name, filters in FILTERS.items()}
    for network in ("", "n00007", "super", "copied"):
        for place, after in (("first", None), ("later", (1, "10.39.16.0/24"))):
            cases[f"prefixes of {network or 'all'}, {place} page"] = partial(
                prefixes.page, network=network, after=after, limit=51
            )
            cases[f"ids of {network or 'all'}, {place} page"] = partial(
                prefixes.ids, network=network, after=10000 if after else 0, limit=51
            )
    await plans.check(cases)


async def test_prefixes_are_found_at_once_among_many_namespaces(plans: Plans) -> None:
    async with plans.db.connection() as conn:
        space = await conn.fetchval("SELECT id FROM namespace WHERE name = 's500'")
        parent = await conn.fetchval("SELECT id FROM prefix WHERE cidr = '10.0.0.0/8' AND namespace_id = 1")
    held, cidr = IPv4Address("11.0.0.7"), IPv4Network("10.39.16.0/24")
    cases: dict[str, Call] = {}
    for namespace_id in (1, space):
        for place, after in (("first", None), ("later", (namespace_id, "10.39.16.0/24"))):
            cases[f"of namespace {namespace_id}, {place} page"] = partial(
                prefixes.page, namespace_id=namespace_id, after=after, limit=51
            )
    await plans.check(
        cases
        | {
            "children, first page": partial(prefixes.page, parent_id=parent, after=None, limit=51),
            "children, later page": partial(prefixes.page, parent_id=parent, after=(1, "10.39.16.0/24"), limit=51),
            "one": partial(prefixes.get, namespace_id=1, cidr=cidr, lock=True),
            "of one place": partial(prefixes.at, places=[(1, cidr), (space, IPv4Network("172.16.0.0/24"))]),
            "labelled": partial(prefixes.labelled, namespace_id=1, selector={"use": "racks"}, family=4, limit=100),
            "lone leaf": partial(
                prefixes.lone_leaf, wish=Wish("", prefix=IPv4Network("172.16.0.0/24"), namespace="s500")
            ),
            "namespace": partial(namespaces.get, name="s500"),
            "namespaces": partial(namespaces.page, after="s3", limit=51),
            "empty namespace": partial(namespaces.delete, name="empty"),
            "any prefix": partial(dumps.has_prefixes, namespace_id=space),
            "dump": partial(dumps.lines, namespace_id=space, limit=1000),
            "places": partial(places.of_address, address=held, namespace_id=None, after=0, limit=51),
            "places in one namespace": partial(places.of_address, address=held, namespace_id=1, after=0, limit=51),
            "history": partial(places.history, namespace_id=1, thing=held, as_of=None, before=None, limit=51),
            "later history": partial(
                places.history, namespace_id=1, thing=held, as_of=datetime.now(UTC), before=10**6, limit=51
            ),
            "what holds a prefix": partial(ranges.in_the_way, prefix_id=parent, children=True),
            "what holds a given child": partial(ranges.children_overlapping, prefix_id=parent, cidr=cidr),
        }
    )


async def test_a_copy_for_one_project_costs_the_same_among_many(plans: Plans) -> None:
    async with plans.db.connection() as conn:
        home = await conn.fetchval("SELECT id FROM namespace WHERE name = 'project-t150'")
        network = await networks.get(conn, "copied")
    assert network is not None
    await plans.check(
        {
            "of a project that has one": partial(copies.provide, network=network, project="t150", actor=""),
            "of a project that has none": partial(copies.provide, network=network, project="new", actor=""),
            "unused": partial(copies.drop_unused, network="copied", home=home, actor=""),
            "containers": partial(prefixes.lock_containers, network="copied", namespace_id=home),
        }
    )
    # What concerns every copy reads each of them: its prefix, its namespace, its free blocks.
    await plans.check(
        {
            "accounts": partial(copies.accounts, networks=[network]),
            "all of them": partial(copies.hold, network="copied"),
        },
        reads=4 * 200,
    )


async def test_a_page_of_overlaps_reads_what_overlaps_and_not_all_prefixes(plans: Plans) -> None:
    """A thousand namespaces have the same root: the partners of one root are sorted, and those of one more."""
    for after in ((0, 0), (20_500, 20_700)):
        page = partial(places.overlaps, after=after, limit=51)
        _, cost = await plans.cost(page), await plans.cost(page)
        assert cost.rows <= 2 * 1000 + 500, cost


async def test_addresses_are_read_by_page(plans: Plans) -> None:
    async with plans.db.connection() as conn:
        full = await conn.fetchval("SELECT id FROM prefix WHERE cidr = '11.0.0.0/16'")
    cases = {}
    for place, after in (("first", None), ("later", (full, "11.0.40.0"))):
        for name, filters in {
            "all": {},
            "project of many": {"project": "big"},
            "project of few": {"project": "rare"},
            "no project": {"project": "none"},
            "network of many": {"network": "n00001"},
            "network of few": {"network": "n00002"},
            "network of none": {"network": "n00009"},
            "owner": {"owner": Owner("allocation", "a7")},
            "seen by a project of many": {"visible_to": ["big"]},
            "seen by a project of few": {"visible_to": ["rare"]},
            "seen by two": {"visible_to": ["big", "rare"]},
        }.items():
            cases[f"{name}, {place} page"] = address_page(**filters, after=after)
    await plans.check(cases)
    # Resting addresses are nobody's and left out, but stand in the same index.
    resting = {"network of resting ones": address_page(network="n00004")}
    await plans.check(resting, reads=20000)


async def test_a_page_deep_in_a_prefix_reads_what_it_shows(plans: Plans) -> None:
    """The place where a page begins is found by an index, not by reading what comes before it."""
    async with plans.db.connection() as conn:
        [home] = await conn.fetch("SELECT id, network_id FROM prefix WHERE cidr = '11.0.0.0/16'")
    cases: list[dict[str, Any]] = [{}, {"visible_to": ["big"]}, {"visible_to": ["big", "rare"]}]
    for filters in cases:
        page = address_page(network=home["network_id"], after=(home["id"], "11.0.70.0"), **filters)
        _, cost = await plans.cost(page), await plans.cost(page)
        assert cost.blocks <= 40, cost


async def test_what_one_owner_does_costs_the_same_in_a_large_plane(plans: Plans) -> None:
    owner = Owner("allocation", "a7")

    async def released(conn: Connection) -> None:
        await addresses.release(conn, await addresses.owned(conn, owner, limit=100), actor="")

    async def specific(conn: Connection) -> None:
        home = await conn.fetchval("SELECT id FROM prefix WHERE cidr = '11.0.0.0/16'")
        entry = addresses.Entry(owner=owner, request_id="new")
        assert (await addresses.acquire_specific(conn, home, IPv4Address("11.0.200.1"), entry)).outcome == "ok"

    async with plans.db.transaction(purpose="test") as conn:
        changed = await conn.fetchval("SELECT max(xid)::text::bigint FROM history WHERE object <<= '14.0.0.0/8'")

    await plans.check(
        {
            "network": partial(networks.get, network_id="n00007", lock="FOR UPDATE"),
            "networks": partial(networks.get_many, network_ids=["n00007", "super"]),
            "children": partial(networks.children, network_id="super", limit=10),
            "super": partial(networks.super_of_partition, partition="p1"),
            "leaves": partial(prefixes.leaves, networks=["n00007", "n00001"]),
            "delete network": partial(networks.delete, network_id="alone"),
            "by requests": partial(addresses.by_requests, request_ids=["r7", "t7", "new"]),
            "specific": specific,
            "release": released,
            "find": partial(addresses.find, address=IPv4Address("11.0.0.7"), network=""),
            "hold": partial(owners.hold, owner=owner),
            "end": partial(owners.end, owner=owner),
            "detach": partial(addresses.detach_static, owner=owner, actor=""),
            "release numbers": partial(numbers.release, owner=Owner("network", "n7"), actor=""),
            "numbers": partial(numbers.numbers, pool="vrf", after=5000, limit=51),
            "pools": partial(numbers.pools, after="", limit=51),
            "by labels": partial(networks.with_labels, project="q7", labels={"zone": "7"}, limit=20),
            "changes": partial(address_changes.after, place=(changed, 0), limit=100),
            "quota": partial(quotas.hold, project="q7"),
            "limited": partial(quotas.limited, projects=["q7", "big"]),
            "held of few": partial(quotas.held, project="q7"),
            "quotas": partial(quotas.page, after="n", limit=51),
        }
    )


@pytest.mark.parametrize("limit", [5, 500])
async def test_what_has_rested_is_found_by_its_time(plans: Plans, limit: int) -> None:
    await plans.check(
        {
            "addresses": partial(addresses.end_quarantine, limit=limit),
            "numbers": partial(numbers.end_quarantine, limit=limit),
            "requests": partial(addresses.forget_requests, limit=limit),
            "owners": partial(owners.forget, limit=limit),
        }
    )


async def test_taking_and_giving_back_cost_the_same_at_any_fill(plans: Plans) -> None:
    """Of 20,000 addresses with thousands of gaps, of 100 without; and of 20,000 numbers and 100."""
    async with plans.db.connection() as conn:
        rows = await conn.fetch("SELECT network_id, id FROM prefix WHERE masklen(cidr) = 16")
        assert await conn.fetchval("SELECT count(*) FROM free_range") > 2000
    home = {row["network_id"]: row["id"] for row in rows}

    def acquire(network: str) -> Call:
        entries = [addresses.Entry(owner=Owner("allocation", "new"), request_id=f"new{n}") for n in range(3)]
        return partial(addresses.acquire_next, prefix_id=home[network], entries=entries)

    def release(owner: str) -> Call:
        async def call(conn: Connection) -> None:
            found = await addresses.owned(conn, Owner("allocation", owner), limit=1)
            assert await addresses.release(conn, found, actor="") == ["ok"]

        return call

    def at_once(network: str, address: str, owner: str, *others: addresses.Work) -> Call:
        """Release one, acquire three, together with what is asked of other prefixes."""
        going = addresses.Release(ip_address(address), None, owner=Owner("allocation", owner), request_id="x")
        wanted = [addresses.Entry(request_id=f"new{n}") for n in range(3)]
        works = sorted((addresses.Work(home[network], wanted, [going]), *others), key=lambda work: work.prefix_id)

        async def call(conn: Connection) -> None:
            served = await addresses.serve(conn, works)
            mine = served[[work.prefix_id for work in works].index(home[network])]
            assert [each.outcome for each in (*mine.released, *mine.acquired)] == ["ok"] * 4

        return call

    def many(network: str) -> Call:
        async def call(conn: Connection) -> None:
            outcome, texts, _ = await addresses.acquire_many(conn, home[network], 3, addresses.Entry(), "new")
            assert (outcome, len(texts)) == ("ok", 3)

        return call

    resting = addresses.Work(home["n00004"], [addresses.Entry()], [])

    def number(pool: str) -> Call:
        return partial(numbers.acquire, pool=pool, owner=Owner("network", "new"), actor="")

    def give(pool: str) -> Call:
        return partial(numbers.release, owner=Owner("network", "n50"), pool=pool, actor="")

    for full, empty in (
        (acquire("n00001"), acquire("n00002")),
        (release("a7"), release("b7")),
        (at_once("n00001", "11.0.0.7", "a1"), at_once("n00002", "12.0.0.7", "b7")),
        (at_once("n00001", "11.0.0.7", "a1", resting), at_once("n00002", "12.0.0.7", "b7", resting)),
        (many("n00001"), many("n00002")),
        (number("vrf"), number("asn")),
        (give("vrf"), give("asn")),
    ):
        # The first run also reads the catalogue, to prepare the statements of the functions.
        _, much, little = await plans.cost(full), await plans.cost(full), await plans.cost(empty)
        assert much.rows <= little.rows + 10, (much, little)
        assert much.blocks <= 1.5 * little.blocks + 30, (much, little)
