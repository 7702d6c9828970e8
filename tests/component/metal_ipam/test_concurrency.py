"""Many at once, cut off midway, and without a database: nothing is handed out twice, nothing leaks."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from metal_ipam.acquisition import Acquisition
from metal_ipam.coalescer import Coalescer
from metal_ipam.store import addresses
from metal_ipam.store.addresses import Entry
from metal_kit.db import Database
from metal_kit.errors import (
    Aborted,
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    Problem,
    ResourceExhausted,
    Unavailable,
)
from metal_lab.servers import Postgres
from metalplane.common.v1.condition_pb2 import AddressFamily
from metalplane.ipam.v1 import ip_pb2, network_pb2, pool_pb2, prefix_pb2
from metalplane.ipam.v1.ip_pb2 import IpWish

PROJECT = "0198c1d2-0000-7000-8000-00000000000a"
V4, V6 = AddressFamily.ADDRESS_FAMILY_IPV4, AddressFamily.ADDRESS_FAMILY_IPV6


def owner(name: str) -> ip_pb2.Owner:
    return ip_pb2.Owner(kind=ip_pb2.OWNER_KIND_ALLOCATION, id=name)


@pytest.mark.parametrize("cidr", ["198.51.100.0/24", "2001:db8::/120"])
async def test_thirty_two_clients_of_two_replicas_get_each_address_once(ipam: Any, cidr: str) -> None:
    await ipam.external("net", cidr)
    await ipam.add_replica()
    stubs = [ipam.ips(replica=0), ipam.ips(replica=1)]
    held: set[str] = set()
    random_ = random.Random(7)

    async def client(number: int) -> None:
        stub, mine = stubs[number % 2], list[str]()
        for _ in range(12):
            if mine and random_.random() < 0.4:
                address = mine.pop()
                held.remove(address)
                await stub.ReleaseIp(ip_pb2.ReleaseIpRequest(address=address, network="net"))
                continue
            [ip] = await ipam.acquire(IpWish(network="net"), stub=stub)
            assert ip.address not in held
            held.add(ip.address)
            mine.append(ip.address)

    await asyncio.gather(*(client(number) for number in range(32)))
    assert {ip.address for ip in await ipam.list_ips()} == held


async def test_the_last_addresses_go_to_exactly_as_many_callers(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/28")

    async def try_one() -> str:
        try:
            return str((await ipam.acquire(IpWish(network="net")))[0].address)
        except ResourceExhausted:
            return ""

    got = Counter(await asyncio.gather(*(try_one() for _ in range(40))))
    assert got.pop("") == 40 - 14
    assert sorted(got.values()) == [1] * 14


async def test_dual_stack_calls_in_both_orders_neither_deadlock_nor_keep_halves(ipam: Any) -> None:
    await ipam.external("one", "198.51.100.0/27", "2001:db8:1::/64")
    await ipam.external("two", "203.0.113.0/27", "2001:db8:2::/64")

    async def call(number: int) -> int:
        wishes = [IpWish(network="one"), IpWish(network="two", count=2)]
        try:
            return len(await ipam.acquire(*(wishes if number % 2 else reversed(wishes))))
        except (ResourceExhausted, Aborted):
            return 0

    counts = await asyncio.gather(*(call(number) for number in range(24)))
    assert counts.count(6) == 15  # 30 usable addresses in the smallest, two a call
    listed = Counter((ip.network, ":" in ip.address) for ip in await ipam.list_ips())
    assert listed == {("one", False): 15, ("one", True): 15, ("two", False): 30, ("two", True): 30}


async def test_the_same_request_in_two_replicas_at_once_has_one_effect(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24", "2001:db8::/64")
    await ipam.add_replica()
    for wish in (IpWish(network="net", family=V4), IpWish(network="net")):
        request_id = str(uuid4())
        answers = await asyncio.gather(
            *(ipam.acquire(wish, stub=ipam.ips(replica=n % 2), request_id=request_id) for n in range(8))
        )
        assert len({tuple(ip.address for ip in answer) for answer in answers}) == 1
    assert len(await ipam.list_ips()) == 3


async def test_overlapping_creations_in_two_replicas_leave_a_set_without_overlaps(ipam: Any) -> None:
    await ipam.add_replica()
    random_ = random.Random(11)
    cidrs = [f"10.0.{random_.randrange(0, 16)}.0/24" for _ in range(30)] + ["10.0.0.0/22", "10.0.8.0/21"] * 5

    async def create(number: int, cidr: str) -> str:
        try:
            await ipam.external(f"net-{number}", cidr, vrf=number + 1)
        except AlreadyExists:
            return ""
        return cidr

    created = await asyncio.gather(*(create(number, cidr) for number, cidr in enumerate(cidrs)))
    answer = await ipam.prefixes().ListPrefixes(prefix_pb2.ListPrefixesRequest(page_size=500))
    assert sorted(p.cidr for p in answer.prefixes) == sorted(filter(None, created))
    pools = await ipam.pools().ListPools(pool_pb2.ListPoolsRequest())
    assert next(p.used for p in pools.pools if p.id == "vrf") == len(answer.prefixes)


async def test_children_are_cut_at_once_without_doubles_and_given_back_at_once(ipam: Any) -> None:
    await ipam.super(prefixes=["10.0.0.0/20"], default_child_prefix_length=(26, 0))
    children = await asyncio.gather(*(ipam.child() for _ in range(30)))
    assert len({child.prefixes[0] for child in children}) == 30
    assert len({child.vrf for child in children}) == 30
    await ipam.clean()
    await asyncio.gather(*(ipam.delete(child.id) for child in children))
    answer = await ipam.prefixes().ListPrefixes(prefix_pb2.ListPrefixesRequest())
    assert [(p.children, p.free) for p in answer.prefixes] == [(0, 4096)]


async def test_deleting_a_network_while_addresses_are_acquired_leaves_no_orphan(ipam: Any) -> None:
    await ipam.super()
    for _ in range(8):
        child = await ipam.child()

        async def acquire(network: str = child.id) -> int:
            try:
                return len(await ipam.acquire(IpWish(network=network, family=V4)))
            except (NotFound, Aborted, FailedPrecondition, ResourceExhausted):
                return 0

        async def delete(network: str = child.id) -> bool:
            try:
                await ipam.delete(network)
            except FailedPrecondition:
                return False
            return True

        deleted, *acquired = await asyncio.gather(delete(), *(acquire() for _ in range(4)))
        assert not (deleted and sum(acquired))
        assert len(await ipam.list_ips(network=child.id)) == sum(acquired)


async def test_a_cancelled_client_takes_nothing_or_finds_its_address_by_the_request_id(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24")
    ids = [str(uuid4()) for _ in range(24)]
    calls = [asyncio.create_task(ipam.acquire(IpWish(network="net"), request_id=request_id)) for request_id in ids]
    await asyncio.sleep(0)
    for number, call in enumerate(calls):
        if number % 2:
            call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    answers = [await ipam.acquire(IpWish(network="net"), request_id=request_id) for request_id in ids]
    assert len({answer[0].address for answer in answers}) == 24
    assert len(await ipam.list_ips()) == 24


async def test_a_batch_serves_in_the_order_of_arrival_and_tells_the_rest_that_it_is_full(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.8/29")
    connection = await asyncpg.connect(ipam.database_url)
    prefix_id = await connection.fetchval("SELECT id FROM ipam.prefix")
    await connection.close()
    db = await Database.open(ipam.database_url, "ipam")
    coalescer = Coalescer(db)
    try:
        entries = [Entry(project=PROJECT, request_id=str(n), actor="test") for n in range(10)]
        entries[5] = entries[2]  # A retry in the same batch as its twin.
        results = await asyncio.gather(*(coalescer.acquire(prefix_id, entry) for entry in entries))
    finally:
        await coalescer.close()
        await db.close()
    assert [r.outcome for r in results] == ["ok"] * 7 + ["full"] * 3
    assert [str(r.address) for r in results[:7]] == [f"198.51.100.{n}" for n in (9, 10, 11, 12, 13, 11, 14)]


@pytest.fixture
async def own_postgres(server_directory: Path) -> AsyncIterator[Postgres]:
    """A Postgres that the test may stop."""
    server = Postgres(server_directory / f"pg-{uuid4().hex[:6]}", durable=False)
    await server.start()
    yield server
    await server.stop()


async def test_without_a_database_every_call_says_unavailable_and_never_not_found(
    own_postgres: Postgres, start_ipam: Callable[..., Awaitable[Any]], eventually: Callable[..., Awaitable[None]]
) -> None:
    ipam = await start_ipam(url=own_postgres.url)
    await ipam.external("net", "198.51.100.0/24")
    [ip] = await ipam.acquire(IpWish(network="net"))
    await own_postgres.stop()
    calls = [
        ipam.acquire(IpWish(network="net")),
        ipam.acquire(IpWish(network="net", address="198.51.100.9")),
        ipam.ips().ReleaseIp(ip_pb2.ReleaseIpRequest(address=ip.address)),
        ipam.ips().GetIp(ip_pb2.GetIpRequest(address=ip.address)),
        ipam.ips().ListIps(ip_pb2.ListIpsRequest()),
        ipam.ips_as_allocation().ReleaseOwned(ip_pb2.ReleaseOwnedRequest(owner=owner("a"))),
        ipam.pools_as_allocation().AcquireNumber(pool_pb2.AcquireNumberRequest(pool="asn", owner=owner("a"))),
        ipam.get("net"),
        ipam.delete("net"),
        ipam.networks().ListNetworks(network_pb2.ListNetworksRequest()),
        ipam.prefixes().ListPrefixes(prefix_pb2.ListPrefixesRequest()),
        ipam.prefixes().VerifyPrefixes(prefix_pb2.VerifyPrefixesRequest()),
        ipam.pools().ListPools(pool_pb2.ListPoolsRequest()),
    ]
    outcomes = [result for call in calls for result in await asyncio.gather(call, return_exceptions=True)]
    assert {type(outcome) for outcome in outcomes} == {Unavailable}, outcomes
    await own_postgres.start()

    async def back() -> bool:
        try:
            return len(await ipam.list_ips()) == 1
        except Problem:
            return False

    await eventually(back, seconds=30, what="the service to find its database again")
    await ipam.clean()


async def test_connections_cut_at_random_lose_no_answered_address_and_leak_none(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24")
    admin = await asyncpg.connect(ipam.database_url)
    ids = [str(uuid4()) for _ in range(60)]
    answered: dict[str, str] = {}

    async def client(request_id: str) -> None:
        try:
            [ip] = await ipam.acquire(IpWish(network="net"), request_id=request_id)
        except (Unavailable, Aborted):
            return
        answered[request_id] = ip.address

    async def cut() -> None:
        for _ in range(6):
            await asyncio.sleep(0.01)
            await admin.fetch(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name = 'metal-ipam'"""
            )

    await asyncio.gather(cut(), *(client(request_id) for request_id in ids))
    await admin.close()
    for request_id in ids:  # What was lost on the way is found, or done, by the retry.
        for _ in range(20):
            try:
                [ip] = await ipam.acquire(IpWish(network="net"), request_id=request_id)
            except (Unavailable, Aborted):
                continue
            break
        assert answered.setdefault(request_id, ip.address) == ip.address
    assert sorted(ip.address for ip in await ipam.list_ips()) == sorted(answered.values())
    assert len(set(answered.values())) == 60


