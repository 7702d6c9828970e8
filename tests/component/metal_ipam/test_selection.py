"""Addresses of a network that is chosen by its labels, what is written with them, and calls that keep nothing."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from metal_kit.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from metalplane.common.v1.condition_pb2 import AddressFamily
from metalplane.ipam.v1 import ip_pb2, network_pb2, quota_pb2
from metalplane.ipam.v1.ip_pb2 import IpWish

PROJECT = "0198c1d2-0000-7000-8000-00000000000a"
OTHER = "0198c1d2-0000-7000-8000-00000000000b"
V4, V6 = AddressFamily.ADDRESS_FAMILY_IPV4, AddressFamily.ADDRESS_FAMILY_IPV6
INTERNET = {"zone": "internet"}


async def external(ipam: Any, name: str, vrf: int, *prefixes: str, project: str = "", **labels: str) -> None:
    await ipam.create(
        id=name, type=network_pb2.NETWORK_TYPE_EXTERNAL, prefixes=prefixes, vrf=vrf, labels=labels, project=project
    )


async def test_labels_choose_the_first_network_that_has_room(ipam: Any) -> None:
    await external(ipam, "a-small", 1, "198.51.100.0/31", zone="internet")
    await external(ipam, "b-large", 2, "203.0.113.0/24", "2001:db8::/64", zone="internet", speed="fast")
    await external(ipam, "c-company", 3, "192.0.2.0/24", zone="company")
    wish = IpWish(network_labels=INTERNET, count=1, family=V4)
    assert [(await ipam.acquire(wish))[0].network for _ in range(3)] == ["a-small", "a-small", "b-large"]
    [v6] = await ipam.acquire(IpWish(network_labels=INTERNET, family=V6))
    assert v6.network == "b-large"
    [given] = await ipam.acquire(IpWish(network_labels=INTERNET, address="203.0.113.77"))
    assert given.address == "203.0.113.77"
    both = await ipam.acquire(IpWish(network_labels={"zone": "internet", "speed": "fast"}), IpWish(network="c-company"))
    assert [ip.network for ip in both] == ["b-large", "b-large", "c-company"]


async def test_wishes_of_one_call_share_the_room_of_the_networks_they_choose(ipam: Any) -> None:
    await external(ipam, "a", 1, "198.51.100.0/31", zone="internet")
    await external(ipam, "b", 2, "203.0.113.0/31", zone="internet")
    wishes = [IpWish(network_labels=INTERNET) for _ in range(4)]
    assert [ip.network for ip in await ipam.acquire(*wishes)] == ["a", "a", "b", "b"]
    with pytest.raises(ResourceExhausted, match=r"1 more with the labels zone=internet") as error:
        await ipam.acquire(IpWish(network_labels=INTERNET))
    assert error.value.field == "wishes[0].network_labels"


async def test_labels_choose_only_what_serves_the_project(ipam: Any) -> None:
    await external(ipam, "theirs", 1, "198.51.100.0/24", project=OTHER, zone="internet")
    await ipam.super(labels=INTERNET)
    await ipam.child(project=OTHER, labels=INTERNET)
    for labels in (INTERNET, {"zone": "nowhere"}):
        with pytest.raises(NotFound, match="NO_SUCH_NETWORK"):
            await ipam.acquire(IpWish(network_labels=labels))
    mine = await ipam.child(labels=INTERNET)
    assert {ip.network for ip in await ipam.acquire(IpWish(network_labels=INTERNET))} == {mine.id}


async def test_a_wish_names_its_network_or_its_labels(ipam: Any) -> None:
    for wish in (IpWish(), IpWish(network="net", network_labels=INTERNET)):
        with pytest.raises(InvalidArgument) as error:
            await ipam.acquire(wish)
        assert error.value.field == "wishes[0].network"


async def test_a_retry_has_its_first_answer_whatever_would_be_chosen_now(ipam: Any) -> None:
    await external(ipam, "a", 1, "198.51.100.0/31", "2001:db8::/64", zone="internet")
    await external(ipam, "b", 2, "203.0.113.0/24", zone="internet")
    await ipam.add_replica()
    request_id, wish = str(uuid4()), IpWish(network_labels=INTERNET)
    calls = [ipam.acquire(wish, stub=ipam.ips(replica=n % 2), request_id=request_id) for n in range(6)]
    noise = [ipam.acquire(IpWish(network="a", family=V4))]
    answers, _ = await asyncio.gather(asyncio.gather(*calls), asyncio.gather(*noise))
    assert len({tuple(ip.address for ip in answer) for answer in answers}) == 1
    assert await ipam.acquire(wish, request_id=request_id) == answers[0]
    assert len(await ipam.list_ips()) == len(answers[0]) + 1
    await ipam.ips().ReleaseIp(ip_pb2.ReleaseIpRequest(address=answers[0][0].address))
    with pytest.raises(FailedPrecondition, match="REQUEST_SPENT"):
        await ipam.acquire(wish, request_id=request_id)


async def test_many_at_once_move_on_to_the_next_network_when_one_is_full(ipam: Any) -> None:
    await external(ipam, "a", 1, "198.51.100.0/29", zone="internet")
    await external(ipam, "b", 2, "203.0.113.0/28", zone="internet")
    results = await asyncio.gather(
        *(ipam.acquire(IpWish(network_labels=INTERNET)) for _ in range(24)), return_exceptions=True
    )
    got = [each[0].address for each in results if isinstance(each, list)]
    assert len(set(got)) == len(got) == 6 + 14
    assert {type(each) for each in results if not isinstance(each, list)} == {ResourceExhausted}


async def test_names_are_written_with_addresses_and_changed_later(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24", "2001:db8::/64")
    ips = await ipam.acquire(IpWish(network="net"), description="the front door", dns_name="www.example.org")
    assert {(ip.description, ip.dns_name) for ip in ips} == {("the front door", "www.example.org")}
    stub = ipam.ips()
    assert (await stub.GetIp(ip_pb2.GetIpRequest(address=ips[0].address))).dns_name == "www.example.org"
    change = ip_pb2.UpdateIpRequest(ip={"address": ips[0].address, "dns_name": "web.example.org"})
    assert (await stub.UpdateIp(change)).dns_name == "web.example.org"
    listed = {ip.address: (ip.description, ip.dns_name) for ip in await ipam.list_ips()}
    assert listed[ips[0].address] == ("the front door", "web.example.org")
    with pytest.raises(InvalidArgument) as error:
        await stub.UpdateIp(ip_pb2.UpdateIpRequest(ip={"address": ips[0].address, "dns_name": "not a name"}))
    assert error.value.field == "ip.dns_name"
    with pytest.raises(InvalidArgument):
        await ipam.acquire(IpWish(network="net"), dns_name="-no-")


async def test_a_dry_run_answers_as_the_call_would_and_keeps_nothing(ipam: Any) -> None:
    await external(ipam, "net", 1, "198.51.100.0/30", "2001:db8::/64", zone="internet")
    request_id = str(uuid4())
    for wish in (IpWish(network="net"), IpWish(network="net", family=V4), IpWish(network_labels=INTERNET, count=2)):
        tried = await ipam.acquire(wish, validate_only=True, request_id=request_id)
        assert tried[0].address == "198.51.100.1"
    assert await ipam.list_ips() == []
    assert (await ipam.get("net")).ipv4.used_ips == 0
    real = await ipam.acquire(IpWish(network="net", family=V4), request_id=request_id)
    assert real[0].address == "198.51.100.1"
    with pytest.raises(AlreadyExists):
        await ipam.acquire(IpWish(network="net", address="198.51.100.1"), validate_only=True)
    with pytest.raises(ResourceExhausted):
        await ipam.acquire(IpWish(network="net", count=3), validate_only=True)
    quota = quota_pb2.Quota(project=PROJECT, ipv4_addresses=1)
    await ipam.quotas().SetQuota(quota_pb2.SetQuotaRequest(quota=quota))
    with pytest.raises(ResourceExhausted, match="QUOTA_EXHAUSTED"):
        await ipam.acquire(IpWish(network="net", family=V4), validate_only=True)
