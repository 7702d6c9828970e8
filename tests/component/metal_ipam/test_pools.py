"""Number pools over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from metal_ipam.service import SPEC
from metal_kit.errors import AlreadyExists, FailedPrecondition, NotFound, OutOfRange, ResourceExhausted
from metal_kit.runtime import StartError
from metalplane.ipam.v1 import ip_pb2, pool_pb2

ASN_BASE = 4_210_000_000


def owner(name: str) -> ip_pb2.Owner:
    return ip_pb2.Owner(kind=ip_pb2.OWNER_KIND_ALLOCATION, id=name)


async def acquire(ipam: Any, name: str, number: int = 0, pool: str = "asn") -> int:
    request = pool_pb2.AcquireNumberRequest(pool=pool, owner=owner(name), number=number)
    return int((await ipam.pools_as_allocation().AcquireNumber(request)).number)


async def release(ipam: Any, name: str) -> int:
    answer = await ipam.ips_as_allocation().ReleaseOwned(ip_pb2.ReleaseOwnedRequest(owner=owner(name)))
    return int(answer.released_numbers)


async def test_pools_have_their_ranges(ipam: Any) -> None:
    answer = await ipam.pools().ListPools(pool_pb2.ListPoolsRequest())
    assert [(p.id, p.min, p.max, p.used, p.free) for p in answer.pools] == [
        ("asn", ASN_BASE + 1, ASN_BASE + 131_072, 0, 131_072),
        ("vrf", 1, 131_072, 0, 131_072),
    ]


async def test_an_owner_has_one_number_however_often_it_asks(ipam: Any) -> None:
    assert await acquire(ipam, "a") == ASN_BASE + 1
    assert await acquire(ipam, "a") == ASN_BASE + 1
    assert await acquire(ipam, "b") == ASN_BASE + 2
    assert await acquire(ipam, "a", ASN_BASE + 1) == ASN_BASE + 1
    with pytest.raises(FailedPrecondition, match="OWNER_HAS_NUMBER"):
        await acquire(ipam, "a", ASN_BASE + 9)
    assert (await release(ipam, "a"), await release(ipam, "a")) == (1, 0)
    assert await acquire(ipam, "c") == ASN_BASE + 1


async def test_given_numbers(ipam: Any) -> None:
    assert await acquire(ipam, "a", ASN_BASE + 7) == ASN_BASE + 7
    with pytest.raises(AlreadyExists) as error:
        await acquire(ipam, "b", ASN_BASE + 7)
    assert error.value.metadata["owner"] == "a"
    for outside in (ASN_BASE, ASN_BASE + 131_073, 5):
        with pytest.raises(OutOfRange):
            await acquire(ipam, "b", outside)
    with pytest.raises(NotFound):
        await acquire(ipam, "b", pool="vlan")
    listed = await ipam.pools().ListPoolNumbers(pool_pb2.ListPoolNumbersRequest(pool="asn"))
    assert [(n.number, n.owner.id) for n in listed.numbers] == [(ASN_BASE + 7, "a")]


async def test_a_pool_of_four_survives_a_hundred_cycles(start_ipam: Callable[..., Awaitable[Any]]) -> None:
    ipam = await start_ipam(asn_max=4)
    for cycle in range(100):
        names = [f"{cycle}-{n}" for n in range(4)]
        numbers = await asyncio.gather(*(acquire(ipam, name) for name in names))
        assert sorted(numbers) == [ASN_BASE + n for n in (1, 2, 3, 4)]
        if cycle % 25 == 0:
            with pytest.raises(ResourceExhausted) as error:
                await acquire(ipam, "one too many")
            assert error.value.metadata["used"] == "4"
        assert await asyncio.gather(*(release(ipam, name) for name in names)) == [1, 1, 1, 1]
    await ipam.clean()


async def test_a_pool_grows_when_its_maximum_is_raised(
    start_ipam: Callable[..., Awaitable[Any]], start_service: Callable[..., Awaitable[Any]]
) -> None:
    ipam = await start_ipam(asn_max=1)
    assert await acquire(ipam, "a") == ASN_BASE + 1
    with pytest.raises(ResourceExhausted):
        await acquire(ipam, "b")
    await start_service(SPEC, database_url=ipam.database_url, asn_max=2)
    assert await acquire(ipam, "b") == ASN_BASE + 2
    with pytest.raises(StartError, match="base"):
        await start_service(SPEC, database_url=ipam.database_url, asn_base=1)
    await ipam.clean()


async def test_thirty_two_at_once_get_thirty_two_numbers(ipam: Any) -> None:
    numbers = await asyncio.gather(*(acquire(ipam, f"owner-{n}") for n in range(32)))
    assert sorted(numbers) == [ASN_BASE + 1 + n for n in range(32)]
    again = await asyncio.gather(*(acquire(ipam, f"owner-{n % 4}") for n in range(32)))
    assert again == [numbers[n % 4] for n in range(32)]
