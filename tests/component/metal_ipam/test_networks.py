"""Networks over gRPC: types, inheritance, who may do what, and that deletion gives everything back."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest
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
from metalplane.ipam.v1 import ip_pb2, network_pb2, pool_pb2, prefix_pb2

OPERATOR, VIEWER = "operator", "viewer"
PROJECT = "0198c1d2-0000-7000-8000-00000000000a"
OTHER = "0198c1d2-0000-7000-8000-00000000000b"
SHARED = network_pb2.NETWORK_TYPE_CHILD_SHARED
REQUEST = "b9d3e8a4-0000-4000-8000-000000000001"


async def vrf_used(ipam: Any) -> int:
    pools = await ipam.pools().ListPools(pool_pb2.ListPoolsRequest())
    return next(pool.used for pool in pools.pools if pool.id == "vrf")


async def test_a_child_gets_a_prefix_of_each_family_and_a_vrf_of_its_own(ipam: Any) -> None:
    await ipam.super(partition="p1")
    child = await ipam.child()
    assert list(child.prefixes) == ["10.0.0.0/22", "fd00::/64"]
    assert (child.partition, child.vrf, child.parent) == ("p1", 1, "super")
    assert (child.ipv4.total_ips, child.ipv4.free_ips) == (1022, 1022)
    assert child.ipv6.free_ips == 2**63 - 1
    parent = await ipam.get("super")
    assert (parent.ipv4.used_prefixes, parent.ipv4.free_prefixes) == (1, 63)
    assert parent.ipv6.free_prefixes == 2**32 - 1
    assert await vrf_used(ipam) == 1


async def test_a_child_may_be_asked_for_by_partition_and_length_and_in_one_family(ipam: Any) -> None:
    await ipam.super(partition="p1", min_child_prefix_length=(20, 60))
    child = await ipam.child(parent="", partition="p1", length=(24, 0))
    assert list(child.prefixes) == ["10.0.0.0/24"]
    assert child.parent == "super"
    with pytest.raises(InvalidArgument) as error:
        await ipam.child(length=(19, 0))
    assert error.value.metadata["min_length"] == "20"
    with pytest.raises(FailedPrecondition, match="no super network"):
        await ipam.child(parent="", partition="p2")


async def test_deleting_a_child_gives_back_its_prefixes_and_its_own_vrf(ipam: Any) -> None:
    await ipam.super()
    first = await ipam.child()
    await ipam.delete(first.id, f"editor {PROJECT}")
    assert await vrf_used(ipam) == 0
    again = await ipam.child()
    assert (list(again.prefixes), again.vrf) == (list(first.prefixes), first.vrf)


async def test_deleting_one_of_two_children_keeps_the_vrf_that_they_inherited(ipam: Any) -> None:
    await ipam.super(vrf=77)
    one, two = await ipam.child(), await ipam.child()
    assert (one.vrf, two.vrf) == (77, 77)
    await ipam.delete(one.id)
    with pytest.raises(AlreadyExists) as error:
        await ipam.external("internet", "198.51.100.0/24", vrf=77)
    assert error.value.metadata["owner"] == "super"
    await ipam.delete(two.id)
    await ipam.delete("super")
    await ipam.external("internet", "198.51.100.0/24", vrf=77)


async def test_hundreds_of_children_come_and_go_in_a_parent_with_room_for_four(ipam: Any) -> None:
    await ipam.super(prefixes=["10.0.0.0/24"], default_child_prefix_length=(26, 0))
    for _ in range(100):
        children = [await ipam.child() for _ in range(4)]
        for child in children:
            await ipam.delete(child.id)
    answer = await ipam.prefixes().ListPrefixes(prefix_pb2.ListPrefixesRequest(network="super"))
    assert [(p.children, p.free) for p in answer.prefixes] == [(0, 256)]
    await ipam.clean()


async def test_a_full_parent_is_named_with_its_fill_and_nothing_is_kept(ipam: Any) -> None:
    await ipam.super(prefixes=["10.0.0.0/24", "fd00::/48"], default_child_prefix_length=(25, 64))
    await ipam.child()
    await ipam.child()
    with pytest.raises(ResourceExhausted) as error:
        await ipam.child()
    assert "10.0.0.0/24 with 2 children" in error.value.message
    assert await vrf_used(ipam) == 2
    answer = await ipam.prefixes().ListPrefixes(prefix_pb2.ListPrefixesRequest(network="super"))
    assert [p.children for p in answer.prefixes] == [2, 2]
    listed = await ipam.networks().ListNetworks(network_pb2.ListNetworksRequest(parent="super"))
    assert len(listed.networks) == 2


async def test_a_failed_creation_leaves_no_row_and_no_vrf(ipam: Any) -> None:
    await ipam.external("one", "198.51.100.0/24", vrf=5)
    with pytest.raises(AlreadyExists) as error:
        await ipam.external("two", "203.0.113.0/24", "198.51.100.128/25", vrf=6)
    assert error.value.metadata == {"prefix": "198.51.100.0/24", "network": "one"}
    with pytest.raises(NotFound):
        await ipam.get("two")
    await ipam.external("three", "203.0.113.0/24", vrf=6)


async def test_an_id_or_prefix_that_exists_is_refused_but_a_retry_gets_the_first_answer(ipam: Any) -> None:
    fields = {
        "id": "internet", "type": network_pb2.NETWORK_TYPE_EXTERNAL, "prefixes": ["198.51.100.0/24"], "vrf": 9,
    }  # fmt: skip
    first = await ipam.create(request_id=REQUEST, **fields)
    assert await ipam.create(request_id=REQUEST, **fields) == first
    with pytest.raises(AlreadyExists, match="NETWORK_EXISTS"):
        await ipam.create(**fields)
    with pytest.raises(InvalidArgument, match="REQUEST_ID_REUSED"):
        await ipam.create(request_id=REQUEST, **(fields | {"vrf": 10}))
    with pytest.raises(AlreadyExists, match="PREFIX_OVERLAPS"):
        await ipam.create(**(fields | {"id": "same-prefix", "vrf": 11}))


async def test_vrf_numbers_outside_the_pool_are_refused(ipam: Any) -> None:
    with pytest.raises(OutOfRange) as error:
        await ipam.external("internet", "198.51.100.0/24", vrf=131_073)
    assert error.value.field == "network.vrf"


@pytest.mark.parametrize(
    ("sloppy", "canonical"),
    [
        ("10.0.0.1/24", "10.0.0.0/24"),
        ("10.0.0.0/255.255.255.0", "10.0.0.0/24"),
        ("010.0.0.0/8", "10.0.0.0/8"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("2001:db8::1/64", "2001:db8::/64"),
        ("192.0.2.7", "192.0.2.7/32"),
    ],
)
async def test_a_sloppy_prefix_is_answered_with_its_canonical_form(ipam: Any, sloppy: str, canonical: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        await ipam.external("internet", sloppy)
    assert error.value.metadata["canonical"] == canonical
    assert error.value.field == "network.prefixes[0]"


async def test_one_super_and_one_underlay_a_partition_one_shared_child_a_project(ipam: Any) -> None:
    await ipam.super("super-1", partition="p1")
    with pytest.raises(AlreadyExists, match="SUPER_EXISTS"):
        await ipam.super("super-2", partition="p1", prefixes=["10.9.0.0/16"], default_child_prefix_length=(22, 0))
    underlay = {"type": network_pb2.NETWORK_TYPE_UNDERLAY, "partition": "p1"}
    await ipam.create(id="underlay-1", prefixes=["10.200.0.0/16"], **underlay)
    with pytest.raises(AlreadyExists, match="UNDERLAY_EXISTS"):
        await ipam.create(id="underlay-2", prefixes=["10.201.0.0/16"], **underlay)
    await ipam.child("super-1", type=SHARED)
    with pytest.raises(AlreadyExists, match="CHILD_SHARED_EXISTS"):
        await ipam.child("super-1", type=SHARED)
    await ipam.child("super-1", OTHER, type=SHARED)


async def test_projects_create_children_and_nothing_else(ipam: Any) -> None:
    await ipam.super()
    for kind in (network_pb2.NETWORK_TYPE_SUPER, network_pb2.NETWORK_TYPE_EXTERNAL):
        with pytest.raises(PermissionDenied):
            await ipam.create(
                f"editor {PROJECT}", id="mine", type=kind, project=PROJECT, prefixes=["10.7.0.0/16"], vrf=3
            )
    with pytest.raises(PermissionDenied):
        await ipam.create(f"member {PROJECT}", type=network_pb2.NETWORK_TYPE_CHILD, parent="super", project=PROJECT)
    with pytest.raises((PermissionDenied, NotFound)):
        await ipam.create(f"editor {OTHER}", type=network_pb2.NETWORK_TYPE_CHILD, parent="super", project=PROJECT)


async def test_a_super_of_a_project_serves_that_project_only(ipam: Any) -> None:
    await ipam.super(project=PROJECT)
    await ipam.child()
    with pytest.raises(FailedPrecondition, match="PARENT_OF_OTHER_PROJECT"):
        await ipam.child(project=OTHER)


async def test_children_see_the_destination_prefixes_of_their_parent_as_they_are_now(ipam: Any) -> None:
    await ipam.super(destination_prefixes=["0.0.0.0/0"])
    child = await ipam.child()
    assert list(child.destination_prefixes) == ["0.0.0.0/0"]
    request = network_pb2.UpdateNetworkRequest(network={"id": "super", "destination_prefixes": ["::/0", "0.0.0.0/0"]})
    request.update_mask.paths.append("destination_prefixes")
    await ipam.networks().UpdateNetwork(request)
    assert list((await ipam.get(child.id)).destination_prefixes) == ["::/0", "0.0.0.0/0"]


async def test_what_a_project_sees(ipam: Any) -> None:
    await ipam.super("super-1")
    await ipam.super("super-2", project=OTHER, prefixes=["10.1.0.0/16"], default_child_prefix_length=(22, 0))
    await ipam.external("internet", "198.51.100.0/24")
    await ipam.create(id="underlay", type=network_pb2.NETWORK_TYPE_UNDERLAY, partition="p", prefixes=["10.200.0.0/16"])
    mine, theirs = await ipam.child("super-1"), await ipam.child("super-1", OTHER)
    shared = await ipam.child("super-1", OTHER, type=SHARED)
    seen = await ipam.networks(f"member {PROJECT}").ListNetworks(network_pb2.ListNetworksRequest(page_size=100))
    assert {n.id for n in seen.networks} == {"super-1", "internet", mine.id, shared.id}
    for hidden in ("super-2", "underlay", theirs.id):
        with pytest.raises(NotFound):
            await ipam.get(hidden, f"member {PROJECT}")
    everything = await ipam.networks(VIEWER).ListNetworks(network_pb2.ListNetworksRequest(page_size=100))
    assert len(everything.networks) == 7


async def test_lists_are_paged_by_id_without_gaps(ipam: Any) -> None:
    for number in range(7):
        await ipam.external(f"net-{number}", f"198.51.{number}.0/24", vrf=number + 1)
    found, token = [], ""
    while True:
        page = await ipam.networks().ListNetworks(network_pb2.ListNetworksRequest(page_size=3, page_token=token))
        found += [n.id for n in page.networks]
        token = page.next_page_token
        if not token:
            break
    assert found == [f"net-{number}" for number in range(7)]
    listed = await ipam.prefixes().ListPrefixes(prefix_pb2.ListPrefixesRequest(page_size=5))
    rest = await ipam.prefixes().ListPrefixes(
        prefix_pb2.ListPrefixesRequest(page_size=5, page_token=listed.next_page_token)
    )
    assert [p.cidr for p in (*listed.prefixes, *rest.prefixes)] == [f"198.51.{n}.0/24" for n in range(7)]


async def test_deletion_says_what_is_in_the_way(ipam: Any) -> None:
    await ipam.super()
    child = await ipam.child()
    with pytest.raises(FailedPrecondition, match=child.id):
        await ipam.delete("super")
    [ip] = await ipam.acquire(ip_pb2.IpWish(network=child.id, family=AddressFamily.ADDRESS_FAMILY_IPV4))
    with pytest.raises(FailedPrecondition) as error:
        await ipam.delete(child.id)
    assert error.value.metadata == {"children": "0", "addresses": "1"}
    await ipam.ips().ReleaseIp(ip_pb2.ReleaseIpRequest(address=ip.address, network=child.id))
    await ipam.delete(child.id)
    await ipam.delete("super")


async def test_prefixes_are_added_and_removed_only_while_unused(ipam: Any) -> None:
    await ipam.external("internet", "198.51.100.0/24")
    stub = ipam.networks()
    request = network_pb2.UpdateNetworkRequest(
        network={"id": "internet", "prefixes": ["198.51.100.0/24", "203.0.113.0/30"]},
        update_mask={"paths": ["prefixes"]},
    )
    updated = await stub.UpdateNetwork(request)
    assert updated.ipv4.total_ips == 254 + 2
    await ipam.acquire(ip_pb2.IpWish(network="internet", address="203.0.113.1"))
    request.network.prefixes[:] = ["198.51.100.0/24"]
    with pytest.raises(FailedPrecondition, match=r"203\.0\.113\.0/30"):
        await stub.UpdateNetwork(request)
    request.network.prefixes[:] = ["203.0.113.0/30"]
    assert list((await stub.UpdateNetwork(request)).prefixes) == ["203.0.113.0/30"]


async def test_updates_of_what_children_have_from_their_parent_are_refused(ipam: Any) -> None:
    await ipam.super(additional_announcable_prefixes=["192.0.2.0/24"])
    child = await ipam.child()
    stub = ipam.networks(f"editor {PROJECT}")
    for field, value in (("prefixes", ["10.0.4.0/22"]), ("destination_prefixes", ["0.0.0.0/0"])):
        with pytest.raises(InvalidArgument):
            await stub.UpdateNetwork(
                network_pb2.UpdateNetworkRequest(network={"id": child.id, field: value}, update_mask={"paths": [field]})
            )
    with pytest.raises(FailedPrecondition, match="ANNOUNCABLE_PREFIXES_IN_USE"):
        await ipam.networks().UpdateNetwork(
            network_pb2.UpdateNetworkRequest(
                network={"id": "super"}, update_mask={"paths": ["additional_announcable_prefixes"]}
            )
        )


async def test_an_update_with_an_old_etag_is_aborted(ipam: Any) -> None:
    await ipam.super()
    child = await ipam.child()
    stub = ipam.networks(f"editor {PROJECT}")
    request = network_pb2.UpdateNetworkRequest(
        network={"id": child.id, "etag": child.etag, "name": "blue"}, update_mask={"paths": ["name"]}
    )
    renamed = await stub.UpdateNetwork(request)
    assert (renamed.name, renamed.etag) == ("blue", "2")
    with pytest.raises(Aborted):
        await stub.UpdateNetwork(request)
    with pytest.raises(Aborted):
        await stub.DeleteNetwork(network_pb2.DeleteNetworkRequest(id=child.id, etag=child.etag))


async def test_each_change_is_told_in_an_event_of_its_transaction(ipam: Any) -> None:
    await ipam.external("internet", "198.51.100.0/24")
    with pytest.raises(AlreadyExists):
        await ipam.external("internet", "203.0.113.0/24", vrf=4)
    await ipam.delete("internet")
    connection = await asyncpg.connect(ipam.database_url)
    try:
        rows = await connection.fetch("SELECT subject FROM ipam.outbox ORDER BY id")
    finally:
        await connection.close()
    assert [row["subject"] for row in rows] == ["metalplane.ipam.network.changed", "metalplane.ipam.network.deleted"]


async def test_a_page_costs_the_same_number_of_statements_however_long_it_is(
    ipam: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ipam.super()
    statements = 0
    fetch = asyncpg.Connection.fetch

    async def counting(self: asyncpg.Connection, *args: Any, **kwargs: Any) -> Any:
        nonlocal statements
        statements += "FROM network" in args[0] or "FROM prefix" in args[0]
        return await fetch(self, *args, **kwargs)

    monkeypatch.setattr(asyncpg.Connection, "fetch", counting)
    counts = []
    for children in (1, 12):
        for _ in range(children):
            await ipam.child()
        statements = 0
        listed = await ipam.networks().ListNetworks(network_pb2.ListNetworksRequest(page_size=100))
        counts.append((len(listed.networks), statements))
    assert counts == [(2, 3), (14, 3)]
