"""Prefixes on their own: roots, children, growing, ranges, lookups, overlaps and history."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from metal_kit.errors import (
    Aborted,
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
from metalplane.ipam.v1 import prefix_pb2 as pb

CONTAINER = pb.PREFIX_KIND_CONTAINER


async def grow(ipam: Any, cidr: str, length: int, namespace: str = "") -> pb.Prefix:
    request = pb.GrowPrefixRequest(namespace=namespace, cidr=cidr, length=length)
    answer: pb.Prefix = await ipam.prefixes().GrowPrefix(request)
    return answer


async def reserve(ipam: Any, cidr: str, first: str, last: str = "", label: str = "pool") -> pb.ReservedRange:
    request = pb.ReserveRangeRequest(cidr=cidr, first=first, last=last, label=label)
    answer: pb.ReservedRange = await ipam.prefixes().ReserveRange(request)
    return answer


async def unreserve(ipam: Any, cidr: str, first: str, last: str = "") -> None:
    await ipam.prefixes().UnreserveRange(pb.UnreserveRangeRequest(cidr=cidr, first=first, last=last))


async def reserved(ipam: Any, cidr: str) -> list[tuple[str, str, str]]:
    answer = await ipam.prefixes().ListReservedRanges(pb.ListReservedRangesRequest(cidr=cidr))
    return [(each.first, each.last, each.label) for each in answer.ranges]


async def places(ipam: Any, address: str, **fields: Any) -> list[pb.AddressPlace]:
    answer = await ipam.prefixes().ListAddressPlaces(pb.ListAddressPlacesRequest(address=address, **fields))
    return list(answer.places)


async def update(ipam: Any, prefix: pb.Prefix, *fields: str) -> pb.Prefix:
    request = pb.UpdatePrefixRequest(prefix=prefix, update_mask=FieldMask(paths=fields))
    answer: pb.Prefix = await ipam.prefixes().UpdatePrefix(request)
    return answer


async def test_children_of_any_length_fit_best_and_a_full_parent_tells_its_largest_free_blocks(ipam: Any) -> None:
    await ipam.container("10.0.0.0/20")
    assert (await ipam.cut("10.0.0.0/20", 21)).cidr == "10.0.0.0/21"
    assert (await ipam.cut("10.0.0.0/20", 22)).cidr == "10.0.8.0/22"
    with pytest.raises(ResourceExhausted) as error:
        await ipam.cut("10.0.0.0/20", 21)
    assert error.value.metadata["prefixes"] == "10.0.0.0/20"
    assert error.value.metadata["largest_free"] == "10.0.12.0/22"
    assert "2 children" in error.value.message
    assert (await ipam.cut("10.0.0.0/20", 28)).cidr == "10.0.12.0/28"
    await ipam.drop("10.0.8.0/22")
    # The whole /22 fits best although the cut one begins lower.
    assert (await ipam.cut("10.0.0.0/20", 22)).cidr == "10.0.8.0/22"
    assert await ipam.list_prefixes(parent="10.0.0.0/20") == ["10.0.0.0/21", "10.0.8.0/22", "10.0.12.0/28"]
    parent = await ipam.get_prefix("10.0.0.0/20")
    assert (parent.children, parent.child_used, parent.free) == (3, 2048 + 1024 + 16, 4096 - 3088)


async def test_a_given_child_is_had_once_and_what_is_in_the_way_is_named(ipam: Any) -> None:
    await ipam.container("10.0.0.0/16")
    child = await ipam.cut("10.0.0.0/16", cidr="10.0.7.0/24")
    assert (child.cidr, child.parent, child.size, child.free) == ("10.0.7.0/24", "10.0.0.0/16", 256, 254)
    with pytest.raises(AlreadyExists) as error:
        await ipam.cut("10.0.0.0/16", cidr="10.0.6.0/23")
    assert error.value.metadata["prefix"] == "10.0.7.0/24"
    with pytest.raises(OutOfRange):
        await ipam.cut("10.0.0.0/16", cidr="10.1.0.0/24")
    with pytest.raises(InvalidArgument) as canonical:
        await ipam.cut("10.0.0.0/16", cidr="10.0.8.1/24")
    assert canonical.value.metadata["canonical"] == "10.0.8.0/24"
    with pytest.raises(FailedPrecondition, match="PREFIX_IS_LEAF"):
        await ipam.cut("10.0.7.0/24", 26)
    with pytest.raises(NotFound):
        await ipam.cut("10.9.0.0/16", 24)
    for wrong in ({"length": 24, "cidr": "10.0.9.0/24"}, {}):
        with pytest.raises(InvalidArgument, match="LENGTH_OR_CIDR"):
            await ipam.cut("10.0.0.0/16", **wrong)


async def test_a_child_takes_the_first_parent_with_its_labels_that_has_room(ipam: Any) -> None:
    for third in (0, 1, 2):
        labels = {"site": "north", "use": "racks"} if third < 2 else {"site": "south"}
        await ipam.container(f"10.0.{third}.0/24", labels=labels)
    await ipam.container("fd00::/48", labels={"site": "north"})
    wanted = {"selector": {"site": "north"}, "family": AddressFamily.ADDRESS_FAMILY_IPV4}
    got = [(await ipam.cut("", 25, **wanted)).cidr for _ in range(4)]
    assert got == ["10.0.0.0/25", "10.0.0.128/25", "10.0.1.0/25", "10.0.1.128/25"]
    with pytest.raises(ResourceExhausted) as error:
        await ipam.cut("", 25, **wanted)
    assert error.value.metadata["prefixes"] == "10.0.0.0/24,10.0.1.0/24"
    assert (await ipam.cut("", cidr="fd00:0:0:7::/64", selector={"site": "north"})).parent == "fd00::/48"
    with pytest.raises(NotFound, match="site=west"):
        await ipam.cut("", 25, selector={"site": "west"}, family=AddressFamily.ADDRESS_FAMILY_IPV4)
    with pytest.raises(InvalidArgument, match="FAMILY_MISSING"):
        await ipam.cut("", 25, selector={"site": "north"})
    with pytest.raises(InvalidArgument, match="PARENT_OR_SELECTOR"):
        await ipam.cut("10.0.0.0/24", 25, selector={"site": "north"})


async def test_a_repeated_creation_gets_the_first_answer(ipam: Any) -> None:
    request = pb.CreatePrefixRequest(request_id=str(uuid4()), prefix=pb.Prefix(cidr="10.0.0.0/16", kind=CONTAINER))
    first = await ipam.prefixes().CreatePrefix(request)
    assert await ipam.prefixes().CreatePrefix(request) == first
    child = pb.AcquireChildPrefixRequest(request_id=str(uuid4()), parent="10.0.0.0/16", length=24)
    answers = await asyncio.gather(*(ipam.prefixes().AcquireChildPrefix(child) for _ in range(8)))
    assert {each.cidr for each in answers} == {"10.0.0.0/24"}
    assert (await ipam.get_prefix("10.0.0.0/16")).children == 1
    child.length = 25
    with pytest.raises(InvalidArgument, match="REQUEST_ID_REUSED"):
        await ipam.prefixes().AcquireChildPrefix(child)


async def test_a_prefix_created_for_a_network_is_the_network_s(ipam: Any) -> None:
    before = await ipam.external("internet", "203.0.113.0/28")
    made = await ipam.prefix("198.51.100.0/28", network="internet")
    after = await ipam.get("internet")
    assert (made.network, sorted(after.prefixes)) == ("internet", ["198.51.100.0/28", "203.0.113.0/28"])
    assert after.etag != before.etag
    grown = await grow(ipam, "198.51.100.0/28", 27)
    assert grown.cidr in (await ipam.get("internet")).prefixes
    assert (await ipam.get("internet")).etag != after.etag
    with pytest.raises(FailedPrecondition, match="PREFIX_OF_NETWORK"):
        await ipam.drop("198.51.100.0/27")
    with pytest.raises(FailedPrecondition, match="PREFIX_OF_NETWORK"):
        await ipam.take("198.51.100.0/27")
    with pytest.raises(NotFound):
        await ipam.prefix("192.0.2.0/28", network="no such")
    with pytest.raises(AlreadyExists):
        await ipam.prefix("203.0.113.0/28", network="internet")


@pytest.mark.parametrize(
    ("cidr", "usable"),
    [
        ("255.255.255.252/30", ["255.255.255.253", "255.255.255.254"]),
        ("255.255.255.254/31", ["255.255.255.254", "255.255.255.255"]),
        ("0.0.0.0/32", ["0.0.0.0"]),
        ("2001:db8::/126", ["2001:db8::1", "2001:db8::2", "2001:db8::3"]),
        ("::/127", ["::", "::1"]),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]),
    ],
)
async def test_small_prefixes_give_all_that_is_usable(ipam: Any, cidr: str, usable: list[str]) -> None:
    await ipam.prefix(cidr)
    assert await ipam.take(cidr, count=len(usable)) == usable
    with pytest.raises(ResourceExhausted) as error:
        await ipam.take(cidr)
    assert (error.value.metadata["free"], error.value.metadata["prefixes"]) == ("0", cidr)
    for address in usable:
        await ipam.give_back(address)
    assert await ipam.take(cidr, count=len(usable)) == usable


async def test_a_pool_gives_its_first_and_last_address_too(ipam: Any) -> None:
    await ipam.prefix("192.0.2.0/30", all_usable=True)
    assert await ipam.take("192.0.2.0/30", count=4) == [f"192.0.2.{n}" for n in range(4)]


@pytest.mark.parametrize("cidr", ["10.0.0.0/24", "2001:db8::/32"])
async def test_utilisation_rises_and_falls_by_one_address_at_a_time(ipam: Any, cidr: str) -> None:
    first = await ipam.prefix(cidr)
    seen = [first]
    for _ in range(3):
        await ipam.take(cidr)
        seen.append(await ipam.get_prefix(cidr))
    assert [each.used for each in seen] == [0, 1, 2, 3]
    assert [int(first.exact_free) - int(each.exact_free) for each in seen] == [0, 1, 2, 3]
    assert all(low.utilisation < high.utilisation for low, high in pairwise(seen))
    for ip in await ipam.list_ips():
        await ipam.give_back(ip.address)
    assert await ipam.get_prefix(cidr) == first


async def test_ranges_are_set_aside_and_given_only_when_asked_for_as_reserved(ipam: Any) -> None:
    await ipam.prefix("10.0.0.0/28")
    made = await reserve(ipam, "10.0.0.0/28", "10.0.0.1", label="gateway")
    assert (made.first, made.last, made.label) == ("10.0.0.1", "10.0.0.1", "gateway")
    assert await reserve(ipam, "10.0.0.0/28", "10.0.0.1", label="gateway") == made
    await reserve(ipam, "10.0.0.0/28", "10.0.0.8", "10.0.0.11", "static")
    assert await reserved(ipam, "10.0.0.0/28") == [
        ("10.0.0.0", "10.0.0.0", "network address"),
        ("10.0.0.1", "10.0.0.1", "gateway"),
        ("10.0.0.8", "10.0.0.11", "static"),
        ("10.0.0.15", "10.0.0.15", "broadcast address"),
    ]
    prefix = await ipam.get_prefix("10.0.0.0/28")
    assert (prefix.reserved, prefix.free) == (7, 9)
    with pytest.raises(FailedPrecondition, match="ADDRESS_RESERVED"):
        await ipam.take("10.0.0.0/28", address="10.0.0.9")
    assert await ipam.take("10.0.0.0/28", address="10.0.0.9", from_reserved=True) == ["10.0.0.9"]
    taken = await ipam.take("10.0.0.0/28", count=9)
    assert not set(taken) & {f"10.0.0.{n}" for n in (0, 1, 8, 9, 10, 11, 15)}
    with pytest.raises(FailedPrecondition, match=r"10\.0\.0\.9"):
        await unreserve(ipam, "10.0.0.0/28", "10.0.0.8", "10.0.0.11")
    with pytest.raises(FailedPrecondition, match="RANGE_IN_USE") as error:
        await reserve(ipam, "10.0.0.0/28", "10.0.0.2", "10.0.0.3")
    assert "10.0.0.2 is in state active" in error.value.metadata["in_the_way"]
    await ipam.give_back("10.0.0.9")
    await unreserve(ipam, "10.0.0.0/28", "10.0.0.8", "10.0.0.11")
    assert await ipam.take("10.0.0.0/28", count=4) == [f"10.0.0.{n}" for n in (8, 9, 10, 11)]


async def test_ranges_that_cannot_be(ipam: Any) -> None:
    await ipam.prefix("10.0.0.0/28")
    await ipam.container("10.1.0.0/16")
    with pytest.raises(OutOfRange):
        await reserve(ipam, "10.0.0.0/28", "10.0.0.9", "10.0.0.20")
    with pytest.raises(FailedPrecondition, match="PREFIX_IS_CONTAINER"):
        await reserve(ipam, "10.1.0.0/16", "10.1.0.9")
    for first, last in (("10.0.0.9", "10.0.0.8"), ("10.0.0.9", "fd00::1"), ("10.0.0.9/32", "")):
        with pytest.raises(InvalidArgument):
            await reserve(ipam, "10.0.0.0/28", first, last)
    for first in ("10.0.0.0", "10.0.0.15"):
        with pytest.raises(FailedPrecondition, match="RANGE_STAYS"):
            await unreserve(ipam, "10.0.0.0/28", first)
    with pytest.raises(NotFound):
        await unreserve(ipam, "10.0.0.0/28", "10.0.0.7")


async def test_a_child_grows_into_the_free_space_beside_it_and_keeps_what_it_has(ipam: Any) -> None:
    await ipam.container("10.0.0.0/16")
    for cidr in ("10.0.0.0/24", "10.0.1.0/24", "10.0.4.0/24"):
        await ipam.cut("10.0.0.0/16", cidr=cidr)
    taken = await ipam.take("10.0.1.0/24", count=5)
    with pytest.raises(AlreadyExists) as error:
        await grow(ipam, "10.0.1.0/24", 23)
    assert "10.0.0.0/24" in error.value.metadata["prefix"]
    await ipam.drop("10.0.0.0/24")
    grown = await grow(ipam, "10.0.1.0/24", 22)
    assert (grown.cidr, grown.used, grown.reserved, grown.size) == ("10.0.0.0/22", 5, 2, 1024)
    # The old network and broadcast address are addresses like any other now.
    assert await ipam.take("10.0.0.0/22", address="10.0.1.0") == ["10.0.1.0"]
    assert await ipam.take("10.0.0.0/22", count=1) == ["10.0.0.1"]
    assert set(taken) <= {ip.address for ip in await ipam.list_ips()}
    assert await grow(ipam, "10.0.1.0/24", 22) == await ipam.get_prefix("10.0.0.0/22")
    parent = await ipam.get_prefix("10.0.0.0/16")
    assert (parent.children, parent.child_used) == (2, 1024 + 256)
    assert (await ipam.cut("10.0.0.0/16", 22)).cidr == "10.0.8.0/22"
    for length in (16, 15):
        with pytest.raises(InvalidArgument, match="LENGTH_NOT_ALLOWED"):
            await grow(ipam, "10.0.4.0/24", length)
    with pytest.raises(InvalidArgument, match="LENGTH_NOT_ALLOWED"):
        await grow(ipam, "10.0.4.0/24", 25)


async def test_a_root_grows_unless_another_one_is_there(ipam: Any) -> None:
    await ipam.container("10.0.2.0/24")
    child = await ipam.cut("10.0.2.0/24", 25)
    await ipam.prefix("10.0.0.0/24")
    with pytest.raises(AlreadyExists) as error:
        await grow(ipam, "10.0.2.0/24", 22)
    assert "10.0.0.0/24" in error.value.metadata["prefix"]
    await ipam.drop("10.0.0.0/24")
    grown = await grow(ipam, "10.0.2.0/24", 22)
    assert (grown.cidr, grown.children) == ("10.0.0.0/22", 1)
    assert (await ipam.get_prefix(child.cidr)).parent == "10.0.0.0/22"
    assert (await ipam.cut("10.0.0.0/22", 23)).cidr == "10.0.0.0/23"


async def test_a_prefix_does_not_grow_over_what_is_held_where_its_network_address_would_be(ipam: Any) -> None:
    await ipam.prefix("10.0.0.0/31")
    await ipam.take("10.0.0.0/31", address="10.0.0.0")
    with pytest.raises(FailedPrecondition, match="ADDRESS_IN_USE"):
        await grow(ipam, "10.0.0.0/31", 30)
    await ipam.give_back("10.0.0.0")
    assert (await grow(ipam, "10.0.0.0/31", 30)).free == 2
    await ipam.prefix("fd00::2/127")
    await ipam.take("fd00::2/127", count=2)
    assert (await grow(ipam, "fd00::2/127", 64)).cidr == "fd00::/64"
    assert await ipam.take("fd00::/64", count=2) == ["fd00::1", "fd00::4"]


async def test_labels_status_and_quarantine_are_changed(ipam: Any) -> None:
    await ipam.container("10.0.0.0/16")
    await ipam.prefix("192.0.2.0/28")
    wanted = pb.Prefix(cidr="192.0.2.0/28", status=pb.PREFIX_STATUS_DEPRECATED, labels={"a": "b"}, description="old")
    wanted.quarantine.seconds = 60
    first = await ipam.get_prefix("192.0.2.0/28")
    changed = await update(ipam, wanted)
    assert changed == await ipam.get_prefix("192.0.2.0/28")
    assert (dict(changed.labels), changed.description, changed.quarantine.seconds) == ({"a": "b"}, "old", 60)
    with pytest.raises(ResourceExhausted):
        await ipam.take("192.0.2.0/28")
    assert await ipam.take("192.0.2.0/28", address="192.0.2.9") == ["192.0.2.9"]
    await ipam.give_back("192.0.2.9")
    after = await ipam.get_prefix("192.0.2.0/28")
    assert (after.used, after.quarantined) == (1, 1)
    wanted.etag = first.etag
    with pytest.raises(Aborted):
        await update(ipam, wanted)
    with pytest.raises(InvalidArgument, match="IMMUTABLE_FIELD"):
        await update(ipam, pb.Prefix(cidr="192.0.2.0/28", network="x"), "network")
    await update(ipam, pb.Prefix(cidr="10.0.0.0/16", status=pb.PREFIX_STATUS_RESERVED))
    with pytest.raises(FailedPrecondition, match="PREFIX_NOT_ACTIVE"):
        await ipam.cut("10.0.0.0/16", 24)
    assert (await ipam.cut("10.0.0.0/16", cidr="10.0.3.0/24")).status == pb.PREFIX_STATUS_ACTIVE


async def test_what_is_remembered_of_a_network_does_not_outlive_a_change_of_its_prefix(ipam: Any) -> None:
    await ipam.external("out", "192.0.2.0/28")
    wish = ip_pb2.IpWish(network="out")
    await ipam.acquire(wish)
    await update(ipam, pb.Prefix(cidr="192.0.2.0/28", status=pb.PREFIX_STATUS_DEPRECATED))
    for count in (1, 5):
        with pytest.raises(ResourceExhausted):
            await ipam.acquire(ip_pb2.IpWish(network="out", count=count))
    await update(ipam, pb.Prefix(cidr="192.0.2.0/28", status=pb.PREFIX_STATUS_ACTIVE))
    await grow(ipam, "192.0.2.0/28", 27)
    taken = await ipam.acquire(ip_pb2.IpWish(network="out", count=20))
    assert {ip.prefix for ip in [*taken, *await ipam.acquire(wish)]} == {"192.0.2.0/27"}
    for ip in taken:
        await ipam.ips().ReleaseIp(ip_pb2.ReleaseIpRequest(address=ip.address))
    assert (await ipam.get_prefix("192.0.2.0/27")).used == 2


async def test_an_address_is_found_in_its_longest_prefix_in_each_namespace(ipam: Any) -> None:
    await ipam.namespace("blue")
    await ipam.container("10.0.0.0/8")
    await ipam.cut("10.0.0.0/8", cidr="10.1.0.0/16", kind=CONTAINER)
    await ipam.cut("10.1.0.0/16", cidr="10.1.2.0/24")
    await ipam.prefix("10.1.0.0/16", "blue")
    await ipam.take("10.1.2.0/24", address="10.1.2.3")
    found = await places(ipam, "10.1.2.3")
    assert [(each.namespace, each.prefix.cidr, each.ip.address) for each in found] == [
        ("default", "10.1.2.0/24", "10.1.2.3"),
        ("blue", "10.1.0.0/16", ""),
    ]
    assert [each.prefix.cidr for each in await places(ipam, "10.1.9.9")] == ["10.1.0.0/16"] * 2
    assert [each.prefix.cidr for each in await places(ipam, "10.77.0.1")] == ["10.0.0.0/8"]
    assert [each.namespace for each in await places(ipam, "10.1.2.3", namespace="blue")] == ["blue"]
    assert (await places(ipam, "10.1.0.0", namespace="blue"))[0].reserved.label == "network address"
    assert await places(ipam, "192.0.2.1") == []
    assert await places(ipam, "::1") == []
    one = await ipam.prefixes().ListAddressPlaces(pb.ListAddressPlacesRequest(address="10.1.2.3", page_size=1))
    request = pb.ListAddressPlacesRequest(address="10.1.2.3", page_size=1, page_token=one.next_page_token)
    two = await ipam.prefixes().ListAddressPlaces(request)
    assert [each.namespace for each in (*one.places, *two.places)] == ["default", "blue"]
    assert not two.next_page_token


async def test_overlaps_over_namespaces_are_reported_by_page(ipam: Any) -> None:
    for name, cidrs in {
        "blue": ["10.0.0.0/8", "fd00::/32"],
        "green": ["10.1.0.0/16", "10.2.0.0/16", "192.0.2.0/24"],
        "red": ["10.1.2.0/24", "fd00::/64"],
    }.items():
        await ipam.namespace(name)
        for cidr in cidrs:
            await ipam.container(cidr, name)
    await ipam.cut("10.0.0.0/8", 16, "blue")  # A child is no overlap of its own.
    expected = [
        ("blue", "10.0.0.0/8", "green", "10.1.0.0/16"),
        ("blue", "10.0.0.0/8", "green", "10.2.0.0/16"),
        ("blue", "10.0.0.0/8", "red", "10.1.2.0/24"),
        ("blue", "fd00::/32", "red", "fd00::/64"),
        ("green", "10.1.0.0/16", "red", "10.1.2.0/24"),
    ]
    found, token = [], ""
    while True:
        answer = await ipam.prefixes().ListPrefixOverlaps(pb.ListPrefixOverlapsRequest(page_size=2, page_token=token))
        found += [(o.left.namespace, o.left.cidr, o.right.namespace, o.right.cidr) for o in answer.overlaps]
        if not (token := answer.next_page_token):
            break
    assert found == expected


async def test_the_history_tells_who_had_an_address_then(ipam: Any) -> None:
    await ipam.prefix("10.0.0.0/24")
    owner = ip_pb2.Owner(kind=ip_pb2.OWNER_KIND_OTHER, id="printer")
    wish = ip_pb2.IpWish(prefix="10.0.0.0/24", address="10.0.0.9")
    times = [datetime.now(UTC)]
    await ipam.acquire(wish, stub=ipam.ips_as_allocation(), owner=owner)
    times.append(datetime.now(UTC))
    await ipam.ips_as_allocation().ReleaseOwned(ip_pb2.ReleaseOwnedRequest(owner=owner))
    times.append(datetime.now(UTC))
    await ipam.take("10.0.0.0/24", address="10.0.0.9")

    async def history(thing: str, as_of: datetime | None = None, size: int = 0) -> list[tuple[str, str]]:
        request = pb.ListHistoryRequest(object=thing, page_size=size)
        if as_of is not None:
            request.as_of.FromDatetime(as_of)
        entries = []
        while True:
            answer = await ipam.prefixes().ListHistory(request)
            entries += [(each.operation, each.owner.id) for each in answer.entries]
            request.page_token = answer.next_page_token
            if not request.page_token:
                return entries

    everything = [("acquire", ""), ("release", "printer"), ("acquire", "printer")]
    assert await history("10.0.0.9") == everything == await history("10.0.0.9", size=1)
    assert await history("10.0.0.9", times[0]) == []
    assert await history("10.0.0.9", times[1]) == everything[2:]
    assert await history("10.0.0.9", times[2]) == everything[1:]
    await ipam.give_back("10.0.0.9")
    await ipam.drop("10.0.0.0/24")
    assert await history("10.0.0.0/24") == [("delete prefix", ""), ("create prefix", "")]


async def test_pools_grow_by_hand_also_by_numbers_on_request_only(ipam: Any) -> None:
    async def grown(first: int, last: int, **fields: Any) -> pool_pb2.Pool:
        request = pool_pb2.GrowPoolRequest(id="vrf", first=first, last=last, **fields)
        answer: pool_pb2.Pool = await ipam.pools().GrowPool(request)
        return answer

    pool = await grown(200_000, 200_009)
    assert (pool.id, pool.max, pool.free) == ("vrf", 200_009, 131_072 + 10)
    with pytest.raises(AlreadyExists):
        await grown(200_009, 200_020)
    assert (await grown(300_000, 300_000, on_request=True)).max == 300_000
    await ipam.create(id="out", type=network_pb2.NETWORK_TYPE_EXTERNAL, prefixes=["192.0.2.0/24"], vrf=300_000)
    for first, last, error in ((9, 8, InvalidArgument), (0, 8, InvalidArgument), (16_777_215, 16_777_216, OutOfRange)):
        with pytest.raises(error):
            await grown(first, last)
    with pytest.raises(NotFound):
        await ipam.pools().GrowPool(pool_pb2.GrowPoolRequest(id="vlan", first=1, last=2))


async def test_prefixes_are_the_operators(ipam: Any) -> None:
    await ipam.prefix("10.0.0.0/24")
    request = pb.CreatePrefixRequest(prefix=pb.Prefix(cidr="10.1.0.0/24"))
    for token in ("viewer", "editor 0198c1d2-0000-7000-8000-00000000000a"):
        with pytest.raises(PermissionDenied):
            await ipam.prefixes(token).CreatePrefix(request)
    assert (await ipam.prefixes("viewer").GetPrefix(pb.GetPrefixRequest(cidr="10.0.0.0/24"))).free == 254
