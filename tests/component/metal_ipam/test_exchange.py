"""ExchangeIps: many changes on one stream, each answered for itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any
from uuid import uuid4

import grpc
import pytest
from metal_ipam.api import exchange
from metalplane.common.v1.condition_pb2 import AddressFamily
from metalplane.ipam.v1 import ip_pb2
from metalplane.ipam.v1.ip_pb2 import AcquireIpChange, IpChange, ReleaseIpChange

PROJECT = "0198c1d2-0000-7000-8000-00000000000a"
OTHER_PROJECT = "0198c1d2-0000-7000-8000-00000000000b"
V6 = AddressFamily.ADDRESS_FAMILY_IPV6


def acquire(number: int, network: str = "net", *, request_id: str = "", **fields: Any) -> IpChange:
    return IpChange(number=number, request_id=request_id, acquire=AcquireIpChange(network=network, **fields))


def release(number: int, address: str, network: str = "net", *, request_id: str = "", **fields: Any) -> IpChange:
    change = ReleaseIpChange(address=address, network=network, **fields)
    return IpChange(number=number, request_id=request_id, release=change)


async def exchanged(stub: Any, *batches: Iterable[IpChange], project: str = PROJECT) -> list[ip_pb2.IpAnswer]:
    """The answers to all batches, in the order in which they came."""

    async def requests() -> AsyncIterator[ip_pb2.ExchangeIpsRequest]:
        for batch in batches:
            yield ip_pb2.ExchangeIpsRequest(project=project, changes=batch)

    return [answer async for response in stub.ExchangeIps(requests()) for answer in response.answers]


def codes(answers: list[ip_pb2.IpAnswer]) -> dict[int, str]:
    return {answer.number: answer.error.reason or "ok" for answer in answers}


async def test_addresses_of_a_prefix_are_given_in_the_order_of_the_changes(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24")
    answers = await exchanged(ipam.ips(), [acquire(n) for n in range(1, 101)], [acquire(n) for n in range(101, 201)])
    assert [(each.number, each.address) for each in answers] == [(n, f"198.51.100.{n}") for n in range(1, 201)]
    assert {each.prefix for each in answers} == {"198.51.100.0/24"}
    answers = await exchanged(ipam.ips(), [release(n, f"198.51.100.{n}") for n in range(1, 201)])
    assert codes(answers) == dict.fromkeys(range(1, 201), "ok")
    assert await ipam.list_ips() == []


async def test_one_bad_change_leaves_the_others_alone_and_is_told_what_is_wrong(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/29")
    stranger = await ipam.acquire(ip_pb2.IpWish(network="net"), project=OTHER_PROJECT, stub=ipam.ips("operator"))
    owner = ip_pb2.Owner(kind=ip_pb2.OWNER_KIND_OTHER, id="lb")
    used = await ipam.acquire(ip_pb2.IpWish(network="net"), owner=owner, stub=ipam.ips_as_allocation())
    answers = await exchanged(
        ipam.ips(),
        [
            acquire(1, "nowhere"),
            acquire(2, request_id="no uuid"),
            IpChange(number=3),
            acquire(4, owner=owner),
            acquire(5, address="203.0.113.9"),
            acquire(6, address="198.51.100.6"),
            acquire(7, family=V6),
            release(8, stranger[0].address),
            release(9, used[0].address),
            release(10, "198.51.100.5"),
            acquire(11),
        ],
    )
    assert codes(answers) == {
        1: "NOT_FOUND", 2: "INVALID_FIELD", 3: "INVALID_FIELD", 4: "OWNER_NOT_ALLOWED", 5: "ADDRESS_OUTSIDE_NETWORK",
        6: "ok", 7: "FAMILY_NOT_IN_NETWORK", 8: "NOT_FOUND", 9: "IP_IN_USE", 10: "NOT_FOUND", 11: "ok",
    }  # fmt: skip
    [in_use] = [answer.error for answer in answers if answer.number == 9]
    assert (in_use.code, in_use.metadata["owner"]) == (grpc.StatusCode.FAILED_PRECONDITION.value[0], "lb")
    assert [answer.error.field for answer in answers if answer.number == 2] == ["request_id"]


async def test_a_full_prefix_leads_to_the_next_one_and_then_to_an_error_that_names_both(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/30", "203.0.113.0/30")
    answers = await exchanged(ipam.ips(), [acquire(n) for n in range(1, 7)])
    given = sorted(answer.address for answer in answers if answer.address)
    assert given == ["198.51.100.1", "198.51.100.2", "203.0.113.1", "203.0.113.2"]
    refused = [answer.error for answer in answers if not answer.address]
    assert {(error.reason, error.code) for error in refused} == {("NETWORK_FULL", 8)}
    assert {error.metadata["prefixes"] for error in refused} == {"198.51.100.0/30,203.0.113.0/30"}
    [answer] = await exchanged(ipam.ips(), [release(1, "198.51.100.2")])
    [again] = await exchanged(ipam.ips(), [acquire(1)])
    assert again.address == answer.address == "198.51.100.2"


async def test_changes_that_come_again_with_their_request_ids_have_one_effect(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24")
    ids = [str(uuid4()) for _ in range(5)]
    first = await exchanged(ipam.ips(), [acquire(n, request_id=ids[n]) for n in range(5)])
    # On another stream, twice in one message, and with other work between.
    again = await exchanged(ipam.ips(), [acquire(n, request_id=ids[n % 5]) for n in range(10)])
    assert {answer.address for answer in again} == {answer.address for answer in first}
    other = await exchanged(ipam.ips(), [acquire(1, request_id=ids[0], name="other")])
    assert codes(other) == {1: "REQUEST_ID_REUSED"}
    let_go = str(uuid4())
    done = await exchanged(ipam.ips(), [release(1, first[0].address, request_id=let_go)])
    taken = await exchanged(ipam.ips(), [acquire(2)])
    late = await exchanged(ipam.ips(), [release(3, first[0].address, request_id=let_go)])
    assert codes(done + taken + late) == {1: "ok", 2: "ok", 3: "ok"}
    # The late retry has not released what somebody got since.
    assert taken[0].address == first[0].address
    assert taken[0].address in {ip.address for ip in await ipam.list_ips()}


async def test_a_release_that_names_its_holding_leaves_the_next_one_alone(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24")
    [mine] = await exchanged(ipam.ips(), [acquire(1)])
    assert mine.create_time == (await ipam.list_ips())[0].create_time
    late = release(2, mine.address, create_time=mine.create_time)
    assert codes(await exchanged(ipam.ips(), [late])) == {2: "ok"}
    [next_one] = await exchanged(ipam.ips(), [acquire(3)])
    assert (next_one.address, codes(await exchanged(ipam.ips(), [late]))) == (mine.address, {2: "NOT_FOUND"})
    [kept] = await ipam.list_ips()
    assert kept.create_time == next_one.create_time
    # The long way tells it too.
    [alone] = await exchanged(ipam.ips(), [acquire(4, address="198.51.100.77")])
    assert alone.create_time.ToNanoseconds() > kept.create_time.ToNanoseconds()


async def test_services_acquire_for_owners_and_release_what_they_name(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24")
    web, gone = (ip_pb2.Owner(kind=ip_pb2.OWNER_KIND_ALLOCATION, id=name) for name in ("web", "gone"))
    stub = ipam.ips_as_allocation()
    await stub.ReleaseOwned(ip_pb2.ReleaseOwnedRequest(owner=gone))
    answers = await exchanged(stub, [acquire(1, owner=web), acquire(2, owner=gone)])
    assert codes(answers) == {1: "ok", 2: "OWNER_RELEASED"}
    [address] = [answer.address for answer in answers if answer.address]
    answers = await exchanged(stub, [release(1, address, owner=gone)], [release(2, address, owner=web)])
    assert codes(answers) == {1: "IP_IN_USE", 2: "ok"}


async def test_streams_and_single_calls_on_one_prefix_never_share_an_address(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/25")
    await ipam.add_replica()
    held: set[str] = set()

    async def churn(number: int) -> None:
        for _ in range(3):
            answers = await exchanged(ipam.ips(replica=number % 2), [acquire(n) for n in range(1, 9)])
            mine = [answer.address for answer in answers]
            assert not held & set(mine)
            held.update(mine)
            held.difference_update(mine[:4])
            await exchanged(ipam.ips(replica=number % 2), [release(n, address) for n, address in enumerate(mine[:4])])

    async def single() -> None:
        for _ in range(4):
            [ip] = await ipam.acquire(ip_pb2.IpWish(network="net"))
            assert ip.address not in held
            held.add(ip.address)

    await asyncio.gather(*(churn(number) for number in range(4)), single())
    assert {ip.address for ip in await ipam.list_ips()} == held


async def test_more_changes_than_may_be_under_way_are_all_answered(ipam: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "WINDOW", 16)
    await ipam.external("net", "198.51.0.0/22")
    batches = [[acquire(100 * batch + n) for n in range(40)] for batch in range(5)]
    answers = await exchanged(ipam.ips(), *batches)
    assert len({answer.address for answer in answers}) == 200


async def test_a_service_that_stops_answers_what_it_has_read_and_ends_the_stream(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24")
    call = ipam.ips().ExchangeIps()
    await call.write(ip_pb2.ExchangeIpsRequest(project=PROJECT, changes=[acquire(1)]))
    response = await call.read()
    assert response.answers[0].address == "198.51.100.1"
    ipam.replicas[0].runtime.stopping.set()
    with pytest.raises(Exception, match="STOPPING"):
        await call.read()


async def test_many_alike_come_once_for_a_request_and_over_several_prefixes_all_or_none(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/28", "203.0.113.0/28")
    request_id = str(uuid4())
    wish = ip_pb2.IpWish(network="net", count=10)
    first = await ipam.acquire(wish, request_id=request_id, name="web", labels={"a": "b"})
    assert [ip.address for ip in first] == [f"198.51.100.{n}" for n in range(1, 11)]
    assert {(ip.name, ip.labels["a"], ip.prefix) for ip in first} == {("web", "b", "198.51.100.0/28")}
    assert await ipam.acquire(wish, request_id=request_id, name="web", labels={"a": "b"}) == first
    with pytest.raises(Exception, match="REQUEST_ID_REUSED"):
        await ipam.acquire(wish, request_id=request_id, name="other")
    both = await ipam.acquire(wish)
    assert {ip.prefix for ip in both} == {"198.51.100.0/28", "203.0.113.0/28"}
    with pytest.raises(Exception, match="NETWORK_FULL"):
        await ipam.acquire(wish)
    assert len(await ipam.list_ips()) == 20
    await ipam.ips().ReleaseIp(ip_pb2.ReleaseIpRequest(address=first[3].address, network="net"))
    with pytest.raises(Exception, match="REQUEST_SPENT"):
        await ipam.acquire(wish, request_id=request_id, name="web", labels={"a": "b"})


async def test_twins_of_a_request_for_many_get_the_same_addresses(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24")
    await ipam.add_replica()
    request_id, wish = str(uuid4()), ip_pb2.IpWish(network="net", count=20)
    answers = await asyncio.gather(
        *(ipam.acquire(wish, request_id=request_id, stub=ipam.ips(replica=n % 2)) for n in range(6))
    )
    assert {tuple(ip.address for ip in answer) for answer in answers} == {
        tuple(f"198.51.100.{n}" for n in range(1, 21))
    }
    assert len(await ipam.list_ips()) == 20
