"""The defects of the field's standard library (D01 to D18) and of a system built on it (U01 to U06), each with
the tests that fail on such behaviour: below where no other module has one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from metal_kit.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from metalplane.ipam.v1 import ip_pb2
from metalplane.ipam.v1 import prefix_pb2 as pb

HERE = Path(__file__).parent

PROVEN = {
    "D01 lists and dumps of a namespace show another one": [
        "test_namespaces.test_the_same_cidr_in_two_namespaces_is_two_prefixes",
        "test_namespaces.test_a_dump_is_loaded_as_it_was",
    ],
    "D02 an IPv6 child goes although it has an address": ["test_a_child_with_one_address_stays_as_it_is"],
    "D03 no address after the last child is gone": ["test_space_serves_for_addresses_again_when_its_children_are_gone"],
    "D04 deletion leaves grandchildren behind": ["test_a_prefix_with_children_stays_and_names_them"],
    "D05 network and broadcast address can be released, then acquired": ["test_what_is_kept_back_is_not_released"],
    "D06 a crash between parent and child leaks or doubles": [
        "test_concurrency.test_connections_cut_while_networks_come_and_go_leave_neither_halves_nor_leaks",
        "test_children_are_whole_when_connections_are_cut",
    ],
    "D07 cycles leave rows behind": [
        "test_verify.test_thousands_of_cycles_leave_no_rows_behind",
        "test_cycles_of_children_leave_one_free_block",
    ],
    "D08 a field means one thing in acquire and another in release": ["test_an_address_says_the_same_in_every_answer"],
    "D09 only the first namespace has its index": ["test_plans.test_prefixes_are_found_at_once_among_many_namespaces"],
    "D10 deletion of a namespace races with what is created in it": [
        "test_namespaces.test_deleting_a_namespace_while_prefixes_are_created_leaves_no_orphan"
    ],
    "D11 lengths are checked for the longer family only": ["test_lengths_are_checked_by_family"],
    "D12 a child with host bits is stored as it was written": ["test_host_bits_are_refused_and_nothing_is_stored"],
    "D13 what exists is returned silently by create": ["test_creating_what_exists_is_refused_but_for_a_retry"],
    "D14 two replicas create overlapping roots": [
        "test_concurrency.test_overlapping_creations_in_two_replicas_leave_a_set_without_overlaps",
        "test_two_replicas_create_roots_of_a_namespace_without_overlap",
    ],
    "D15 an outage is told as not found": [
        "test_concurrency.test_without_a_database_every_call_says_unavailable_and_never_not_found"
    ],
    "D16 names of namespaces end up in statements": ["test_namespaces.test_names_are_data_whatever_is_in_them"],
    "D17 retries sleep past the deadline": [
        "test_concurrency.test_a_call_that_waits_for_a_lock_ends_at_its_deadline_and_its_retry_finds_the_address"
    ],
    "D18 a list reads each entry again": [
        "test_networks.test_a_page_costs_the_same_number_of_statements_however_long_it_is",
        "test_plans.test_networks_and_prefixes_are_read_by_page",
    ],
    "U01 a child network's space never comes back": [
        "test_networks.test_hundreds_of_children_come_and_go_in_a_parent_with_room_for_four"
    ],
    "U02 an inherited VRF is released": [
        "test_networks.test_deleting_one_of_two_children_keeps_the_vrf_that_they_inherited"
    ],
    "U03 an address of a namespace cannot be released": [
        "test_namespaces.test_the_same_cidr_in_two_namespaces_is_two_prefixes"
    ],
    "U04 a network without its prefix stays": ["test_networks.test_a_failed_creation_leaves_no_row_and_no_vrf"],
    "U05 what is available does not fall": [
        "test_prefixes.test_utilisation_rises_and_falls_by_one_address_at_a_time",
        "test_available_falls_by_one_at_every_fill",
    ],
    "U06 a pool is exhausted by leaks": ["test_pools.test_a_pool_of_four_survives_a_hundred_cycles"],
}


@pytest.mark.parametrize("defect", PROVEN)
def test_each_defect_has_its_test(defect: str) -> None:
    for name in PROVEN[defect]:
        module, _, function = name.rpartition(".")
        text = (HERE / f"{module or 'test_known_defects'}.py").read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {function}\(", text, re.MULTILINE), f"{defect}: {name} is gone"


def test_no_defect_is_left_out() -> None:
    assert [each.partition(" ")[0] for each in PROVEN] == [
        *(f"D{number:02}" for number in range(1, 19)),
        *(f"U{number:02}" for number in range(1, 7)),
    ]


@pytest.mark.parametrize(
    ("parent", "length", "count"), [("fd00::/60", 64, 1), ("10.0.0.0/24", 28, 1), ("fd00::/60", 64, 2)]
)
async def test_a_child_with_one_address_stays_as_it_is(ipam: Any, parent: str, length: int, count: int) -> None:
    await ipam.container(parent)
    child = await ipam.cut(parent, length)
    taken = await ipam.take(child.cidr, count=count)
    before = await ipam.get_prefix(parent)
    with pytest.raises(FailedPrecondition, match=taken[0]):
        await ipam.drop(child.cidr)
    assert await ipam.get_prefix(parent) == before
    assert (await ipam.cut(parent, length)).cidr != child.cidr
    assert {ip.address for ip in await ipam.list_ips()} == set(taken)


async def test_space_serves_for_addresses_again_when_its_children_are_gone(ipam: Any) -> None:
    await ipam.container("10.0.0.0/16")
    # A container gives no addresses, whether it has children or not.
    with pytest.raises(FailedPrecondition, match="PREFIX_IS_CONTAINER"):
        await ipam.take("10.0.0.0/16")
    middle = await ipam.cut("10.0.0.0/16", 24, kind=pb.PREFIX_KIND_CONTAINER)
    small = await ipam.cut(middle.cidr, 26)
    assert await ipam.take(small.cidr) == ["10.0.0.1"]
    await ipam.give_back("10.0.0.1")
    await ipam.drop(small.cidr)
    await ipam.drop(middle.cidr)
    assert (await ipam.cut("10.0.0.0/16", 24)).cidr == "10.0.0.0/24"
    assert await ipam.take("10.0.0.0/24") == ["10.0.0.1"]


async def test_a_prefix_with_children_stays_and_names_them(ipam: Any) -> None:
    await ipam.container("10.0.0.0/16")
    await ipam.cut("10.0.0.0/16", cidr="10.0.0.0/20", kind=pb.PREFIX_KIND_CONTAINER)
    for third in range(5):
        await ipam.cut("10.0.0.0/20", cidr=f"10.0.{third}.0/24")
    for cidr, named in (("10.0.0.0/16", "10.0.0.0/20"), ("10.0.0.0/20", "10.0.0.0/24, 10.0.1.0/24, 10.0.2.0/24, …")):
        with pytest.raises(FailedPrecondition) as error:
            await ipam.drop(cidr)
        assert error.value.metadata["in_the_way"] == named
    assert len(await ipam.list_prefixes()) == 7


@pytest.mark.parametrize(("cidr", "kept"), [("10.0.0.0/29", ["10.0.0.0", "10.0.0.7"]), ("fd00::/120", ["fd00::"])])
async def test_what_is_kept_back_is_not_released(ipam: Any, cidr: str, kept: list[str]) -> None:
    await ipam.prefix(cidr)
    before = await ipam.get_prefix(cidr)
    for address in kept:
        with pytest.raises(NotFound):
            await ipam.give_back(address)
        with pytest.raises(FailedPrecondition, match="ADDRESS_RESERVED"):
            await ipam.take(cidr, address=address)
    assert await ipam.get_prefix(cidr) == before
    assert not set(await ipam.take(cidr, count=before.free)) & set(kept)


async def test_children_are_whole_when_connections_are_cut(ipam: Any) -> None:
    """Whatever became of the calls: parent, children and free blocks fit together, and each retry has one child."""
    await ipam.container("10.0.0.0/16")
    requests = [
        pb.AcquireChildPrefixRequest(
            request_id=f"0198c1d2-0000-7000-8000-{number:012}", parent="10.0.0.0/16", length=24
        )
        for number in range(24)
    ]

    async def cut_connections() -> None:
        connection = await asyncpg.connect(ipam.database_url, timeout=10)
        for _ in range(6):
            await connection.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'"""
            )
        await connection.close()

    stub = ipam.prefixes()
    await asyncio.gather(
        *(stub.AcquireChildPrefix(each) for each in requests), cut_connections(), return_exceptions=True
    )
    await ipam.clean()
    answers = [await stub.AcquireChildPrefix(each) for each in requests]
    assert len({each.cidr for each in answers}) == 24
    assert (await ipam.get_prefix("10.0.0.0/16")).children == 24


