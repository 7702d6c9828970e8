"""Quotas of projects: counted exactly, also with many calls at once, and back when something is released."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from metal_kit.errors import Aborted, NotFound, PermissionDenied, ResourceExhausted
from metalplane.common.v1.condition_pb2 import AddressFamily
from metalplane.ipam.v1 import ip_pb2, quota_pb2
from metalplane.ipam.v1.ip_pb2 import IpWish

PROJECT = "0198c1d2-0000-7000-8000-00000000000a"
OTHER = "0198c1d2-0000-7000-8000-00000000000b"
V4, V6 = AddressFamily.ADDRESS_FAMILY_IPV4, AddressFamily.ADDRESS_FAMILY_IPV6


async def set_quota(ipam: Any, etag: str = "", **limits: int) -> quota_pb2.Quota:
    quota = quota_pb2.Quota(project=PROJECT, etag=etag, **limits)
    answer: quota_pb2.Quota = await ipam.quotas().SetQuota(quota_pb2.SetQuotaRequest(quota=quota))
    return answer


async def used(ipam: Any) -> quota_pb2.QuotaUse:
    answer = await ipam.quotas(f"member {PROJECT}").GetQuota(quota_pb2.GetQuotaRequest(project=PROJECT))
    use: quota_pb2.QuotaUse = answer.used
    return use


async def test_a_quota_counts_each_family_by_itself_and_names_itself_and_its_use(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24", "2001:db8::/64")
    await set_quota(ipam, ipv4_addresses=2)
    await ipam.acquire(IpWish(network="net", family=V4))
    with pytest.raises(ResourceExhausted) as error:
        await ipam.acquire(IpWish(network="net", family=V4, count=2))
    assert error.value.reason == "QUOTA_EXHAUSTED"
    assert error.value.metadata == {
        "quota": "ipv4_addresses", "limit": "2", "used": "1", "wanted": "2", "project": PROJECT,
    }  # fmt: skip
    await ipam.acquire(IpWish(network="net", family=V4))
    with pytest.raises(ResourceExhausted, match="QUOTA_EXHAUSTED"):
        await ipam.acquire(IpWish(network="net"))  # Both families or none.
    with pytest.raises(ResourceExhausted, match="QUOTA_EXHAUSTED"):
        await ipam.acquire(IpWish(network="net", address="198.51.100.77"))
    await ipam.acquire(IpWish(network="net", family=V6, count=5))
    use = await used(ipam)
    assert (use.ipv4_addresses, use.ipv6_addresses) == (2, 5)
    await ipam.ips().ReleaseIp(ip_pb2.ReleaseIpRequest(address="198.51.100.1"))
    assert len(await ipam.acquire(IpWish(network="net"))) == 2


async def test_calls_at_once_in_two_replicas_never_exceed_a_quota(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24", "2001:db8::/64")
    await ipam.add_replica()
    await set_quota(ipam, ipv4_addresses=7, ipv6_addresses=4)

    async def call(number: int) -> int:
        wish = IpWish(network="net", family=V4) if number % 3 else IpWish(network="net")
        try:
            return len(await ipam.acquire(wish, stub=ipam.ips(replica=number % 2), request_id=str(uuid4())))
        except ResourceExhausted:
            return 0

    others = [ipam.acquire(IpWish(network="net"), stub=ipam.ips(f"editor {OTHER}"), project=OTHER) for _ in range(8)]
    counts, *_ = await asyncio.gather(asyncio.gather(*(call(number) for number in range(24))), *others)
    use = await used(ipam)
    assert use.ipv4_addresses == 7
    assert use.ipv4_addresses + use.ipv6_addresses == sum(counts)
    assert len(await ipam.list_ips(project=OTHER)) == 16


async def test_a_retry_of_the_call_that_took_the_last_of_a_quota_has_its_answer(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24")
    await ipam.add_replica()
    await set_quota(ipam, ipv4_addresses=1)
    request_id = str(uuid4())
    answers = await asyncio.gather(
        *(ipam.acquire(IpWish(network="net"), stub=ipam.ips(replica=n % 2), request_id=request_id) for n in range(6))
    )
    assert {ip.address for [ip] in answers} == {"198.51.100.1"}


async def test_prefixes_of_child_networks_have_a_quota(ipam: Any) -> None:
    await ipam.super()
    await set_quota(ipam, prefixes=3)
    first = await ipam.child()
    results = await asyncio.gather(*(ipam.child(length=(24, 0)) for _ in range(4)), return_exceptions=True)
    refused = [each for each in results if isinstance(each, ResourceExhausted) and each.reason == "QUOTA_EXHAUSTED"]
    assert len(refused) == 3
    await ipam.child(project=OTHER)
    await ipam.delete(first.id)
    await ipam.child()
    assert (await used(ipam)).prefixes == 3


async def test_a_lower_quota_takes_nothing_away_and_none_limits_nothing(ipam: Any) -> None:
    await ipam.external("net", "198.51.100.0/24")
    await ipam.acquire(IpWish(network="net", count=3))
    quota = await set_quota(ipam, ipv4_addresses=0)
    assert (quota.used.ipv4_addresses, quota.HasField("ipv4_addresses"), quota.ipv4_addresses) == (3, True, 0)
    with pytest.raises(ResourceExhausted):
        await ipam.acquire(IpWish(network="net"))
    listed = await ipam.quotas("viewer").ListQuotas(quota_pb2.ListQuotasRequest())
    assert [(each.project, each.ipv4_addresses) for each in listed.quotas] == [(PROJECT, 0)]
    with pytest.raises(Aborted):
        await set_quota(ipam, etag="0")
    lifted = await set_quota(ipam, etag=quota.etag)
    assert not lifted.HasField("ipv4_addresses")
    await ipam.acquire(IpWish(network="net"))
    assert not (await ipam.quotas().ListQuotas(quota_pb2.ListQuotasRequest())).quotas


async def test_a_project_sees_its_quota_and_sets_none(ipam: Any) -> None:
    await set_quota(ipam, prefixes=3)
    editor = ipam.quotas(f"editor {PROJECT}")
    assert (await editor.GetQuota(quota_pb2.GetQuotaRequest(project=PROJECT))).prefixes == 3
    with pytest.raises(PermissionDenied):
        await editor.SetQuota(quota_pb2.SetQuotaRequest(quota=quota_pb2.Quota(project=PROJECT)))
    with pytest.raises((NotFound, PermissionDenied)):
        await ipam.quotas(f"editor {OTHER}").GetQuota(quota_pb2.GetQuotaRequest(project=PROJECT))