async def test_calls_under_way_while_their_owner_is_released_leave_nothing_behind(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24", "2001:db8::/64")
    service = ipam.ips_as_allocation()
    for round_ in range(6):
        who = owner(f"allocation-{round_}")

        async def acquire(who: ip_pb2.Owner = who) -> None:
            with contextlib.suppress(FailedPrecondition, Aborted):
                await ipam.acquire(IpWish(network="net"), stub=service, owner=who, request_id=str(uuid4()))

        async def number(who: ip_pb2.Owner = who) -> None:
            with contextlib.suppress(FailedPrecondition):
                request = pool_pb2.AcquireNumberRequest(pool="asn", owner=who)
                await ipam.pools_as_allocation().AcquireNumber(request)

        release = service.ReleaseOwned(ip_pb2.ReleaseOwnedRequest(owner=who))
        await asyncio.gather(acquire(), number(), acquire(), release, acquire(), number(), acquire())
        assert await ipam.list_ips(owner=who) == []
        with pytest.raises(FailedPrecondition, match="OWNER_RELEASED"):
            await ipam.acquire(IpWish(network="net"), stub=service, owner=who)
    pools = await ipam.pools().ListPools(pool_pb2.ListPoolsRequest())
    assert next(p.used for p in pools.pools if p.id == "asn") == 0


async def test_connections_cut_while_networks_come_and_go_leave_neither_halves_nor_leaks(ipam: Any) -> None:
    await ipam.super(prefixes=["10.0.0.0/20", "fd00::/48"], default_child_prefix_length=(26, 64))
    admin = await asyncpg.connect(ipam.database_url)

    async def come_and_go(number: int) -> None:
        for _ in range(3):
            with contextlib.suppress(Unavailable, Aborted, NotFound):
                child = await ipam.child()
                if number % 2:
                    await ipam.delete(child.id)

    async def cut() -> None:
        for _ in range(8):
            await asyncio.sleep(0.02)
            await admin.fetch(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name = 'metal-ipam'"""
            )

    await asyncio.gather(cut(), *(come_and_go(number) for number in range(10)))
    state = await admin.fetchrow(
        """SELECT (SELECT count(*) FROM ipam.network WHERE type = 'child') AS networks,
                  (SELECT count(*) FROM ipam.prefix WHERE parent_id IS NOT NULL) AS prefixes,
                  (SELECT count(*) FROM ipam.id_used) AS numbers,
                  (SELECT count(*) FROM ipam.outbox WHERE subject LIKE '%changed') - 1
                  - (SELECT count(*) FROM ipam.outbox WHERE subject LIKE '%deleted') AS events"""
    )
    await admin.close()
    assert state is not None
    assert (state["prefixes"], state["numbers"], state["events"]) == (
        2 * state["networks"], state["networks"], state["networks"],
    )  # fmt: skip


async def test_a_call_that_waits_for_a_lock_ends_at_its_deadline_and_its_retry_finds_the_address(
    ipam: Any, eventually: Callable[..., Awaitable[None]]
) -> None:
    await ipam.external("net", "198.51.100.0/24")
    blocker = await asyncpg.connect(ipam.database_url)
    transaction = blocker.transaction()
    await transaction.start()
    await blocker.execute("SELECT FROM ipam.prefix FOR UPDATE")
    request = ip_pb2.AcquireIpsRequest(project=PROJECT, wishes=[IpWish(network="net")], request_id=str(uuid4()))
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(DeadlineExceeded):
        await ipam.ips().AcquireIps(request, timeout=0.5)
    assert loop.time() - began < 5
    await transaction.rollback()
    await blocker.close()

    async def done() -> bool:
        return len(await ipam.list_ips()) == 1

    await eventually(done, seconds=20, what="the call that was under way to commit")
    answer = await ipam.ips().AcquireIps(request)
    assert [ip.address for ip in answer.ips] == ["198.51.100.1"]
    assert len(await ipam.list_ips()) == 1


async def test_what_comes_late_for_an_address_leaves_its_next_holder_alone(ipam: Any) -> None:
    other = "0198c1d2-0000-7000-8000-00000000000b"
    await ipam.external("net", "198.51.100.0/24")
    [mine] = await ipam.acquire(IpWish(network="net"))
    db = ipam.replicas[0].runtime.require_db()
    async with db.connection() as connection:
        [read] = await addresses.find(connection, ip_address(mine.address), "net")
    # The call that has read this waits, for instance for the prefix; meanwhile its twin and another project are served.
    await ipam.ips().ReleaseIp(ip_pb2.ReleaseIpRequest(address=mine.address, network="net"))
    [theirs] = await ipam.acquire(IpWish(network="net"), project=other, stub=ipam.ips(f"editor {other}"))
    assert theirs.address == mine.address
    with pytest.raises(NotFound):
        await Acquisition(db, Coalescer(db)).release(read, actor="test")
    async with db.transaction(purpose="test: update") as connection:
        assert await addresses.update(connection, replace(read, name="mine"), seen=read.version, actor="test") is None
    [left] = await ipam.list_ips()
    assert (left.project, left.name) == (other, "")


async def test_an_address_that_becomes_static_while_its_owner_lets_go_stays(
    ipam: Any, eventually: Callable[..., Awaitable[None]]
) -> None:
    await ipam.external("net", "198.51.100.0/24")
    await ipam.acquire(IpWish(network="net"), stub=ipam.ips_as_allocation(), owner=owner(PROJECT))
    blocker = await asyncpg.connect(ipam.database_url)
    transaction = blocker.transaction()
    await transaction.start()
    await blocker.execute("SELECT FROM ipam.prefix FOR NO KEY UPDATE")
    release = asyncio.create_task(
        ipam.ips_as_allocation().ReleaseOwned(ip_pb2.ReleaseOwnedRequest(owner=owner(PROJECT)))
    )

    async def waits() -> bool:
        waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return bool(await blocker.fetch(waiting))

    await eventually(waits, what="the release to wait for the prefix")
    ip = ip_pb2.Ip(address="198.51.100.1", network="net", type=ip_pb2.IP_TYPE_STATIC)
    await ipam.ips().UpdateIp(ip_pb2.UpdateIpRequest(ip=ip, update_mask=FieldMask(paths=["type"])))
    await transaction.rollback()
    await blocker.close()
    answer = await release
    assert (answer.released_ips, answer.detached_ips) == (0, 1)
    assert [ip.address for ip in await ipam.list_ips()] == ["198.51.100.1"]