async def test_cycles_of_children_leave_one_free_block(ipam: Any) -> None:
    await ipam.container("10.0.0.0/22")
    for _ in range(15):
        made = await asyncio.gather(*(ipam.cut("10.0.0.0/22", 24) for _ in range(4)))
        await asyncio.gather(*(ipam.drop(each.cidr) for each in made))
    assert [(await ipam.cut("10.0.0.0/22", 23)).cidr for _ in range(2)] == ["10.0.0.0/23", "10.0.2.0/23"]
    with pytest.raises(ResourceExhausted) as error:
        await ipam.cut("10.0.0.0/22", 23)
    assert error.value.metadata["largest_free"] == ""
    for cidr in await ipam.list_prefixes(parent="10.0.0.0/22"):
        await ipam.drop(cidr)
    parent = await ipam.get_prefix("10.0.0.0/22")
    assert (parent.children, parent.child_used, parent.free) == (0, 0, 1024)


async def test_an_address_says_the_same_in_every_answer(ipam: Any) -> None:
    await ipam.namespace("blue")
    await ipam.container("10.0.0.0/16", "blue")
    await ipam.cut("10.0.0.0/16", 24, "blue")
    wish = ip_pb2.IpWish(prefix="10.0.0.0/24", namespace="blue")
    [acquired] = await ipam.acquire(wish, stub=ipam.ips("operator"))
    got = await ipam.ips("operator").GetIp(ip_pb2.GetIpRequest(address="10.0.0.1", namespace="blue"))
    [listed] = await ipam.list_ips()
    answer = await ipam.prefixes().ListAddressPlaces(pb.ListAddressPlacesRequest(address="10.0.0.1"))
    looked_up = answer.places[0].ip
    assert {(each.prefix, each.namespace, each.network) for each in (acquired, got, listed, looked_up)} == {
        ("10.0.0.0/24", "blue", "")
    }


