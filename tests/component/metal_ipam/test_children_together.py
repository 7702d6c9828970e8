"""Children that are cut and deleted many at a time: each call has its own outcome, and each request one effect."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from metal_ipam import prefix_changes
from metal_ipam.cidr import Prefix, parse_prefix
from metal_ipam.family import Family
from metal_ipam.store import children
from metal_ipam.store.children import Wanted
from metal_kit.db import Database
from metal_kit.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from metalplane.common.v1.condition_pb2 import AddressFamily
from metalplane.ipam.v1 import ip_pb2
from metalplane.ipam.v1 import prefix_pb2 as pb
from metalplane.ipam.v1.prefix_pb2_grpc import PrefixServiceStub

CONTAINER = pb.PREFIX_KIND_CONTAINER


def request(parent: str, length: int, **fields: Any) -> pb.AcquireChildPrefixRequest:
    return pb.AcquireChildPrefixRequest(request_id=str(uuid4()), parent=parent, length=length, **fields)


async def outcomes(*calls: Any) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_each_of_a_crowd_gets_what_it_asked_for(ipam: Any) -> None:
    for cidr in ("10.0.0.0/16", "10.1.0.0/16"):
        await ipam.container(cidr)
    await ipam.add_replica()
    stubs = [ipam.prefixes(), ipam.make_stub(ipam.replicas[1], PrefixServiceStub, token="operator")]
    wanted = [
        request("10.0.0.0/16", 24 + n % 3, labels={"number": str(n)}, description=f"number {n}") for n in range(48)
    ]
    wanted += [pb.AcquireChildPrefixRequest(parent="10.1.0.0/16", cidr=f"10.1.{9 * n}.0/24") for n in range(8)]
    wanted += [request("10.0.0.0/16", 26, kind=CONTAINER, all_usable=True)]
    made = await asyncio.gather(*(stubs[n % 2].AcquireChildPrefix(each) for n, each in enumerate(wanted)))
    for one, child in zip(wanted, made, strict=True):
        assert await ipam.get_prefix(child.cidr) == child
        assert parse_prefix(child.cidr, field="cidr").prefixlen == (one.length or 24)
        assert (child.labels, child.description, child.parent) == (one.labels, one.description, one.parent)
    assert len({child.cidr for child in made}) == len(made)
    assert [child.cidr for child in made[48:56]] == [each.cidr for each in wanted[48:56]]
    assert (made[56].kind, made[56].all_usable, made[56].reserved) == (CONTAINER, True, 0)
    await asyncio.gather(
        *(stubs[n % 2].DeletePrefix(pb.DeletePrefixRequest(cidr=each.cidr)) for n, each in enumerate(made))
    )
    parent = await ipam.get_prefix("10.0.0.0/16")
    assert (parent.children, parent.child_used, parent.free) == (0, 0, 65536)


async def test_among_others_a_refused_one_is_told_why(ipam: Any) -> None:
    await ipam.container("10.0.0.0/22")
    stub = ipam.prefixes()
    await ipam.cut("10.0.0.0/22", 0, cidr="10.0.1.0/24")
    calls = [
        stub.AcquireChildPrefix(request("10.0.0.0/22", 24)),
        stub.AcquireChildPrefix(pb.AcquireChildPrefixRequest(parent="10.0.0.0/22", cidr="10.0.1.128/25")),
        stub.AcquireChildPrefix(request("10.0.0.0/22", 20)),
        stub.AcquireChildPrefix(request("10.0.0.0/22", 22)),
        stub.AcquireChildPrefix(request("10.0.0.0/22", 23)),
        stub.AcquireChildPrefix(request("10.0.0.0/22", 23)),
        stub.AcquireChildPrefix(request("10.9.0.0/22", 24)),
    ]
    got = await outcomes(*calls)
    assert got[0].cidr == "10.0.0.0/24"
    expected = (AlreadyExists, InvalidArgument, InvalidArgument, pb.Prefix, ResourceExhausted, NotFound)
    for answer, kind in zip(got[1:], expected, strict=True):
        assert isinstance(answer, kind), answer


async def test_of_two_who_delete_a_prefix_one_did(ipam: Any) -> None:
    await ipam.container("10.0.0.0/16")
    await ipam.cut("10.0.0.0/16", 24)
    held = await ipam.cut("10.0.0.0/16", 24)
    await ipam.take(held.cidr)
    got = await outcomes(*(ipam.drop(cidr) for cidr in ["10.0.0.0/24"] * 4 + [held.cidr, "10.0.0.0/16", "10.7.0.0/24"]))
    assert got[:4].count(None) == 1
    assert all(isinstance(each, NotFound) for each in got[:4] if each is not None)
    assert isinstance(got[4], FailedPrecondition)
    assert got[4].metadata["in_the_way"].startswith("10.0.1.1")
    assert isinstance(got[5], FailedPrecondition)
    assert "10.0.1.0/24" in got[5].metadata["in_the_way"]
    assert isinstance(got[6], NotFound)


async def test_deletions_of_parents_and_children_at_once_end_without_a_child_alone(ipam: Any) -> None:
    await ipam.container("10.0.0.0/8")
    middles = [await ipam.cut("10.0.0.0/8", 16, kind=CONTAINER) for _ in range(6)]
    leaves = [await ipam.cut(middle.cidr, 24) for middle in middles for _ in range(3)]
    cidrs = [each.cidr for each in [*middles, *leaves]]
    async with asyncio.timeout(20):
        while cidrs:
            got = await outcomes(*(ipam.drop(cidr) for cidr in cidrs))
            assert all(each is None or isinstance(each, FailedPrecondition) for each in got), got
            cidrs = [cidr for cidr, each in zip(cidrs, got, strict=True) if each is not None]
    assert (await ipam.get_prefix("10.0.0.0/8")).children == 0


async def test_a_request_keeps_its_child_as_it_is_now(ipam: Any) -> None:
    await ipam.container("10.0.0.0/16")
    stub, asked = ipam.prefixes(), request("10.0.0.0/16", 24, labels={"site": "north"})
    child = await stub.AcquireChildPrefix(asked)
    assert await stub.AcquireChildPrefix(asked) == child
    grown = await stub.GrowPrefix(pb.GrowPrefixRequest(cidr=child.cidr, length=23))
    assert await stub.AcquireChildPrefix(asked) == grown
    await ipam.drop(grown.cidr)
    with pytest.raises(FailedPrecondition, match="REQUEST_SPENT"):
        await stub.AcquireChildPrefix(asked)
    assert (await ipam.get_prefix("10.0.0.0/16")).children == 0


async def test_a_request_by_labels_has_one_child_too(ipam: Any) -> None:
    for cidr in ("10.0.0.0/24", "10.1.0.0/24"):
        await ipam.container(cidr, labels={"site": "north"})
    stub = ipam.prefixes()
    asked = pb.AcquireChildPrefixRequest(
        request_id=str(uuid4()), selector={"site": "north"}, length=25, family=AddressFamily.ADDRESS_FAMILY_IPV4
    )
    answers = await asyncio.gather(*(stub.AcquireChildPrefix(asked) for _ in range(6)))
    assert {each.cidr for each in answers} == {"10.0.0.0/25"}
    await ipam.drop("10.0.0.0/25")
    with pytest.raises(FailedPrecondition, match="REQUEST_SPENT"):
        await stub.AcquireChildPrefix(asked)


async def test_one_request_id_for_two_parents_gets_one_child(ipam: Any) -> None:
    for cidr in ("10.0.0.0/16", "10.1.0.0/16"):
        await ipam.container(cidr)
    one = request("10.0.0.0/16", 24)
    other = pb.AcquireChildPrefixRequest(request_id=one.request_id, parent="10.1.0.0/16", length=24)
    stub = ipam.prefixes()
    got = await outcomes(*(stub.AcquireChildPrefix(each) for each in (one, other) * 3))
    cidrs = {each.cidr for each in got if isinstance(each, pb.Prefix)}
    assert len(cidrs) == 1
    assert {each.reason for each in got if not isinstance(each, pb.Prefix)} == {"REQUEST_ID_REUSED"}
    children = [(await ipam.get_prefix(parent)).children for parent in ("10.0.0.0/16", "10.1.0.0/16")]
    assert sorted(children) == [0, 1]


async def test_space_that_belongs_to_no_prefix_is_found(ipam: Any) -> None:
    connection = await asyncpg.connect(ipam.database_url, timeout=10, server_settings={"search_path": "ipam, public"})
    try:
        await connection.execute("INSERT INTO free_range (prefix_id, lo, hi) VALUES (77, '10.0.0.1', '10.0.0.6')")
        await connection.execute("INSERT INTO free_block (prefix_id, len, cidr) VALUES (77, 24, '10.0.9.0/24')")
        await connection.execute("INSERT INTO ip (namespace_id, addr, prefix_id) VALUES (1, '10.0.0.7', 77)")
        answer = await ipam.prefixes().VerifyPrefixes(pb.VerifyPrefixesRequest())
        assert sorted(answer.findings) == [
            "address 10.0.0.7 belongs to no prefix",
            "free block 10.0.9.0/24 belongs to no prefix",
            "free range 10.0.0.1-10.0.0.6 belongs to no prefix",
        ]
        await connection.execute("DELETE FROM free_range")
        await connection.execute("DELETE FROM free_block")
        await connection.execute("DELETE FROM ip")
    finally:
        await connection.close()


async def test_a_prefix_that_has_addresses_is_not_deleted_whoever_tries(ipam: Any) -> None:
    await ipam.external("net", "10.0.0.0/29", "10.0.1.0/29")
    await ipam.acquire(ip_pb2.IpWish(network="net"))
    connection = await asyncpg.connect(ipam.database_url, timeout=10, server_settings={"search_path": "ipam, public"})
    held = "prefix 10.0.0.0/29 has addresses, 10.0.0.1 for one"
    try:
        with pytest.raises(asyncpg.ForeignKeyViolationError, match=re.escape(held)):
            await connection.execute("DELETE FROM prefix WHERE network_id = 'net'")
    finally:
        await connection.close()


@pytest.fixture
async def root(db: Database) -> Prefix:
    """A container in the namespace `default`."""
    async with db.connection() as connection:
        await connection.execute("SELECT create_root(1, NULL, '10.0.0.0/8', 'container', false, '0', 'test')")
    return parse_prefix("10.0.0.0/8", field="cidr")


async def test_a_crowd_shares_statements(db: Database, root: Prefix, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = children.acquire_at

    async def counted(connection: Any, namespace: str, parent: Prefix, wanted: Any) -> Any:
        sizes.append(len(wanted))
        return await real(connection, namespace, parent, wanted)

    monkeypatch.setattr(children, "acquire_at", counted)
    family = Family(db)
    made = await asyncio.gather(*(family.acquire("default", root, Wanted(length=24)) for _ in range(64)))
    assert len({child.cidr for child in made if child}) == 64
    assert sum(sizes) == 64
    assert len(sizes) <= 8, sizes
    assert all(await asyncio.gather(*(family.delete("default", each.cidr, actor="test") for each in made if each)))
    await family.close()


async def test_a_text_that_postgres_cannot_hold_is_its_own_caller_s_affair(ipam: Any) -> None:
    await ipam.container("10.0.0.0/16")
    stub = ipam.prefixes()
    wanted = [request("10.0.0.0/16", 24, description="\0" if n == 5 else "") for n in range(16)]
    got = await outcomes(*(stub.AcquireChildPrefix(each) for each in wanted))
    assert [n for n, each in enumerate(got) if not isinstance(each, pb.Prefix)] == [5]
    assert got[5].reason == "INVALID_TEXT"
    assert (await ipam.get_prefix("10.0.0.0/16")).children == 15


async def test_who_waits_for_one_parent_is_not_in_the_way_of_others(ipam: Any) -> None:
    parents = [f"{number}.0.0.0/8" for number in range(10, 17)]
    for parent in parents:
        await ipam.container(parent)
    child = await ipam.cut(parents[-1], 24)
    stub = ipam.prefixes()
    holder = await asyncpg.connect(ipam.database_url, timeout=10, server_settings={"search_path": "ipam, public"})
    try:
        async with holder.transaction():
            held = [parse_prefix(each, field="cidr") for each in parents[:6]]
            await holder.execute("SELECT FROM prefix WHERE cidr = ANY ($1::cidr[]) FOR NO KEY UPDATE", held)
            waiting = [asyncio.ensure_future(stub.AcquireChildPrefix(request(each, 24))) for each in parents[:6]]
            gone = asyncio.ensure_future(stub.AcquireChildPrefix(request(parents[0], 25), timeout=1))
            async with asyncio.timeout(5):
                await ipam.drop(child.cidr)
                assert (await ipam.cut(parents[-1], 24)).cidr == child.cidr
            with pytest.raises(DeadlineExceeded):
                await gone
            assert not any(each.done() for each in waiting)
        made = await asyncio.gather(*waiting)
    finally:
        await holder.close()
    assert sorted(each.parent for each in made) == parents[:6]
    # Who gave up has left nothing behind.
    assert (await ipam.get_prefix(parents[0])).children == 1


async def test_a_prefix_named_twice_in_one_deletion_is_refused_whole(db: Database, root: Prefix) -> None:
    async with db.connection() as connection:
        [cut] = await children.acquire_at(connection, "default", root, [Wanted(length=24)])
        assert cut.child is not None
        with pytest.raises(asyncpg.SerializationError):
            await children.delete(connection, [cut.child.id, cut.child.id], actor="test")
        assert await connection.fetchval("SELECT children FROM prefix WHERE parent_id IS NULL") == 1


async def test_a_twin_that_was_faster_while_the_request_waited_tells_what_it_got(db: Database, root: Prefix) -> None:
    wanted = Wanted(length=24, request_id="child of somebody/1", request_hash="hash")
    async with db.connection() as connection:
        [cut] = await children.acquire_at(connection, "default", root, [wanted])
        parent = await prefix_changes.find(connection, "", root)
        # The way of a request that has looked for a twin before there was one.
        late = await prefix_changes.acquire_child(connection, [parent], wanted)
        assert late == cut.child
        with pytest.raises(InvalidArgument, match="REQUEST_ID_REUSED"):
            await prefix_changes.acquire_child(connection, [parent], replace(wanted, request_hash="other"))
