"""Super networks whose children of different projects may overlap."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from metal_kit.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from metalplane.common.v1.condition_pb2 import ChangeType
from metalplane.ipam.v1 import ip_pb2, namespace_pb2, network_pb2, prefix_pb2, quota_pb2

PROJECT = "0198c1d2-0000-7000-8000-00000000000a"
OTHER = "0198c1d2-0000-7000-8000-00000000000b"
NAMESPACED = network_pb2.NETWORK_TYPE_SUPER_NAMESPACED
END = '{"kind": "end", "lines": 0}'
HOME, OTHER_HOME = f"project-{PROJECT}", f"project-{OTHER}"


async def make(ipam: Any, network_id: str = "tenants", **fields: Any) -> network_pb2.Network:
    """A namespaced super network with room for four children in IPv4."""
    fields.setdefault("prefixes", ["10.0.0.0/24"])
    fields.setdefault("default_child_prefix_length", (26, 0))
    made: network_pb2.Network = await ipam.create(id=network_id, type=NAMESPACED, **fields)
    return made


async def namespaces(ipam: Any) -> list[str]:
    answer = await ipam.namespaces().ListNamespaces(namespace_pb2.ListNamespacesRequest())
    return [each.id for each in answer.namespaces if each.id != "default"]


async def test_children_of_two_projects_have_the_same_prefix_and_vrfs_of_their_own(ipam: Any) -> None:
    made = await make(ipam)
    assert (list(made.prefixes), made.namespace, made.vrf, made.partition) == (["10.0.0.0/24"], "", 0, "")
    assert (made.ipv4.used_prefixes, made.ipv4.free_prefixes) == (0, 4)
    assert await namespaces(ipam) == []
    mine, theirs = await ipam.child("tenants"), await ipam.child("tenants", OTHER)
    assert list(mine.prefixes) == list(theirs.prefixes) == ["10.0.0.0/26"]
    assert (mine.namespace, theirs.namespace) == (HOME, OTHER_HOME)
    assert len({mine.vrf, theirs.vrf, 0}) == 3
    second = await ipam.child("tenants")
    assert list(second.prefixes) == ["10.0.0.64/26"]
    parent = await ipam.get("tenants")
    assert (parent.ipv4.used_prefixes, parent.ipv4.free_prefixes) == (3, 2)
    listed = await ipam.prefixes().ListPrefixes(prefix_pb2.ListPrefixesRequest(network="tenants", page_size=1))
    rest = await ipam.prefixes().ListPrefixes(
        prefix_pb2.ListPrefixesRequest(network="tenants", page_size=1, page_token=listed.next_page_token)
    )
    assert [(p.namespace, p.cidr, p.children) for p in (*listed.prefixes, *rest.prefixes)] == [
        (HOME, "10.0.0.0/24", 2), (OTHER_HOME, "10.0.0.0/24", 1),
    ]  # fmt: skip


async def test_the_copy_and_the_namespace_go_with_the_last_child_of_the_project(ipam: Any) -> None:
    await make(ipam)
    first, second, theirs = await ipam.child("tenants"), await ipam.child("tenants"), await ipam.child("tenants", OTHER)
    await ipam.delete(first.id, f"editor {PROJECT}")
    assert await namespaces(ipam) == [HOME, OTHER_HOME]
    await ipam.delete(second.id)
    assert await namespaces(ipam) == [OTHER_HOME]
    assert list((await ipam.child("tenants")).prefixes) == ["10.0.0.0/26"]
    await ipam.delete(theirs.id)
    assert await namespaces(ipam) == [HOME]


async def update(ipam: Any, network_id: str = "tenants", **fields: Any) -> Any:
    request = network_pb2.UpdateNetworkRequest(network={"id": network_id, **fields})
    request.update_mask.paths.extend(fields)
    return await ipam.networks().UpdateNetwork(request)


async def copies(ipam: Any, network: str = "tenants") -> set[tuple[str, str]]:
    listed = await ipam.prefixes().ListPrefixes(prefix_pb2.ListPrefixesRequest(network=network))
    return {(prefix.namespace, prefix.cidr) for prefix in listed.prefixes}


async def test_a_namespaced_super_has_neither_vrf_nor_partition(ipam: Any) -> None:
    for fields, why in (({"vrf": 7}, "VRF of its own"), ({"partition": "p1"}, "name it as their parent")):
        with pytest.raises(InvalidArgument, match=why):
            await make(ipam, **fields)
    await make(ipam)
    with pytest.raises(FailedPrecondition, match="NO_SUPER_NETWORK"):
        await ipam.child(parent="", partition="p1")
    assert (await ipam.child("tenants", vrf=500)).vrf == 500


async def test_prefixes_follow_in_every_copy_or_are_refused_with_what_is_in_the_way(ipam: Any) -> None:
    await make(ipam)
    mine = await ipam.child("tenants")
    await ipam.child("tenants", OTHER)
    both = ["10.0.0.0/24", "10.1.0.0/24"]
    changed = await update(ipam, prefixes=both[::-1])
    assert (list(changed.prefixes), changed.ipv4.free_prefixes) == (both, 7)
    assert await copies(ipam) == {(home, cidr) for home in (HOME, OTHER_HOME) for cidr in both}
    with pytest.raises(FailedPrecondition) as error:
        await update(ipam, prefixes=["10.1.0.0/24"])
    assert error.value.reason == "PREFIX_IN_USE"
    assert error.value.metadata == {"prefix": "10.0.0.0/24", "namespace": HOME, "in_the_way": mine.prefixes[0]}
    assert list((await ipam.get("tenants")).prefixes) == both
    assert list((await update(ipam, prefixes=["10.0.0.0/24"])).prefixes) == ["10.0.0.0/24"]
    assert await copies(ipam) == {(HOME, "10.0.0.0/24"), (OTHER_HOME, "10.0.0.0/24")}
    # Of another network, in the namespace of one project only: nothing is added anywhere.
    await make(ipam, "more", prefixes=["10.1.0.0/25"])
    await ipam.child("more", OTHER)
    with pytest.raises(AlreadyExists) as taken:
        await update(ipam, prefixes=both)
    assert taken.value.metadata == {"prefix": "10.1.0.0/25", "network": "more", "namespace": OTHER_HOME}
    assert await copies(ipam) == {(HOME, "10.0.0.0/24"), (OTHER_HOME, "10.0.0.0/24")}


async def test_a_namespaced_super_overlaps_whatever_is_elsewhere_and_nothing_in_one_namespace(ipam: Any) -> None:
    await ipam.external("internet", "10.0.0.0/16")
    await make(ipam)
    await make(ipam, "second", prefixes=["10.0.0.0/25"])
    with pytest.raises(AlreadyExists, match="PREFIX_OVERLAPS"):
        await ipam.external("inside", "10.0.0.0/24")
    with pytest.raises(InvalidArgument, match="overlaps"):
        await make(ipam, "third", prefixes=["10.2.0.0/24", "10.2.0.0/25"])
    await ipam.child("tenants")
    await ipam.child("second", OTHER)
    with pytest.raises(AlreadyExists) as error:
        await ipam.child("second")
    assert error.value.field == "network.parent"
    assert error.value.metadata == {"prefix": "10.0.0.0/24", "network": "tenants", "namespace": HOME}
    overlaps = await ipam.prefixes().ListPrefixOverlaps(prefix_pb2.ListPrefixOverlapsRequest())
    told = {(o.left.namespace, o.left.cidr, o.right.namespace, o.right.cidr) for o in overlaps.overlaps}
    assert told == {
        ("default", "10.0.0.0/16", HOME, "10.0.0.0/24"), ("default", "10.0.0.0/16", OTHER_HOME, "10.0.0.0/25"),
        (HOME, "10.0.0.0/24", OTHER_HOME, "10.0.0.0/25"),
    }  # fmt: skip


async def test_copies_of_one_network_are_no_overlap_worth_telling(ipam: Any) -> None:
    await make(ipam)
    for project in (PROJECT, OTHER):
        await ipam.child("tenants", project)
    answer = await ipam.prefixes().ListPrefixOverlaps(prefix_pb2.ListPrefixOverlapsRequest())
    assert list(answer.overlaps) == []


async def test_a_namespaced_super_goes_without_children_only(ipam: Any) -> None:
    await make(ipam, project=PROJECT)
    with pytest.raises(FailedPrecondition, match="PARENT_OF_OTHER_PROJECT"):
        await ipam.child("tenants", OTHER)
    child = await ipam.child("tenants")
    with pytest.raises(FailedPrecondition, match=child.id):
        await ipam.delete("tenants")
    await ipam.delete(child.id)
    await ipam.delete("tenants")
    assert await namespaces(ipam) == []


async def test_what_is_in_the_namespace_of_a_projects_networks_is_theirs_alone(ipam: Any) -> None:
    await make(ipam)
    with pytest.raises(InvalidArgument, match="NAMESPACE_NAME_RESERVED"):
        await ipam.namespace(HOME)
    await ipam.namespace("project-x")
    child = await ipam.child("tenants")
    with pytest.raises(FailedPrecondition, match="NAMESPACE_OF_NETWORKS"):
        await ipam.prefix("192.168.0.0/24", HOME)
    with pytest.raises(FailedPrecondition, match="NAMESPACE_OF_NETWORKS"):
        await ipam.namespaces().DeleteNamespace(namespace_pb2.DeleteNamespaceRequest(id=HOME))
    with pytest.raises(FailedPrecondition, match="PREFIX_OF_NETWORK"):
        await ipam.drop("10.0.0.0/24", HOME)
    for attempt in (
        ipam.cut("10.0.0.0/24", 26, HOME),
        ipam.prefixes().GrowPrefix(prefix_pb2.GrowPrefixRequest(cidr="10.0.0.0/24", namespace=HOME, length=20)),
        ipam.prefix("10.3.0.0/24", network="tenants"),
    ):
        with pytest.raises(FailedPrecondition, match="PREFIX_IS_COPY"):
            await attempt
    dump = ipam.namespaces().DumpNamespace(namespace_pb2.DumpNamespaceRequest(id=HOME))
    lines = [line async for part in dump for line in part.lines]
    assert [line for line in lines if '"network" : "tenants"' in line and '"10.0.0.0/24"' in line]
    assert [line for line in lines if child.id in line]

    async def parts() -> Any:
        yield namespace_pb2.LoadNamespaceRequest(id=HOME, lines=['{"kind": "head", "version": 1}', END])

    with pytest.raises(FailedPrecondition, match="NAMESPACE_OF_NETWORKS"):
        await ipam.namespaces().LoadNamespace(parts())


async def test_the_same_address_of_two_projects_is_found_by_each_as_its_own(ipam: Any) -> None:
    await make(ipam)
    mine, theirs = await ipam.child("tenants"), await ipam.child("tenants", OTHER)
    mes, others = f"editor {PROJECT}", f"editor {OTHER}"
    [one] = await ipam.acquire(ip_pb2.IpWish(network=mine.id))
    [two] = await ipam.acquire(ip_pb2.IpWish(network=theirs.id), stub=ipam.ips(others), project=OTHER)
    assert (one.address, one.namespace, two.address, two.namespace) == ("10.0.0.1", HOME, "10.0.0.1", OTHER_HOME)
    get = ip_pb2.GetIpRequest(address="10.0.0.1")
    assert (await ipam.ips(mes).GetIp(get), await ipam.ips(others).GetIp(get)) == (one, two)
    with pytest.raises(FailedPrecondition, match="ADDRESS_AMBIGUOUS"):
        await ipam.ips("operator").GetIp(get)
    for which in ({"network": theirs.id}, {"namespace": OTHER_HOME}):
        assert await ipam.ips("operator").GetIp(ip_pb2.GetIpRequest(address="10.0.0.1", **which)) == two
        with pytest.raises(NotFound):
            await ipam.ips(mes).GetIp(ip_pb2.GetIpRequest(address="10.0.0.1", **which))
    assert await ipam.list_ips(network=theirs.id) == [two]
    places = await ipam.prefixes().ListAddressPlaces(prefix_pb2.ListAddressPlacesRequest(address="10.0.0.1"))
    assert [(p.namespace, p.prefix.cidr, p.ip.project) for p in places.places] == [
        (HOME, "10.0.0.0/26", PROJECT), (OTHER_HOME, "10.0.0.0/26", OTHER),
    ]  # fmt: skip
    owner = ip_pb2.Owner(kind=ip_pb2.OWNER_KIND_ALLOCATION, id="0198c1d2-0000-7000-8000-0000000000aa")
    attach = ip_pb2.AttachIpRequest(address="10.0.0.1", network=theirs.id, project=OTHER, owner=owner)
    assert (await ipam.ips_as_allocation().AttachIp(attach)).namespace == OTHER_HOME
    await ipam.ips(mes).ReleaseIp(ip_pb2.ReleaseIpRequest(address="10.0.0.1"))
    assert [ip.project for ip in await ipam.list_ips()] == [OTHER]
    await ipam.ips_as_allocation().ReleaseOwned(ip_pb2.ReleaseOwnedRequest(owner=owner))
    assert await ipam.list_ips() == []


async def test_a_watch_tells_the_two_apart(ipam: Any, eventually: Any) -> None:
    await make(ipam)
    children = {project: (await ipam.child("tenants", project)).id for project in (PROJECT, OTHER)}
    told: list[tuple[str, str]] = []

    async def watch() -> None:
        async for answer in ipam.ips("operator").WatchIps(ip_pb2.WatchIpsRequest()):
            told.extend((ChangeType.Name(c.type)[12:], c.ip.namespace) for c in answer.changes)

    watcher = asyncio.create_task(watch())
    try:
        for project, child in children.items():
            await ipam.acquire(ip_pb2.IpWish(network=child), stub=ipam.ips("operator"), project=project)
        await eventually(lambda: {("UPSERTED", HOME), ("UPSERTED", OTHER_HOME)} <= set(told))
        release = ip_pb2.ReleaseIpRequest(address="10.0.0.1", network=children[OTHER])
        await ipam.ips("operator").ReleaseIp(release)
        await eventually(lambda: ("DELETED", OTHER_HOME) in told)
        assert ("DELETED", HOME) not in told
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)


async def test_quotas_count_the_children_of_their_project_only(ipam: Any) -> None:
    await make(ipam)
    quota = quota_pb2.Quota(project=PROJECT, prefixes=1)
    await ipam.quotas().SetQuota(quota_pb2.SetQuotaRequest(quota=quota))
    await ipam.child("tenants", OTHER)
    child = await ipam.child("tenants")
    with pytest.raises(ResourceExhausted, match="QUOTA_EXHAUSTED"):
        await ipam.child("tenants")
    await ipam.delete(child.id)
    await ipam.child("tenants")


async def test_children_of_one_project_that_come_and_go_at_once_leave_nothing(ipam: Any) -> None:
    """The namespace is made and deleted over and over, by whoever is first and last."""
    await make(ipam, prefixes=["10.0.0.0/16", "fd00::/32"], default_child_prefix_length=(26, 64))

    async def come_and_go(project: str) -> None:
        for _ in range(6):
            child = await ipam.child("tenants", project)
            assert len(child.prefixes) == 2
            await ipam.delete(child.id)

    async def change() -> None:
        for prefixes in (["10.0.0.0/16", "fd00::/32", "10.9.0.0/24"], ["10.0.0.0/16", "fd00::/32"]) * 3:
            await update(ipam, prefixes=prefixes)

    await asyncio.gather(*(come_and_go(project) for project in (PROJECT, OTHER) for _ in range(4)), change())
    assert await namespaces(ipam) == []
    assert await copies(ipam) == set()
    await ipam.delete("tenants")


async def test_a_copy_that_differs_is_found(ipam: Any) -> None:
    await make(ipam)
    await ipam.child("tenants")
    connection = await asyncpg.connect(ipam.database_url)
    try:
        await connection.execute(
            "UPDATE ipam.network SET copied_prefixes = '{10.0.0.0/24,10.9.0.0/24}' WHERE id = 'tenants'"
        )
        answer = await ipam.prefixes().VerifyPrefixes(prefix_pb2.VerifyPrefixesRequest(), timeout=60)
        [finding] = answer.findings
        wanted = "10.0.0.0/24 instead of 10.0.0.0/24, 10.9.0.0/24"
        assert finding == f"network tenants: its copy in namespace {HOME} has {wanted}"
        await connection.execute("UPDATE ipam.network SET copied_prefixes = '{10.0.0.0/24}' WHERE id = 'tenants'")
    finally:
        await connection.close()
