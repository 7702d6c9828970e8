"""The rules of networks, type by type."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from metal_ipam.network_fields import check_new, check_updated
from metal_ipam.networks import (
    Lengths,
    Nat,
    Network,
    NetworkType,
    check_acquire,
    check_announcable_update,
    check_deletable,
    child_lengths,
    inherited,
    serves,
)
from metal_kit.errors import FailedPrecondition, InvalidArgument

NONE = Lengths()
V4, V6 = ip_network("10.0.0.0/16"), ip_network("fd00::/32")
VALID: dict[NetworkType, Network] = {
    NetworkType.SUPER: Network("s", NetworkType.SUPER, prefixes=(V4, V6), default_child=Lengths(22, 64)),
    NetworkType.SUPER_NAMESPACED: Network(
        "n", NetworkType.SUPER_NAMESPACED, prefixes=(V4, V6), default_child=Lengths(22, 64)
    ),
    NetworkType.CHILD: Network("", NetworkType.CHILD, project="p", parent="s"),
    NetworkType.CHILD_SHARED: Network("", NetworkType.CHILD_SHARED, project="p", parent="s"),
    NetworkType.EXTERNAL: Network("e", NetworkType.EXTERNAL, prefixes=(V4,), vrf=7),
    NetworkType.UNDERLAY: Network("u", NetworkType.UNDERLAY, partition="p1", prefixes=(V4,)),
}
GIVEN: dict[str, dict[str, Any]] = {
    "id": {"id": "x"},
    "prefixes": {"prefixes": (V4,)},
    "parent": {"parent": "s"},
    "project": {"project": "p"},
    "partition": {"partition": "p1"},
    "vrf": {"vrf": 9},
    "nat": {"nat": Nat.IPV4_MASQUERADE},
    "destination_prefixes": {"destination_prefixes": (ip_network("0.0.0.0/0"),)},
    "additional_announcable_prefixes": {"additional_announcable_prefixes": (ip_network("192.0.2.0/24"),)},
    "default_child_prefix_length": {"default_child": Lengths(24)},
    "min_child_prefix_length": {"min_child": Lengths(20)},
}
EMPTY: dict[str, dict[str, Any]] = {
    "id": {"id": ""}, "prefixes": {"prefixes": ()}, "project": {"project": ""}, "partition": {"partition": ""},
    "vrf": {"vrf": 0},
}  # fmt: skip
CHILD_FORBIDDEN = [
    "id", "prefixes", "destination_prefixes", "additional_announcable_prefixes", "default_child_prefix_length",
    "min_child_prefix_length", "nat",
]  # fmt: skip
# As the reference has it: what a type must have, what it must not.
REQUIRED = {
    NetworkType.SUPER: ["id", "prefixes"],
    NetworkType.SUPER_NAMESPACED: ["id", "prefixes"],
    NetworkType.CHILD: ["project"],
    NetworkType.CHILD_SHARED: ["project"],
    NetworkType.EXTERNAL: ["id", "prefixes", "vrf"],
    NetworkType.UNDERLAY: ["id", "partition", "prefixes"],
}
FORBIDDEN = {
    NetworkType.SUPER: ["parent", "nat"],
    NetworkType.SUPER_NAMESPACED: ["parent", "nat", "partition", "vrf"],
    NetworkType.CHILD: CHILD_FORBIDDEN,
    NetworkType.CHILD_SHARED: CHILD_FORBIDDEN,
    NetworkType.EXTERNAL: [
        "parent", "default_child_prefix_length", "min_child_prefix_length", "additional_announcable_prefixes",
    ],
    NetworkType.UNDERLAY: [
        "project", "vrf", "nat", "destination_prefixes", "parent", "default_child_prefix_length",
        "min_child_prefix_length", "additional_announcable_prefixes",
    ],
}  # fmt: skip


def faults(network: Network, length: Lengths = NONE) -> set[str]:
    try:
        check_new(network, length)
    except InvalidArgument as error:
        return {violation.field.removeprefix("network.") for violation in error.violations}
    return set()


@pytest.mark.parametrize("kind", NetworkType)
def test_a_network_of_each_type_can_be_valid(kind: NetworkType) -> None:
    assert faults(VALID[kind]) == set()


@pytest.mark.parametrize(("kind", "field"), [(k, f) for k, fields in REQUIRED.items() for f in fields])
def test_a_required_field_is_missed(kind: NetworkType, field: str) -> None:
    assert field in faults(replace(VALID[kind], **EMPTY[field]))


@pytest.mark.parametrize(("kind", "field"), [(k, f) for k, fields in FORBIDDEN.items() for f in fields])
def test_a_forbidden_field_is_refused(kind: NetworkType, field: str) -> None:
    assert field in faults(replace(VALID[kind], **GIVEN[field]))


def test_why_a_namespaced_super_has_no_vrf_is_told() -> None:
    with pytest.raises(InvalidArgument, match="each child gets a VRF of its own"):
        check_new(replace(VALID[NetworkType.SUPER_NAMESPACED], vrf=9), NONE)


@pytest.mark.parametrize("kind", [k for k in NetworkType if not k.is_child])
def test_only_children_ask_for_a_length(kind: NetworkType) -> None:
    assert "length" in faults(VALID[kind], Lengths(24))


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (NetworkType.SUPER, "project"), (NetworkType.SUPER, "partition"), (NetworkType.SUPER, "vrf"),
        (NetworkType.SUPER, "destination_prefixes"), (NetworkType.SUPER, "additional_announcable_prefixes"),
        (NetworkType.SUPER_NAMESPACED, "project"), (NetworkType.SUPER_NAMESPACED, "destination_prefixes"),
        (NetworkType.SUPER_NAMESPACED, "additional_announcable_prefixes"),
        (NetworkType.CHILD, "vrf"), (NetworkType.EXTERNAL, "project"), (NetworkType.EXTERNAL, "partition"),
        (NetworkType.EXTERNAL, "nat"), (NetworkType.EXTERNAL, "destination_prefixes"),
    ],
)  # fmt: skip
def test_an_optional_field_may_be_given(kind: NetworkType, field: str) -> None:
    assert faults(replace(VALID[kind], **GIVEN[field])) == set()


def test_a_child_names_either_its_parent_or_a_partition() -> None:
    child = VALID[NetworkType.CHILD]
    assert faults(replace(child, parent="", partition="p1")) == set()
    assert faults(replace(child, partition="p1")) == {"parent"}
    assert faults(replace(child, parent="")) == {"parent"}


@pytest.mark.parametrize(
    ("default", "least", "fields"),
    [
        (Lengths(0, 64), NONE, {"default_child_prefix_length.ipv4"}),
        (Lengths(22, 0), NONE, {"default_child_prefix_length.ipv6"}),
        (Lengths(16, 64), NONE, {"default_child_prefix_length.ipv4"}),
        (Lengths(17, 33), NONE, set()),
        (Lengths(22, 64), Lengths(20, 0), set()),
        (Lengths(22, 64), Lengths(23, 0), {"min_child_prefix_length.ipv4"}),
        (Lengths(22, 64), Lengths(0, 32), {"min_child_prefix_length.ipv6"}),
    ],
)
def test_lengths_of_children_fit_the_prefixes_of_a_super(default: Lengths, least: Lengths, fields: set[str]) -> None:
    for kind in (NetworkType.SUPER, NetworkType.SUPER_NAMESPACED):
        assert faults(replace(VALID[kind], default_child=default, min_child=least)) == fields


def test_lengths_in_a_family_without_prefix_are_refused() -> None:
    only_v4 = replace(VALID[NetworkType.SUPER], prefixes=(V4,), min_child=Lengths(0, 60))
    assert faults(only_v4) == {"default_child_prefix_length.ipv6", "min_child_prefix_length.ipv6"}


def test_prefixes_of_one_request_do_not_overlap() -> None:
    external = VALID[NetworkType.EXTERNAL]
    assert faults(replace(external, prefixes=(V4, ip_network("10.0.9.0/24")))) == {"prefixes"}
    assert faults(replace(external, prefixes=(V4, V4))) == {"prefixes"}


def test_destinations_of_an_external_network_are_of_its_families() -> None:
    external = replace(VALID[NetworkType.EXTERNAL], destination_prefixes=(ip_network("::/0"), ip_network("0.0.0.0/0")))
    assert faults(external) == {"destination_prefixes"}
    assert faults(replace(external, prefixes=(V4, V6))) == set()


def test_the_underlay_is_ipv4_only() -> None:
    assert faults(replace(VALID[NetworkType.UNDERLAY], prefixes=(V4, V6))) == {"prefixes"}


@pytest.mark.parametrize("bad", ["Internet", "-x", "x-", "a_b", "a b", "x" * 64])
def test_chosen_ids_are_slugs(bad: str) -> None:
    assert "id" in faults(replace(VALID[NetworkType.EXTERNAL], id=bad))


PARENT = replace(VALID[NetworkType.SUPER], min_child=Lengths(20, 0), partition="p1")


@pytest.mark.parametrize(
    ("asked", "result"),
    [
        (NONE, {4: 22, 6: 64}),
        (Lengths(24, 0), {4: 24}),
        (Lengths(0, 60), {6: 60}),
        (Lengths(20, 128), {4: 20, 6: 128}),
    ],
)
def test_a_child_gets_the_lengths_it_asks_for_or_the_defaults(asked: Lengths, result: dict[int, int]) -> None:
    assert child_lengths(PARENT, asked) == result


@pytest.mark.parametrize(("asked", "least"), [(Lengths(19, 0), "20"), (Lengths(0, 32), "33"), (Lengths(0, 1), "33")])
def test_a_child_is_not_larger_than_its_parent_allows(asked: Lengths, least: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        child_lengths(PARENT, asked)
    assert error.value.metadata["min_length"] == least


def test_a_child_cannot_have_a_family_that_its_parent_has_not() -> None:
    parent = replace(PARENT, prefixes=(V4,), default_child=Lengths(22))
    assert child_lengths(parent, NONE) == {4: 22}
    with pytest.raises(InvalidArgument, match="FAMILY_NOT_IN_PARENT"):
        child_lengths(parent, Lengths(0, 64))


def test_a_child_inherits_partition_destinations_and_vrf() -> None:
    destinations = (ip_network("0.0.0.0/0"),)
    parent = replace(PARENT, vrf=7, vrf_owned=True, destination_prefixes=destinations)
    child = inherited(replace(VALID[NetworkType.CHILD], id="c", name="blue"), parent)
    assert (child.partition, child.destination_prefixes, child.vrf, child.name) == ("p1", destinations, 7, "blue")
    assert not child.vrf_owned
    assert child.parent == "s"


def test_a_given_vrf_is_kept_unless_the_parent_has_one() -> None:
    child = replace(VALID[NetworkType.CHILD], vrf=9)
    assert inherited(child, PARENT).vrf == 9
    for vrf in (7, 9):
        with pytest.raises(InvalidArgument, match="VRF_INHERITED"):
            inherited(child, replace(PARENT, vrf=vrf))


@pytest.mark.parametrize("kind", [k for k in NetworkType if not k.is_super])
def test_only_a_super_is_a_parent(kind: NetworkType) -> None:
    with pytest.raises(InvalidArgument, match="PARENT_NOT_SUPER"):
        inherited(VALID[NetworkType.CHILD], VALID[kind])


def test_a_super_of_a_project_has_children_of_that_project_only() -> None:
    inherited(VALID[NetworkType.CHILD], replace(PARENT, project="p"))
    with pytest.raises(FailedPrecondition, match="PARENT_OF_OTHER_PROJECT"):
        inherited(VALID[NetworkType.CHILD], replace(PARENT, project="other"))


@pytest.mark.parametrize(
    ("kind", "owner", "result"),
    [
        (NetworkType.CHILD, "p", True), (NetworkType.CHILD, "other", False),
        (NetworkType.CHILD_SHARED, "p", True), (NetworkType.CHILD_SHARED, "other", True),
        (NetworkType.EXTERNAL, "", True), (NetworkType.EXTERNAL, "p", True), (NetworkType.EXTERNAL, "other", False),
        (NetworkType.SUPER, "", True), (NetworkType.SUPER, "p", True), (NetworkType.SUPER, "other", False),
        (NetworkType.UNDERLAY, "", False),
    ],
)  # fmt: skip
def test_whom_a_network_serves(kind: NetworkType, owner: str, result: bool) -> None:
    assert serves(replace(VALID[kind], project=owner), "p") == result


def test_supers_give_no_addresses_and_the_underlay_only_to_the_plane() -> None:
    for plane in (False, True):
        with pytest.raises(FailedPrecondition, match="NETWORK_HAS_NO_ADDRESSES"):
            check_acquire(VALID[NetworkType.SUPER], "p", plane=plane)
    check_acquire(VALID[NetworkType.UNDERLAY], "p", plane=True)
    with pytest.raises(FailedPrecondition, match="NETWORK_OF_THE_FABRIC"):
        check_acquire(VALID[NetworkType.UNDERLAY], "p", plane=False)
    for plane in (False, True):
        with pytest.raises(FailedPrecondition, match="NETWORK_OF_OTHER_PROJECT"):
            check_acquire(replace(VALID[NetworkType.CHILD], project="other"), "p", plane=plane)


def test_deletion_names_children_and_addresses_in_the_way() -> None:
    check_deletable(PARENT, children=(), addresses=0)
    with pytest.raises(FailedPrecondition, match=r"2 child network\(s\) \(a, b\) and 3 address\(es\) in use"):
        check_deletable(PARENT, children=("a", "b"), addresses=3)


def test_what_children_may_announce_is_not_removed_under_them() -> None:
    before = replace(PARENT, additional_announcable_prefixes=(ip_network("192.0.2.0/24"),))
    after = replace(before, additional_announcable_prefixes=())
    check_announcable_update(before, after, has_children=False)
    check_announcable_update(after, before, has_children=True)
    with pytest.raises(FailedPrecondition, match=r"192\.0\.2\.0/24"):
        check_announcable_update(before, after, has_children=True)
    check_announcable_update(before, after, has_children=True, force=True)


def test_an_update_is_judged_by_what_results() -> None:
    check_updated(PARENT, replace(PARENT, prefixes=(V4,), default_child=Lengths(22), name="x"))
    with pytest.raises(InvalidArgument, match=r"default_child_prefix_length\.ipv6"):
        check_updated(PARENT, replace(PARENT, prefixes=(V4,)))
    child = replace(VALID[NetworkType.CHILD], id="c", prefixes=(V4,))
    check_updated(child, replace(child, name="x"))
    with pytest.raises(InvalidArgument, match=r"network\.prefixes"):
        check_updated(child, replace(child, prefixes=()))
