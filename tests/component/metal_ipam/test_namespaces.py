"""Namespaces: spaces that know nothing of each other, also in lists, dumps and lookups."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import pytest
from metal_kit.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from metalplane.ipam.v1 import ip_pb2, prefix_pb2
from metalplane.ipam.v1 import namespace_pb2 as pb

PROJECT = "0198c1d2-0000-7000-8000-00000000000a"


async def dump(ipam: Any, name: str) -> list[str]:
    call = ipam.namespaces().DumpNamespace(pb.DumpNamespaceRequest(id=name))
    return [line async for part in call for line in part.lines]


async def load(ipam: Any, name: str, lines: Iterable[str]) -> pb.LoadNamespaceResponse:
    async def parts() -> Any:
        yield pb.LoadNamespaceRequest(id=name)
        for line in lines:
            yield pb.LoadNamespaceRequest(lines=[line])

    answer: pb.LoadNamespaceResponse = await ipam.namespaces().LoadNamespace(parts())
    return answer


async def listed(ipam: Any) -> list[str]:
    answer = await ipam.namespaces().ListNamespaces(pb.ListNamespacesRequest())
    return [each.id for each in answer.namespaces]


async def delete(ipam: Any, name: str) -> None:
    await ipam.namespaces().DeleteNamespace(pb.DeleteNamespaceRequest(id=name))


async def fill(ipam: Any, name: str) -> None:
    """Some of everything: a parent with a child and a grandchild, addresses of all states, ranges."""
    await ipam.container("10.0.0.0/8", name, labels={"site": "a"}, description="all")
    middle = await ipam.cut("10.0.0.0/8", 16, name, kind=prefix_pb2.PREFIX_KIND_CONTAINER)
    await ipam.cut(middle.cidr, 24, name, labels={"rack": "1"})
    await ipam.prefix("2001:db8::/64", name)
    resting = prefix_pb2.Prefix(cidr="192.0.2.0/28", namespace=name)
    resting.quarantine.seconds = 3600
    await ipam.prefixes().CreatePrefix(prefix_pb2.CreatePrefixRequest(prefix=resting))
    request = prefix_pb2.ReserveRangeRequest(namespace=name, cidr="192.0.2.0/28", first="192.0.2.1", label="gateway")
    await ipam.prefixes().ReserveRange(request)
    taken = await ipam.take("192.0.2.0/28", name, count=3)
    await ipam.give_back(taken[1], name)
    await ipam.take("10.0.0.0/24", name, count=2)
    await ipam.take("2001:db8::/64", name, count=2)
    await ipam.take("192.0.2.0/28", name, address="192.0.2.1", from_reserved=True)


async def test_the_same_cidr_in_two_namespaces_is_two_prefixes(ipam: Any) -> None:
    for name in ("blue", "green"):
        await ipam.namespace(name)
        await ipam.prefix("10.0.0.0/24", name)
    assert await ipam.take("10.0.0.0/24", "blue", count=2) == ["10.0.0.1", "10.0.0.2"]
    assert await ipam.take("10.0.0.0/24", "green") == ["10.0.0.1"]
    assert [(await ipam.get_prefix("10.0.0.0/24", name)).used for name in ("blue", "green")] == [2, 1]
    await ipam.prefix("10.9.0.0/24", "green")
    assert await ipam.list_prefixes(namespace="blue") == ["10.0.0.0/24"]
    assert await ipam.list_prefixes(namespace="green") == ["10.0.0.0/24", "10.9.0.0/24"]
    assert await ipam.list_prefixes(namespace="default") == []
    told = {name: "".join(await dump(ipam, name)) for name in ("blue", "green", "default")}
    assert ['"10.0.0.2"' in told[name] for name in told] == [True, False, False]
    assert ["10.9.0.0" in told[name] for name in told] == [False, True, False]
    with pytest.raises(FailedPrecondition, match="namespace"):
        await ipam.give_back("10.0.0.1")
    await ipam.give_back("10.0.0.1", "blue")
    assert [(await ipam.get_prefix("10.0.0.0/24", name)).used for name in ("blue", "green")] == [1, 1]


async def test_a_namespace_goes_only_when_it_is_empty(ipam: Any) -> None:
    await ipam.namespace("blue")
    await ipam.prefix("10.0.0.0/24", "blue")
    with pytest.raises(FailedPrecondition, match=r"10\.0\.0\.0/24"):
        await delete(ipam, "blue")
    await ipam.drop("10.0.0.0/24", "blue")
    await delete(ipam, "blue")
    assert await listed(ipam) == ["default"]
    for gone in (delete(ipam, "blue"), ipam.prefix("10.0.0.0/24", "blue"), dump(ipam, "blue")):
        with pytest.raises(NotFound):
            await gone
    with pytest.raises(FailedPrecondition, match="NAMESPACE_STAYS"):
        await delete(ipam, "default")


async def test_a_namespace_is_created_once_and_a_retry_gets_the_first_answer(ipam: Any) -> None:
    request = pb.CreateNamespaceRequest(request_id=str(uuid4()), namespace=pb.Namespace(id="blue", description="sky"))
    first = await ipam.namespaces().CreateNamespace(request)
    assert await ipam.namespaces().CreateNamespace(request) == first
    assert await ipam.namespaces().GetNamespace(pb.GetNamespaceRequest(id="blue")) == first
    with pytest.raises(AlreadyExists, match="NAMESPACE_EXISTS"):
        await ipam.namespace("blue")
    with pytest.raises(PermissionDenied):
        await ipam.namespaces(f"editor {PROJECT}").CreateNamespace(request)


async def test_names_are_data_whatever_is_in_them(ipam: Any) -> None:
    names = ["'; DROP TABLE prefix; --", 'a "quoted" name', "ns_%", "x" * 62 + "a", "x" * 62 + "b", "ns_1"]
    for index, name in enumerate(names):
        await ipam.namespace(name)
        await ipam.prefix(f"10.0.{index}.0/24", name)
    assert sorted(await listed(ipam)) == sorted([*names, "default"])
    for index, name in enumerate(names):
        assert await ipam.list_prefixes(namespace=name) == [f"10.0.{index}.0/24"]
    for bad in ("", "x" * 64, "new\nline"):
        with pytest.raises(InvalidArgument):
            await ipam.namespace(bad)


async def test_deleting_a_namespace_while_prefixes_are_created_leaves_no_orphan(ipam: Any) -> None:
    for _ in range(5):
        await ipam.namespace("blue")
        made, gone = await asyncio.gather(
            ipam.prefix("10.0.0.0/24", "blue"), delete(ipam, "blue"), return_exceptions=True
        )
        if isinstance(made, NotFound):
            assert gone is None
            assert "blue" not in await listed(ipam)
        else:
            assert isinstance(gone, FailedPrecondition)
            await asyncio.gather(ipam.take("10.0.0.0/24", "blue"), delete(ipam, "blue"), return_exceptions=True)
            assert await ipam.list_prefixes(namespace="blue") == ["10.0.0.0/24"]
            await ipam.give_back("10.0.0.1", "blue")
            await ipam.drop("10.0.0.0/24", "blue")
            await delete(ipam, "blue")


async def test_the_project_of_a_namespace_acquires_there_and_others_know_nothing_of_it(ipam: Any) -> None:
    await ipam.namespace("theirs", PROJECT)
    await ipam.namespace("nobody's")
    for name in ("theirs", "nobody's"):
        await ipam.prefix("10.0.0.0/24", name)
    wish = ip_pb2.IpWish(prefix="10.0.0.0/24", namespace="theirs")
    [ip] = await ipam.acquire(wish)
    assert (ip.address, ip.prefix, ip.network, ip.namespace) == ("10.0.0.1", "10.0.0.0/24", "", "theirs")
    assert (await ipam.ips().GetIp(ip_pb2.GetIpRequest(address="10.0.0.1"))).namespace == "theirs"
    hidden = [
        ipam.acquire(ip_pb2.IpWish(prefix="10.0.0.0/24", namespace="nobody's")),
        ipam.acquire(ip_pb2.IpWish(prefix="10.0.0.0/24", namespace="not there")),
        ipam.acquire(ip_pb2.IpWish(prefix="10.0.1.0/24", namespace="theirs")),
    ]
    for call in hidden:
        with pytest.raises(NotFound):
            await call


async def test_a_dump_is_loaded_as_it_was(ipam: Any) -> None:
    await ipam.namespace("old")
    await ipam.namespace("new")
    await fill(ipam, "old")
    lines = await dump(ipam, "old")
    answer = await load(ipam, "new", lines)
    assert (answer.prefixes, answer.ips) == (5, 8)
    assert await dump(ipam, "new") == lines
    await ipam.clean()
    for cidr in await ipam.list_prefixes(namespace="old"):
        old, new = await ipam.get_prefix(cidr, "old"), await ipam.get_prefix(cidr, "new")
        for side in (old, new):
            side.namespace, side.etag = "", ""
        assert old == new
    # What comes next is the same in both.
    for prefix in ("10.0.0.0/24", "2001:db8::/64", "192.0.2.0/28"):
        assert await ipam.take(prefix, "old", count=3) == await ipam.take(prefix, "new", count=3)
    assert (await ipam.cut("10.0.0.0/8", 20, "old")).cidr == (await ipam.cut("10.0.0.0/8", 20, "new")).cidr


async def test_a_load_is_all_or_nothing_and_into_an_empty_namespace(ipam: Any) -> None:
    await ipam.namespace("old")
    await ipam.namespace("new")
    await fill(ipam, "old")
    lines = await dump(ipam, "old")
    with pytest.raises(FailedPrecondition, match="NAMESPACE_NOT_EMPTY"):
        await load(ipam, "old", lines)

    def changed(index: int, **fields: Any) -> list[str]:
        return [json.dumps(json.loads(line) | fields) if n == index else line for n, line in enumerate(lines)]

    kinds = [json.loads(line)["kind"] for line in lines]
    ip, prefix, ip_range = kinds.index("ip"), kinds.index("prefix"), kinds.index("range")
    bad = {
        "cut off": lines[:-1],
        "a line is missing": [*lines[:3], *lines[4:]],
        "no dump": ["hello"],
        "an address outside": changed(ip, address="10.77.0.1"),
        "an address twice": changed(ip + 1, address=json.loads(lines[ip])["address"]),
        "host bits": changed(prefix, cidr="10.0.0.1/8"),
        "a parent that is none": changed(prefix + 1, parent="172.16.0.0/12"),
        "a reservation over an address": changed(ip_range, first="192.0.2.2", last="192.0.2.4"),
        "reserved without reservation": changed(ip, state="reserved"),
        "labels that are none": changed(ip, labels=["x"]),
    }
    for name, content in bad.items():
        with pytest.raises(InvalidArgument):
            await load(ipam, "new", content)
        assert await ipam.list_prefixes(namespace="new") == [], name
    with pytest.raises(InvalidArgument, match="NAMESPACE_MISSING"):
        await load(ipam, "", lines)
    assert (await load(ipam, "new", lines)).ips == 8


async def test_prefixes_of_networks_are_told_and_not_loaded(ipam: Any) -> None:
    await ipam.external("internet", "203.0.113.0/28")
    lines = await dump(ipam, "default")
    assert any('"internet"' in line for line in lines)
    await ipam.namespace("new")
    with pytest.raises(FailedPrecondition, match="DUMP_HAS_NETWORKS"):
        await load(ipam, "new", lines)
