"""Watches of networks and addresses: the present, then every change, to those who may see it, and none is missed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from metal_kit.errors import InvalidArgument, OutOfRange
from metalplane.common.v1.condition_pb2 import AddressFamily, ChangeType
from metalplane.ipam.v1 import ip_pb2, network_pb2
from metalplane.ipam.v1.ip_pb2 import IpWish

PROJECT = "0198c1d2-0000-7000-8000-00000000000a"
OTHER = "0198c1d2-0000-7000-8000-00000000000b"
V4 = AddressFamily.ADDRESS_FAMILY_IPV4
OWNER = ip_pb2.Owner(kind=ip_pb2.OWNER_KIND_OTHER, id="a thing")
GONE = ChangeType.CHANGE_TYPE_DELETED


class Watcher:
    """What a watch has told: changes as short text, and where it is."""

    def __init__(self, call: Any) -> None:
        self.told: list[str] = []
        self.position = ""
        self._call = call

    async def read(self) -> None:
        async for answer in self._call:
            self.position = answer.position
            for change in answer.changes:
                text = _short(change)
                self.told.append(f"-{text}" if change.type == GONE else text)


def _short(change: Any) -> str:
    if isinstance(change, network_pb2.NetworkChange):
        return f"{change.network.id} {change.network.name}".strip()
    return " ".join(filter(None, (change.ip.address, change.ip.name, change.ip.owner.id)))


@asynccontextmanager
async def watching(call: Any) -> AsyncIterator[Watcher]:
    watcher = Watcher(call)
    task = asyncio.create_task(watcher.read())
    try:
        yield watcher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_watch_of_addresses_tells_the_present_and_then_each_change(ipam: Any, eventually: Any) -> None:
    await ipam.external("net", "198.51.100.0/24")
    await ipam.external("other", "203.0.113.0/24")
    [first] = await ipam.acquire(IpWish(network="net"))
    async with watching(ipam.ips().WatchIps(ip_pb2.WatchIpsRequest(network="net"), timeout=60)) as watch:
        await eventually(lambda: watch.position, what="the present to be told")
        assert watch.told == ["198.51.100.1"]
        await ipam.acquire(IpWish(network="other"))
        [second] = await ipam.acquire(IpWish(network="net"), name="web")
        await eventually(lambda: watch.told[1:] == ["198.51.100.2 web"], what="the new address")
        await ipam.ips().UpdateIp(ip_pb2.UpdateIpRequest(ip={"address": second.address, "name": "www"}))
        await eventually(lambda: watch.told[2:] == ["198.51.100.2 www"], what="the new name")
        attach = ip_pb2.AttachIpRequest(address=first.address, network="net", project=PROJECT, owner=OWNER)
        await ipam.ips_as_allocation().AttachIp(attach)
        await eventually(lambda: watch.told[3:] == ["198.51.100.1 a thing"], what="the owner")
        seen = watch.position
    await ipam.ips_as_allocation().ReleaseOwned(ip_pb2.ReleaseOwnedRequest(owner=OWNER))
    await ipam.ips().ReleaseIp(ip_pb2.ReleaseIpRequest(address=second.address))
    resumed = ip_pb2.WatchIpsRequest(network="net", position=seen)
    async with watching(ipam.ips().WatchIps(resumed, timeout=60)) as watch:
        await eventually(lambda: len(watch.told) == 2, what="what happened meanwhile")
        assert watch.told == ["-198.51.100.1", "-198.51.100.2"]


async def test_watchers_are_told_of_their_own_projects_only(ipam: Any, eventually: Any) -> None:
    await ipam.external("net", "198.51.100.0/24")
    theirs = ipam.ips(f"editor {OTHER}")
    await ipam.acquire(IpWish(network="net"), stub=theirs, project=OTHER)
    mine = ipam.ips(f"member {PROJECT}").WatchIps(ip_pb2.WatchIpsRequest(), timeout=60)
    all_ = ipam.ips("viewer").WatchIps(ip_pb2.WatchIpsRequest(), timeout=60)
    async with watching(mine) as own, watching(all_) as plane:
        await eventually(lambda: own.position and plane.position)
        await theirs.ReleaseIp(ip_pb2.ReleaseIpRequest(address="198.51.100.1"))
        await ipam.acquire(IpWish(network="net"))  # The same address, another project: nothing of theirs is told.
        await eventually(lambda: own.told and len(plane.told) == 3)
        assert own.told == ["198.51.100.1"]
        assert plane.told == ["198.51.100.1", "-198.51.100.1", "198.51.100.1"]


async def test_a_watch_of_addresses_waits_for_transactions_that_began_before(ipam: Any, eventually: Any) -> None:
    await ipam.external("slow", "198.51.100.0/24")
    await ipam.external("fast", "203.0.113.0/24")
    async with watching(ipam.ips().WatchIps(ip_pb2.WatchIpsRequest(), timeout=60)) as watch:
        await eventually(lambda: watch.position)
        slow = await asyncpg.connect(ipam.database_url)
        transaction = slow.transaction()
        await transaction.start()
        await slow.execute(
            f"""SET LOCAL search_path TO ipam, public;
                SELECT acquire_n(id, ARRAY[NULL::text], '[{{"project_id": "{PROJECT}"}}]', 'test')
                FROM prefix WHERE network_id = 'slow'"""
        )
        await ipam.acquire(IpWish(network="fast"))
        await transaction.commit()
        await slow.close()
        await eventually(lambda: len(watch.told) == 2, what="both, and the older one not lost")
        assert sorted(watch.told) == ["198.51.100.1", "203.0.113.1"]


async def test_a_thousand_addresses_are_told_in_batches_without_gaps(ipam: Any, eventually: Any) -> None:
    await ipam.external("net", "10.0.0.0/20")
    await ipam.acquire(IpWish(network="net", count=700))
    async with watching(ipam.ips().WatchIps(ip_pb2.WatchIpsRequest(), timeout=60)) as watch:
        await eventually(lambda: watch.position)
        assert len(set(watch.told)) == len(watch.told) == 700
        await ipam.acquire(IpWish(network="net", count=1000))
        await eventually(lambda: len(watch.told) == 1700, what="two batches of changes")
        assert len(set(watch.told)) == 1700


async def test_a_watch_of_networks_tells_what_its_caller_may_see(ipam: Any, eventually: Any) -> None:
    await ipam.super()
    first = await ipam.child(name="one")
    await ipam.child(project=OTHER, name="theirs")
    watch_of = network_pb2.WatchNetworksRequest
    mine = ipam.networks(f"member {PROJECT}").WatchNetworks(watch_of(), timeout=60)
    just_one = ipam.networks("viewer").WatchNetworks(watch_of(network=first.id), timeout=60)
    async with watching(mine) as own, watching(just_one) as single:
        await eventually(lambda: own.position and single.position)
        assert sorted(own.told) == sorted([f"{first.id} one", "super"])
        await ipam.child(project=OTHER, name="hidden")
        shared = await ipam.child(project=OTHER, name="shared", type=network_pb2.NETWORK_TYPE_CHILD_SHARED)
        change = network_pb2.UpdateNetworkRequest(network={"id": first.id, "name": "uno"})
        await ipam.networks(f"editor {PROJECT}").UpdateNetwork(change)
        await ipam.delete(first.id)
        expected = [f"{shared.id} shared", f"{first.id} uno", f"-{first.id} uno"]
        await eventually(lambda: own.told[2:] == expected, what="the changes that the project may see")
        expected = [f"{first.id} one", f"{first.id} uno", f"-{first.id} uno"]
        await eventually(lambda: single.told == expected, what="the changes of the one network")


async def test_positions_that_are_none_are_refused(ipam: Any) -> None:
    ips, networks = ipam.ips().WatchIps, ipam.networks().WatchNetworks
    for stub, request in ((ips, ip_pb2.WatchIpsRequest), (networks, network_pb2.WatchNetworksRequest)):
        for position, error in (("yesterday", InvalidArgument), (f"{2**62}:0", OutOfRange)):
            with pytest.raises(error):
                await anext(aiter(stub(request(position=position), timeout=20)))
