"""Lists of addresses over several prefixes, families and projects, by small pages."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from metal_kit.errors import InvalidArgument
from metalplane.ipam.v1 import ip_pb2

ONE, TWO = "0198c1d2-0000-7000-8000-00000000000a", "0198c1d2-0000-7000-8000-00000000000b"
PREFIXES = ("10.0.0.0/29", "10.0.1.0/28", "10.0.2.0/28", "2001:db8::/64")


@pytest.fixture
async def filled(ipam: Any) -> dict[str, list[str]]:
    """A network with addresses of two projects in all of its prefixes; what each project has."""
    await ipam.external("net", *PREFIXES)
    await ipam.external("other", "10.9.0.0/28")
    had: dict[str, list[str]] = {ONE: [], TWO: []}
    for turn in range(14):
        project = (ONE, TWO)[turn % 3 == 0]
        wish = ip_pb2.IpWish(network="net")
        had[project] += [
            ip.address for ip in await ipam.acquire(wish, stub=ipam.ips(f"editor {project}"), project=project)
        ]
    await ipam.acquire(ip_pb2.IpWish(network="other"))
    return had


async def pages(stub: Any, size: int, **filters: Any) -> list[list[str]]:
    result: list[list[str]] = []
    token = ""
    async with asyncio.timeout(20):
        while not result or token:
            answer = await stub.ListIps(ip_pb2.ListIpsRequest(page_size=size, page_token=token, **filters))
            result.append([ip.address for ip in answer.ips])
            token = answer.next_page_token
    return result


@pytest.mark.parametrize("size", [1, 5, 100])
async def test_each_address_comes_once_whatever_the_size_of_pages(ipam: Any, filled: Any, size: int) -> None:
    everything = filled[ONE] + filled[TWO]
    for filters, expected in (
        ({"network": "net"}, everything),
        ({"network": "net", "project": ONE}, filled[ONE]),
        ({"network": "net", "project": TWO}, filled[TWO]),
        ({"project": TWO}, filled[TWO]),
        ({"network": "other", "project": TWO}, []),
    ):
        for token, mine in (("operator", expected), (f"editor {TWO}", [a for a in expected if a in filled[TWO]])):
            found = await pages(ipam.ips(token), size, **filters)
            assert all(len(page) == size for page in found[:-1]), (filters, token)
            shown = [address for page in found for address in page]
            assert sorted(shown) == sorted(mine), (filters, token)


async def test_a_text_that_postgres_cannot_hold_harms_nobody_else(ipam: Any) -> None:
    for name, cidr in (("one", "10.0.0.0/24"), ("two", "10.0.1.0/24")):
        await ipam.external(name, cidr)
    stub = ipam.ips()
    calls = [
        ipam.acquire(ip_pb2.IpWish(network=("one", "two")[n % 2]), stub=stub, description="\0" if n in {3, 8} else "")
        for n in range(16)
    ]
    got = await asyncio.gather(*calls, return_exceptions=True)
    assert [n for n, each in enumerate(got) if isinstance(each, BaseException)] == [3, 8]
    assert {type(got[3]), type(got[8])} == {InvalidArgument}