@pytest.mark.parametrize(("parent", "lengths"), [("10.0.0.0/16", (8, 16, 33, 128)), ("fd00::/64", (1, 64))])
async def test_lengths_are_checked_by_family(ipam: Any, parent: str, lengths: tuple[int, ...]) -> None:
    await ipam.container(parent)
    for length in lengths:
        with pytest.raises(InvalidArgument, match="LENGTH_NOT_ALLOWED") as error:
            await ipam.cut(parent, length)
        assert parent in error.value.message
    assert await ipam.list_prefixes(parent=parent) == []


async def test_host_bits_are_refused_and_nothing_is_stored(ipam: Any) -> None:
    await ipam.container("10.0.0.0/16")
    for call in (
        ipam.prefix("10.7.0.1/24"),
        ipam.cut("10.0.0.0/16", cidr="10.0.5.77/24"),
        ipam.drop("10.0.5.77/24"),
        ipam.take("10.0.5.77/24"),
        ipam.get_prefix("10.0.5.77/24"),
    ):
        with pytest.raises(InvalidArgument) as error:
            await call
        assert error.value.metadata["canonical"] in {"10.7.0.0/24", "10.0.5.0/24"}
    for _ in range(2):
        assert (await ipam.cut("10.0.0.0/16", cidr="10.0.5.0/24")).cidr == "10.0.5.0/24"
        await ipam.drop("10.0.5.0/24")
    assert await ipam.list_prefixes() == ["10.0.0.0/16"]


async def test_creating_what_exists_is_refused_but_for_a_retry(ipam: Any) -> None:
    request_id = "0198c1d2-0000-7000-8000-0000000000aa"
    first = await ipam.prefix("10.0.0.0/24", request_id=request_id)
    assert await ipam.prefix("10.0.0.0/24", request_id=request_id) == first
    for again in ("10.0.0.0/24", "10.0.0.0/25", "10.0.0.0/16"):
        with pytest.raises(AlreadyExists) as error:
            await ipam.prefix(again)
        assert error.value.metadata["prefix"] == "10.0.0.0/24"


async def test_two_replicas_create_roots_of_a_namespace_without_overlap(ipam: Any) -> None:
    await ipam.add_replica()
    cidrs = [f"10.0.{third}.0/{length}" for third in range(0, 16, 2) for length in (23, 24)]
    made = await asyncio.gather(*(ipam.prefix(cidr) for cidr in cidrs), return_exceptions=True)
    assert sum(isinstance(each, AlreadyExists) for each in made) == 8
    assert sorted(each.cidr for each in made if isinstance(each, pb.Prefix)) == sorted(await ipam.list_prefixes())


@pytest.mark.parametrize("cidr", ["10.0.0.0/25", "fd00::/121"])
async def test_available_falls_by_one_at_every_fill(start_ipam: Callable[..., Awaitable[Any]], cidr: str) -> None:
    ipam = await start_ipam()
    await ipam.external("out", cidr)
    usable = None
    for used in range(0, 126, 25):
        network = await ipam.get("out")
        consumption = network.ipv4 if "." in cidr else network.ipv6
        usable = usable or consumption.free_ips
        assert (consumption.used_ips, consumption.free_ips) == (used, usable - used)
        if used < 125:
            await ipam.acquire(ip_pb2.IpWish(network="out", count=25))
    await ipam.clean()
