"""Which networks machines and firewalls may take part in: the table, row by row."""

from __future__ import annotations

from typing import Any

import pytest
from metal_allocation.networks import check
from metal_kit.errors import FailedPrecondition, InvalidArgument, NotFound, Problem
from metalplane.ipam.v1.network_pb2 import Network, NetworkType

MINE, OTHER = "01980000-0000-7000-8000-000000000001", "01980000-0000-7000-8000-000000000002"
HERE = "mini"


def network(kind: str, name: str = "", *, project: str = MINE, partition: str = HERE) -> Network:
    number = NetworkType.Value(f"NETWORK_TYPE_{kind.upper()}")
    return Network(id=name or kind, type=number, project=project, partition=partition)


def child(name: str = "child", **more: Any) -> Network:
    return network("child", name, **more)


def shared(name: str = "shared", **more: Any) -> Network:
    return network("child_shared", name, **more)


def external(name: str = "internet") -> Network:
    return network("external", name, project="", partition="")


def judge(*networks: Network, firewall: bool = False) -> None:
    check(networks, project=MINE, partition=HERE, firewall=firewall)


def refusal(*networks: Network, firewall: bool = False) -> Problem:
    with pytest.raises(Problem) as caught:
        judge(*networks, firewall=firewall)
    return caught.value


@pytest.mark.parametrize("firewall", [False, True])
@pytest.mark.parametrize("kind", ["super", "super_namespaced", "underlay", "unspecified"])
def test_super_and_underlay_networks_take_no_machines(kind: str, firewall: bool) -> None:
    problem = refusal(child(), network(kind, "x", project=""), external(), firewall=firewall)
    assert isinstance(problem, InvalidArgument)
    assert (problem.reason, problem.field) == ("NETWORK_TYPE", "spec.networks[1].network")


def test_a_network_is_named_once() -> None:
    problem = refusal(child(), external(), child())
    assert (problem.reason, problem.field) == ("NETWORK_TWICE", "spec.networks[2].network")


def test_a_machine_takes_exactly_one_private_network() -> None:
    judge(child())
    judge(shared())
    judge(child(), external(), external("company"))
    assert refusal(external()).reason == "PRIVATE_NETWORKS"
    assert refusal(child("a"), child("b")).reason == "PRIVATE_NETWORKS"
    assert refusal(child(), shared()).reason == "PRIVATE_NETWORKS"
    assert refusal().field == "spec.networks"


def test_a_firewall_takes_several_private_networks_and_at_least_one() -> None:
    judge(child(), external(), firewall=True)
    judge(child("a"), child("b"), shared(), external(), firewall=True)
    assert refusal(external(), firewall=True).reason == "PRIVATE_NETWORKS"


def test_a_shared_storage_network_has_its_own_firewall() -> None:
    judge(shared(), external(), firewall=True)


def test_at_most_one_network_is_shared() -> None:
    assert refusal(shared("a"), shared("b"), external(), firewall=True).reason == "SHARED_NETWORKS"


def test_a_firewall_needs_a_way_out() -> None:
    assert refusal(child(), firewall=True).reason == "EXTERNAL_NETWORK"


def test_a_foreign_shared_network_may_be_used() -> None:
    judge(shared(project=OTHER))
    judge(child(), shared(project=OTHER), external(), firewall=True)


@pytest.mark.parametrize("kind", ["child", "external", "super"])
def test_another_projects_network_looks_as_if_it_did_not_exist(kind: str) -> None:
    problem = refusal(network(kind, "secret", project=OTHER))
    assert isinstance(problem, NotFound)
    assert problem.field == "spec.networks[0].network"
    assert OTHER not in problem.message


@pytest.mark.parametrize("make", [child, shared])
def test_the_private_network_is_in_the_partition(make: Any) -> None:
    problem = refusal(make(partition="elsewhere"))
    assert isinstance(problem, FailedPrecondition)
    assert (problem.reason, problem.field) == ("NETWORK_PARTITION", "spec.networks[0].network")


def test_a_network_without_a_partition_is_in_all() -> None:
    judge(child(partition=""))


def test_networks_of_one_machine_do_not_overlap() -> None:
    def with_prefixes(made: Network, *prefixes: str) -> Network:
        made.prefixes.extend(prefixes)
        return made

    mine = with_prefixes(child(), "10.0.0.0/24", "fd00::/64")
    for other, firewall in (
        (with_prefixes(external(), "198.51.100.0/24", "10.0.0.0/16"), False),
        (with_prefixes(shared(project=OTHER), "fd00::/64"), True),
    ):
        problem = refusal(mine, other, external("way-out"), firewall=firewall)
        assert isinstance(problem, FailedPrecondition)
        assert (problem.reason, problem.field) == ("NETWORKS_OVERLAP", "spec.networks[1].network")
        assert f"of network {other.id} overlaps" in problem.message
    judge(mine, with_prefixes(external(), "10.0.1.0/24", "fd00:0:0:1::/64"))
