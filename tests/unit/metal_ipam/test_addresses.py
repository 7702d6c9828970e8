"""From wishes to units, and from units to prefixes."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_ipam.addresses import Leaf, Unit, Wish, expand, spread
from metal_ipam.networks import Network, NetworkType
from metal_kit.errors import FailedPrecondition, InvalidArgument, OutOfRange, ResourceExhausted

V4, V6 = ip_network("10.0.0.0/30"), ip_network("fd00::/126")
NETWORKS = {
    "dual": Network("dual", NetworkType.EXTERNAL, prefixes=(V6, V4)),
    "four": Network("four", NetworkType.EXTERNAL, prefixes=(ip_network("10.1.0.0/24"),)),
}


def leaf(leaf_id: int, cidr: str, free: int, network: str = "n") -> Leaf:
    return Leaf(leaf_id, network, ip_network(cidr), 1, free, 2, 2 + free)


def test_a_wish_without_family_is_one_address_in_each() -> None:
    assert expand([Wish("dual")], NETWORKS) == [Unit("dual", 4), Unit("dual", 6)]
    assert expand([Wish("four")], NETWORKS) == [Unit("four", 4)]


def test_units_keep_the_order_of_the_wishes() -> None:
    address = ip_address("10.1.0.9")
    units = expand([Wish("dual", family=6, count=2), Wish("four", address), Wish("dual", count=2)], NETWORKS)
    assert units == [
        Unit("dual", 6), Unit("dual", 6), Unit("four", 4, address),
        Unit("dual", 4), Unit("dual", 4), Unit("dual", 6), Unit("dual", 6),
    ]  # fmt: skip


def test_impossible_wishes_are_refused() -> None:
    address = ip_address("10.1.0.9")
    for wishes in (
        [Wish("four", address, count=2)],
        [Wish("four", address, family=4)],
        [Wish("four", address), Wish("four", address)],
        [Wish("four", count=1024)] * 5,
    ):
        with pytest.raises(InvalidArgument):
            expand(wishes, NETWORKS)
    with pytest.raises(FailedPrecondition):
        expand([Wish("four", family=6)], NETWORKS)


def test_given_addresses_come_before_any_and_prefixes_in_the_order_of_their_ids() -> None:
    given_ = Unit("n", 4, ip_address("10.9.0.1"))
    units = [Unit("n", 4), Unit("n", 6), given_, Unit("n", 4)]
    leaves = [leaf(9, "10.9.0.0/30", 2), leaf(7, "fd00::/126", 3), leaf(3, "10.3.0.0/30", 1)]
    shares = spread(units, leaves)
    assert [(s.prefix_id, s.specific, s.next_free) for s in shares] == [(3, (), (0,)), (7, (), (1,)), (9, (2,), (3,))]


def test_not_enough_is_told_with_the_fill() -> None:
    with pytest.raises(ResourceExhausted) as error:
        spread([Unit("n", 4)] * 4, [leaf(1, "10.0.0.0/30", 2), leaf(2, "10.0.0.4/30", 1), leaf(3, "fd00::/126", 3)])
    assert error.value.metadata == {
        "network": "n", "prefixes": "10.0.0.0/30,10.0.0.4/30", "wanted": "4", "free": "3", "used": "4",
    }  # fmt: skip


def test_a_given_address_outside_is_out_of_range_and_one_inside_leaves_room_for_one_less() -> None:
    with pytest.raises(OutOfRange, match="which has 10"):
        spread([Unit("n", 4, ip_address("10.0.0.9"))], [leaf(1, "10.0.0.0/30", 2)])
    with pytest.raises(ResourceExhausted):
        spread([Unit("n", 4), Unit("n", 4), Unit("n", 4, ip_address("10.0.0.1"))], [leaf(1, "10.0.0.0/30", 2)])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 20))
def test_every_unit_is_in_one_share_and_no_share_is_larger_than_free(free: list[int], wanted: int) -> None:
    leaves = [leaf(index, f"10.0.{index}.0/28", room) for index, room in enumerate(free)]
    units = [Unit("n", 4)] * wanted
    if sum(free) < wanted:
        with pytest.raises(ResourceExhausted):
            spread(units, leaves)
        return
    shares = spread(units, leaves)
    assert sorted(index for share in shares for index in share.next_free) == list(range(wanted))
    assert all(len(share.next_free) <= free[share.prefix_id] for share in shares)
    assert [share.prefix_id for share in shares] == sorted(share.prefix_id for share in shares)
