"""Rules of networks that only show over gRPC and in the database; the others are in `tests/unit/metal_ipam` and in
`test_networks`. The service's README names the test of each rule."""

from __future__ import annotations

from typing import Any

import pytest
from metal_kit.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from metalplane.common.v1.condition_pb2 import AddressFamily
from metalplane.ipam.v1 import ip_pb2, network_pb2, pool_pb2, prefix_pb2

PROJECT = "0198c1d2-0000-7000-8000-00000000000a"
OTHER = "0198c1d2-0000-7000-8000-00000000000b"
SHARED = network_pb2.NETWORK_TYPE_CHILD_SHARED
EXTERNAL = network_pb2.NETWORK_TYPE_EXTERNAL
V4 = AddressFamily.ADDRESS_FAMILY_IPV4


async def update(ipam: Any, network_id: str, token: str = "operator", *, force: bool = False, **fields: Any) -> Any:
    request = network_pb2.UpdateNetworkRequest(network={"id": network_id, **fields}, force=force)
    request.update_mask.paths.extend(fields)
    return await ipam.networks(token).UpdateNetwork(request)


async def vrfs(ipam: Any) -> int:
    pools = await ipam.pools().ListPools(pool_pb2.ListPoolsRequest())
    return next(pool.used for pool in pools.pools if pool.id == "vrf")


async def test_a_child_may_ask_for_a_vrf_unless_its_parent_has_one_and_gives_it_back(ipam: Any) -> None:
    await ipam.super()
    child = await ipam.child(vrf=500)
    assert child.vrf == 500
    with pytest.raises(AlreadyExists) as error:
        await ipam.child(vrf=500)
    assert error.value.metadata["owner"] == child.id
    await ipam.delete(child.id)
    assert await vrfs(ipam) == 0
    await ipam.super("vrf-super", vrf=600, prefixes=["10.9.0.0/16"], default_child_prefix_length=(24, 0))
    with pytest.raises(InvalidArgument, match="VRF_INHERITED"):
        await ipam.child("vrf-super", vrf=601)
    assert await vrfs(ipam) == 1


async def test_the_vrf_of_an_external_network_is_not_shared(ipam: Any) -> None:
    await ipam.external("internet", "198.51.100.0/24", vrf=10)
    for kind in ("external", "super"):
        with pytest.raises(AlreadyExists) as error:
            await (
                ipam.external("second", "203.0.113.0/24", vrf=10)
                if kind == "external"
                else ipam.super("second", vrf=10)
            )
        assert error.value.metadata["owner"] == "internet"
    with pytest.raises(InvalidArgument, match=r"network\.vrf"):
        await ipam.create(id="third", type=EXTERNAL, prefixes=["192.0.2.0/24"])


async def test_no_root_overlaps_another_one_whatever_their_types(ipam: Any) -> None:
    await ipam.super(prefixes=["10.0.0.0/16"], default_child_prefix_length=(22, 0))
    for prefix in ("10.0.0.0/16", "10.0.4.0/24", "10.0.0.0/8"):
        with pytest.raises(AlreadyExists) as error:
            await ipam.external("second", prefix)
        assert error.value.metadata == {"prefix": "10.0.0.0/16", "network": "super"}
        with pytest.raises(AlreadyExists, match="PREFIX_OVERLAPS"):
            await ipam.create(id="second", type=network_pb2.NETWORK_TYPE_UNDERLAY, partition="p", prefixes=[prefix])
    with pytest.raises(InvalidArgument, match="overlaps"):
        await ipam.external("second", "11.0.0.0/16", "11.0.1.0/24")
    await ipam.external("neighbour", "10.1.0.0/16")
    with pytest.raises(AlreadyExists, match="PREFIX_OVERLAPS"):
        await update(ipam, "neighbour", prefixes=["10.1.0.0/16", "10.0.128.0/17"])
    assert list((await ipam.get("neighbour")).prefixes) == ["10.1.0.0/16"]


async def test_what_a_network_is_and_whose_never_changes(ipam: Any) -> None:
    await ipam.super(partition="p1")
    child = await ipam.child()
    changes: dict[str, Any] = {
        "type": SHARED, "project": OTHER, "partition": "p2", "parent": "else", "vrf": 9,
        "nat": network_pb2.NAT_TYPE_IPV4_MASQUERADE,
    }  # fmt: skip
    for field, value in changes.items():
        for network in ("super", child.id):
            with pytest.raises(InvalidArgument, match="IMMUTABLE_FIELD"):
                await update(ipam, network, **{field: value})
    assert await ipam.get(child.id) == child


