"""Addresses over gRPC: what can be had, by whom, once or again, and how they come back."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from metal_kit.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
)
from metalplane.common.v1.condition_pb2 import AddressFamily
from metalplane.ipam.v1 import ip_pb2, network_pb2, pool_pb2
from metalplane.ipam.v1.ip_pb2 import IpWish

OPERATOR = "operator"
PROJECT = "0198c1d2-0000-7000-8000-00000000000a"
OTHER = "0198c1d2-0000-7000-8000-00000000000b"
V4, V6 = AddressFamily.ADDRESS_FAMILY_IPV4, AddressFamily.ADDRESS_FAMILY_IPV6
ALLOCATION = ip_pb2.Owner(kind=ip_pb2.OWNER_KIND_ALLOCATION, id="0198c1d2-0000-7000-8000-0000000000aa")
ANOTHER = ip_pb2.Owner(kind=ip_pb2.OWNER_KIND_ALLOCATION, id="0198c1d2-0000-7000-8000-0000000000bb")
REQUEST = "b9d3e8a4-0000-4000-8000-000000000001"


@pytest.mark.parametrize(
    ("cidr", "usable"),
    [
        ("198.51.100.4/32", 1), ("198.51.100.4/31", 2), ("198.51.100.4/30", 2), ("198.51.100.8/29", 6),
        ("2001:db8::4/128", 1), ("2001:db8::4/127", 2), ("2001:db8::4/126", 3), ("2001:db8::8/125", 7),
        ("0.0.0.0/29", 6), ("255.255.255.248/29", 6), ("::/125", 7),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff8/125", 7),
    ],
)  # fmt: skip
async def test_every_usable_address_is_handed_out_and_no_other(ipam: Any, cidr: str, usable: int) -> None:
    network = await ipam.external("net", cidr)
    side = network.ipv4 if ":" not in cidr else network.ipv6
    assert (side.total_ips, side.free_ips) == (usable, usable)
    got = [(await ipam.acquire(IpWish(network="net")))[0].address for _ in range(usable)]
    everything = list(ipaddress.ip_network(cidr))
    spared = {0: 0, 1: 0}.get(everything[0].max_prefixlen - ipaddress.ip_network(cidr).prefixlen, 1)
    assert got == [str(a) for a in everything[spared : spared + usable]]
    with pytest.raises(ResourceExhausted) as error:
        await ipam.acquire(IpWish(network="net"))
    assert (error.value.metadata["network"], error.value.metadata["prefixes"]) == ("net", cidr)
    assert (error.value.metadata["used"], error.value.metadata["free"]) == (str(usable), "0")
    await ipam.ips().ReleaseIp(ip_pb2.ReleaseIpRequest(address=got[-1], network="net"))
    assert (await ipam.acquire(IpWish(network="net")))[0].address == got[-1]


async def test_free_falls_and_rises_by_one(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24")
    for used in range(1, 6):
        [ip] = await ipam.acquire(IpWish(network="net"))
        fill = (await ipam.get("net")).ipv4
        assert (fill.used_ips, fill.free_ips) == (used, 254 - used)
    await ipam.ips().ReleaseIp(ip_pb2.ReleaseIpRequest(address=ip.address))
    assert (await ipam.get("net")).ipv4.free_ips == 250


async def test_a_given_address_is_had_once_and_the_holder_is_named_to_his_own_project_only(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24")
    wish = IpWish(network="net", address="198.51.100.7")
    await ipam.acquire(wish, stub=ipam.ips_as_allocation(), owner=ALLOCATION)
    with pytest.raises(AlreadyExists) as error:
        await ipam.acquire(wish)
    assert error.value.metadata["owner"] == ALLOCATION.id
    with pytest.raises(AlreadyExists) as error:
        await ipam.acquire(wish, stub=ipam.ips(f"editor {OTHER}"), project=OTHER)
    assert (error.value.metadata["owner"], error.value.metadata["address"]) == ("", "198.51.100.7")


async def test_addresses_that_cannot_be_had(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24")
    for reserved in ("198.51.100.0", "198.51.100.255"):
        with pytest.raises(FailedPrecondition, match="ADDRESS_RESERVED"):
            await ipam.acquire(IpWish(network="net", address=reserved))
    for outside in ("198.51.101.1", "2001:db8::1"):
        with pytest.raises(OutOfRange, match="ADDRESS_OUTSIDE_NETWORK"):
            await ipam.acquire(IpWish(network="net", address=outside))
    with pytest.raises(FailedPrecondition, match="FAMILY_NOT_IN_NETWORK"):
        await ipam.acquire(IpWish(network="net", family=V6))
    with pytest.raises(NotFound):
        await ipam.acquire(IpWish(network="nowhere"))
    for contradiction in (
        IpWish(network="net", address="198.51.100.1", count=2),
        IpWish(network="net", address="198.51.100.1", family=V4),
        IpWish(network="net", address="198.51.100.300"),
        IpWish(network="net", count=-1),
    ):
        with pytest.raises(InvalidArgument):
            await ipam.acquire(contradiction)
    assert await ipam.list_ips() == []


async def test_who_gets_addresses_of_which_network(ipam: Any) -> None:
    await ipam.super()
    mine, theirs = await ipam.child(), await ipam.child(project=OTHER)
    shared = await ipam.child(project=OTHER, type=network_pb2.NETWORK_TYPE_CHILD_SHARED)
    await ipam.external("internet", "198.51.100.0/24")
    await ipam.create(
        id="their-internet", type=network_pb2.NETWORK_TYPE_EXTERNAL, project=OTHER, prefixes=["203.0.113.0/24"], vrf=50
    )
    await ipam.create(id="underlay", type=network_pb2.NETWORK_TYPE_UNDERLAY, partition="p", prefixes=["10.200.0.0/16"])
    for network in (mine.id, shared.id, "internet"):
        await ipam.acquire(IpWish(network=network, family=V4))
    for network in (theirs.id, "their-internet", "underlay"):
        with pytest.raises(NotFound):
            await ipam.acquire(IpWish(network=network))
    with pytest.raises(FailedPrecondition, match="NETWORK_HAS_NO_ADDRESSES"):
        await ipam.acquire(IpWish(network="super"))
    service = ipam.ips_as_allocation()
    await ipam.acquire(IpWish(network="underlay"), stub=service, owner=ALLOCATION)
    with pytest.raises(FailedPrecondition, match="NETWORK_OF_OTHER_PROJECT"):
        await ipam.acquire(IpWish(network=theirs.id), stub=service, owner=ALLOCATION)
    with pytest.raises(PermissionDenied, match="OWNER_NOT_ALLOWED"):
        await ipam.acquire(IpWish(network=mine.id), owner=ALLOCATION)


async def test_a_dual_stack_wish_gets_both_families_or_nothing(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24", "2001:db8::/127")
    both = await ipam.acquire(IpWish(network="net"))
    assert [ip.address for ip in both] == ["198.51.100.1", "2001:db8::"]
    await ipam.acquire(IpWish(network="net", family=V6))
    with pytest.raises(ResourceExhausted):
        await ipam.acquire(IpWish(network="net"))
    with pytest.raises(AlreadyExists):  # The same when it shows only in the database, after IPv4 was taken there.
        await ipam.acquire(IpWish(network="net", family=V4), IpWish(network="net", address="2001:db8::1"))
    assert (await ipam.get("net")).ipv4.used_ips == 1


async def test_many_wishes_are_answered_in_their_order(ipam: Any) -> None:
    await ipam.external("b-net", "198.51.100.0/29", "203.0.113.0/24", "2001:db8::/64")
    await ipam.external("a-net", "192.0.2.0/24")
    ips = await ipam.acquire(
        IpWish(network="b-net", family=V4, count=8),
        IpWish(network="a-net", count=2),
        IpWish(network="b-net", address="198.51.100.3"),
        IpWish(network="b-net", family=V6),
        name="web", labels={"tier": "front"}, type=ip_pb2.IP_TYPE_STATIC,
    )  # fmt: skip
    first = [f"198.51.100.{n}" for n in (1, 2, 4, 5, 6)] + [f"203.0.113.{n}" for n in (1, 2, 3)]
    rest = ["192.0.2.1", "192.0.2.2", "198.51.100.3", "2001:db8::1"]
    assert [ip.address for ip in ips] == first + rest
    assert {(ip.name, ip.labels["tier"], ip.type) for ip in ips} == {("web", "front", ip_pb2.IP_TYPE_STATIC)}
    listed = await ipam.list_ips()
    assert {ip.address: ip.prefix for ip in listed} == {ip.address: ip.prefix for ip in ips}


@pytest.mark.parametrize("wishes", [[IpWish(network="net", family=V4)], [IpWish(network="net")]])
async def test_a_repeated_request_gets_the_same_answer_and_takes_nothing(ipam: Any, wishes: list[IpWish]) -> None:
    await ipam.external("net", "198.51.100.0/31", "2001:db8::/127")
    first = await ipam.acquire(*wishes, request_id=REQUEST)
    await ipam.acquire(IpWish(network="net"))  # Full now: the answer does not depend on what is free.
    assert await ipam.acquire(*wishes, request_id=REQUEST) == first
    with pytest.raises(InvalidArgument, match="REQUEST_ID_REUSED"):
        await ipam.acquire(*wishes, request_id=REQUEST, name="another")
    assert len(await ipam.list_ips()) == len(first) + 2
    for ip in first:
        await ipam.ips().ReleaseIp(ip_pb2.ReleaseIpRequest(address=ip.address))
    with pytest.raises(FailedPrecondition, match="REQUEST_SPENT"):
        await ipam.acquire(*wishes, request_id=REQUEST)


async def test_two_projects_may_use_the_same_request_id(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24")
    [mine] = await ipam.acquire(IpWish(network="net"), request_id=REQUEST)
    [theirs] = await ipam.acquire(
        IpWish(network="net"), stub=ipam.ips(f"editor {OTHER}"), project=OTHER, request_id=REQUEST
    )
    assert mine.address != theirs.address


async def test_an_owner_lets_go_of_exactly_what_it_has(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24", "2001:db8::/64")
    service = ipam.ips_as_allocation()
    await ipam.acquire(IpWish(network="net", count=3), stub=service, owner=ALLOCATION)
    [static] = await ipam.acquire(
        IpWish(network="net", family=V4), stub=service, owner=ALLOCATION, type=ip_pb2.IP_TYPE_STATIC
    )
    others = await ipam.acquire(IpWish(network="net", count=2), stub=service, owner=ANOTHER)
    await ipam.pools_as_allocation().AcquireNumber(pool_pb2.AcquireNumberRequest(pool="asn", owner=ALLOCATION))
    released = await service.ReleaseOwned(ip_pb2.ReleaseOwnedRequest(owner=ALLOCATION))
    assert (released.released_ips, released.detached_ips, released.released_numbers) == (6, 1, 1)
    again = await service.ReleaseOwned(ip_pb2.ReleaseOwnedRequest(owner=ALLOCATION))
    assert (again.released_ips, again.detached_ips, again.released_numbers) == (0, 0, 0)
    left = {ip.address: ip.owner.id for ip in await ipam.list_ips()}
    assert left == {ip.address: ANOTHER.id for ip in others} | {static.address: ""}


async def test_a_retry_that_comes_after_the_owner_was_released_leaks_nothing(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24")
    service = ipam.ips_as_allocation()
    await ipam.acquire(IpWish(network="net"), stub=service, owner=ALLOCATION, request_id=REQUEST)
    await service.ReleaseOwned(ip_pb2.ReleaseOwnedRequest(owner=ALLOCATION))
    with pytest.raises(FailedPrecondition, match="REQUEST_SPENT"):
        await ipam.acquire(IpWish(network="net"), stub=service, owner=ALLOCATION, request_id=REQUEST)
    assert await ipam.list_ips() == []


async def test_an_address_is_attached_to_one_owner_and_stays_with_the_project(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24")
    [ip] = await ipam.acquire(IpWish(network="net"), type=ip_pb2.IP_TYPE_STATIC)
    service = ipam.ips_as_allocation()
    request = ip_pb2.AttachIpRequest(address=ip.address, network="net", project=PROJECT, owner=ALLOCATION)
    attached = await service.AttachIp(request)
    assert await service.AttachIp(request) == attached
    request.owner.CopyFrom(ANOTHER)
    with pytest.raises(FailedPrecondition) as error:
        await service.AttachIp(request)
    assert error.value.metadata["owner"] == ALLOCATION.id
    with pytest.raises(NotFound):
        await service.AttachIp(ip_pb2.AttachIpRequest(address=ip.address, project=OTHER, owner=ANOTHER))
    with pytest.raises(FailedPrecondition, match="IP_IN_USE"):
        await ipam.ips().ReleaseIp(ip_pb2.ReleaseIpRequest(address=ip.address))
    await service.ReleaseOwned(ip_pb2.ReleaseOwnedRequest(owner=ALLOCATION))
    assert not (await ipam.ips().GetIp(ip_pb2.GetIpRequest(address=ip.address))).HasField("owner")
    await ipam.ips().ReleaseIp(ip_pb2.ReleaseIpRequest(address=ip.address))


async def test_an_address_becomes_static_and_never_ephemeral_again(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24")
    [ip] = await ipam.acquire(IpWish(network="net"))
    stub = ipam.ips()
    change = ip_pb2.UpdateIpRequest(
        ip={"address": ip.address, "type": ip_pb2.IP_TYPE_STATIC, "name": "web", "etag": ip.etag}
    )
    changed = await stub.UpdateIp(change)
    assert (changed.type, changed.name, changed.etag) == (ip_pb2.IP_TYPE_STATIC, "web", "2")
    assert await stub.GetIp(ip_pb2.GetIpRequest(address=ip.address)) == changed
    with pytest.raises(FailedPrecondition, match="IP_IS_STATIC"):
        await stub.UpdateIp(ip_pb2.UpdateIpRequest(ip={"address": ip.address, "type": ip_pb2.IP_TYPE_EPHEMERAL}))
    with pytest.raises(InvalidArgument, match="IMMUTABLE_FIELD"):
        await stub.UpdateIp(
            ip_pb2.UpdateIpRequest(ip={"address": ip.address, "project": OTHER}, update_mask={"paths": ["project"]})
        )


async def test_strangers_see_and_change_nothing(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24")
    [ip] = await ipam.acquire(IpWish(network="net"))
    stranger, member = ipam.ips(f"editor {OTHER}"), ipam.ips(f"member {PROJECT}")
    with pytest.raises(NotFound):
        await stranger.GetIp(ip_pb2.GetIpRequest(address=ip.address))
    with pytest.raises(NotFound):
        await stranger.ReleaseIp(ip_pb2.ReleaseIpRequest(address=ip.address))
    assert not (await stranger.ListIps(ip_pb2.ListIpsRequest())).ips
    assert not (await stranger.ListIps(ip_pb2.ListIpsRequest(project=PROJECT))).ips
    assert (await member.GetIp(ip_pb2.GetIpRequest(address=ip.address))).address == ip.address
    with pytest.raises(PermissionDenied):
        await member.ReleaseIp(ip_pb2.ReleaseIpRequest(address=ip.address))


async def test_releasing_what_is_not_in_use_is_not_found_and_frees_nothing(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/29")
    for address in ("198.51.100.0", "198.51.100.7", "198.51.100.3", "203.0.113.1"):
        with pytest.raises(NotFound):
            await ipam.ips(OPERATOR).ReleaseIp(ip_pb2.ReleaseIpRequest(address=address, network="net"))
    assert (await ipam.get("net")).ipv4.free_ips == 6


@pytest.mark.parametrize("network", ["net", ""])
async def test_a_late_retry_of_a_release_does_not_take_the_address_from_the_next_holder(
    ipam: Any, network: str
) -> None:
    await ipam.external("net", "198.51.100.0/24")
    [mine] = await ipam.acquire(IpWish(network="net"))
    request = ip_pb2.ReleaseIpRequest(address=mine.address, network=network, create_time=mine.create_time)
    await ipam.ips().ReleaseIp(request)
    [next_one] = await ipam.acquire(IpWish(network="net"))
    assert next_one.address == mine.address
    for token in (f"editor {PROJECT}", "operator"):
        with pytest.raises(NotFound):
            await ipam.ips(token).ReleaseIp(request)
    assert await ipam.list_ips() == [next_one]
    request.create_time.seconds = 2**40
    with pytest.raises(InvalidArgument) as error:
        await ipam.ips().ReleaseIp(request)
    assert error.value.field == "create_time"


async def test_lists_of_addresses_are_paged_without_gaps(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/28", "203.0.113.0/28", "2001:db8::/124")
    taken = await ipam.acquire(IpWish(network="net", family=V4, count=20), IpWish(network="net", family=V6, count=9))
    found: list[str] = []
    request = ip_pb2.ListIpsRequest(project=PROJECT, network="net", page_size=4)
    while True:
        page = await ipam.ips(f"member {PROJECT}").ListIps(request)
        found += [ip.address for ip in page.ips]
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert sorted(found) == sorted(ip.address for ip in taken)
    assert len(set(found)) == 29


async def test_a_released_address_rests_before_it_is_handed_out_again(
    start_ipam: Callable[..., Awaitable[Any]], eventually: Callable[..., Awaitable[None]]
) -> None:
    ipam = await start_ipam(address_quarantine_seconds=3600)
    await ipam.external("net", "198.51.100.0/30")
    [ip] = await ipam.acquire(IpWish(network="net"))
    await ipam.ips().ReleaseIp(ip_pb2.ReleaseIpRequest(address=ip.address))
    assert await ipam.list_ips() == []
    fill = (await ipam.get("net")).ipv4
    assert (fill.used_ips, fill.free_ips) == (1, 1)
    with pytest.raises(FailedPrecondition, match="ADDRESS_RESTS"):
        await ipam.acquire(IpWish(network="net", address=ip.address))
    assert [i.address for i in await ipam.acquire(IpWish(network="net"))] == ["198.51.100.2"]
    connection = await asyncpg.connect(ipam.database_url)
    await connection.execute("UPDATE ipam.ip SET release_after = now() WHERE state = 'quarantine'")
    await connection.close()

    async def free() -> bool:
        return (await ipam.get("net")).ipv4.free_ips == 1

    await eventually(free, seconds=30, what="the rested address to be free")
    assert [i.address for i in await ipam.acquire(IpWish(network="net"))] == ["198.51.100.1"]
    await ipam.clean()


async def test_a_network_with_resting_addresses_only_can_be_deleted(
    start_ipam: Callable[..., Awaitable[Any]],
) -> None:
    ipam = await start_ipam(address_quarantine_seconds=3600)
    await ipam.super()
    child = await ipam.child()
    ips = await ipam.acquire(IpWish(network=child.id))
    for ip in ips:
        await ipam.ips().ReleaseIp(ip_pb2.ReleaseIpRequest(address=ip.address))
    await ipam.delete(child.id)
    await ipam.clean()