async def test_a_super_keeps_prefixes_that_children_are_cut_from(ipam: Any) -> None:
    await ipam.super(prefixes=["10.0.0.0/22", "10.8.0.0/22"], default_child_prefix_length=(23, 0))
    children = [await ipam.child() for _ in range(3)]
    assert [child.prefixes[0] for child in children] == ["10.0.0.0/23", "10.0.2.0/23", "10.8.0.0/23"]
    with pytest.raises(FailedPrecondition, match="PREFIX_IN_USE"):
        await update(ipam, "super", prefixes=["10.0.0.0/22"])
    await ipam.delete(children[2].id)
    assert list((await update(ipam, "super", prefixes=["10.0.0.0/22"])).prefixes) == ["10.0.0.0/22"]


async def test_announcable_prefixes_go_under_children_only_by_force(ipam: Any) -> None:
    await ipam.super(additional_announcable_prefixes=["192.0.2.0/24", "203.0.113.0/24"])
    await ipam.child()
    await update(ipam, "super", additional_announcable_prefixes=["192.0.2.0/24", "203.0.113.0/24", "198.51.100.0/24"])
    with pytest.raises(FailedPrecondition, match="ANNOUNCABLE_PREFIXES_IN_USE"):
        await update(ipam, "super", additional_announcable_prefixes=["192.0.2.0/24"])
    forced = await update(ipam, "super", force=True, additional_announcable_prefixes=["192.0.2.0/24"])
    assert list(forced.additional_announcable_prefixes) == ["192.0.2.0/24"]


async def test_destinations_of_an_external_network_stay_within_its_families(ipam: Any) -> None:
    await ipam.external("internet", "198.51.100.0/24")
    assert list((await update(ipam, "internet", destination_prefixes=["0.0.0.0/0"])).destination_prefixes) == [
        "0.0.0.0/0"
    ]
    with pytest.raises(InvalidArgument, match=r"network\.destination_prefixes"):
        await update(ipam, "internet", destination_prefixes=["::/0"])


async def test_who_changes_and_deletes_which_network(ipam: Any) -> None:
    await ipam.super()
    await ipam.create(
        id="ours", type=EXTERNAL, project=PROJECT, prefixes=["198.51.100.0/24"], vrf=9,
        nat=network_pb2.NAT_TYPE_IPV4_MASQUERADE,
    )  # fmt: skip
    mine, shared = await ipam.child(), await ipam.child(type=SHARED)
    editor, member, stranger = f"editor {PROJECT}", f"member {PROJECT}", f"editor {OTHER}"
    for token, network, error in (
        (editor, "super", PermissionDenied), (editor, "ours", PermissionDenied), (member, mine.id, PermissionDenied),
        (stranger, mine.id, NotFound), (stranger, "ours", NotFound), (stranger, shared.id, PermissionDenied),
        ("viewer", mine.id, PermissionDenied),
    ):  # fmt: skip
        with pytest.raises(error):
            await update(ipam, network, token, description="x")
        with pytest.raises(error):
            await ipam.delete(network, token)
    for network in (mine.id, shared.id):
        assert (await update(ipam, network, editor, description="x")).description == "x"
        await ipam.delete(network, editor)
    await ipam.delete("ours")


async def test_an_external_network_of_a_project_gives_addresses_to_that_project_only(ipam: Any) -> None:
    await ipam.create(id="ours", type=EXTERNAL, project=PROJECT, prefixes=["198.51.100.0/24"], vrf=9)
    await ipam.acquire(ip_pb2.IpWish(network="ours"))
    with pytest.raises(NotFound):
        await ipam.acquire(ip_pb2.IpWish(network="ours"), stub=ipam.ips(f"editor {OTHER}"), project=OTHER)
    with pytest.raises(FailedPrecondition, match="NETWORK_OF_OTHER_PROJECT"):
        await ipam.acquire(ip_pb2.IpWish(network="ours"), stub=ipam.ips_as_allocation(), project=OTHER)


async def test_no_network_goes_while_a_machine_has_an_address_in_it(ipam: Any) -> None:
    await ipam.super()
    child = await ipam.child()
    machine = ip_pb2.Owner(kind=ip_pb2.OWNER_KIND_ALLOCATION, id="0198c1d2-0000-7000-8000-0000000000aa")
    service = ipam.ips_as_allocation()
    await ipam.acquire(ip_pb2.IpWish(network=child.id, family=V4), stub=service, owner=machine)
    with pytest.raises(FailedPrecondition, match=r"1 address\(es\) in use"):
        await ipam.delete(child.id)
    await service.ReleaseOwned(ip_pb2.ReleaseOwnedRequest(owner=machine))
    await ipam.delete(child.id)
    prefixes = await ipam.prefixes().ListPrefixes(prefix_pb2.ListPrefixesRequest())
    assert [(p.network, p.children) for p in prefixes.prefixes] == [("super", 0), ("super", 0)]
