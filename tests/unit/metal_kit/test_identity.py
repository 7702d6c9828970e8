"""Callers, their SPIFFE ids and their roles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_kit import identity
from metal_kit.errors import NotFound, PermissionDenied
from metal_kit.identity import ANONYMOUS, Caller, parse_spiffe
from metalplane.common.v1.access_pb2 import PlaneRole, Role

UUID = "4c4c4544-0051-3510-8052-b4c04f4e3132"
PROJECT = "0198c1d2-0000-7000-8000-000000000001"
SEGMENT = st.from_regex(r"[A-Za-z0-9._-]{1,40}", fullmatch=True)


@given(name=SEGMENT, partition=SEGMENT)
def test_every_identity_reads_back_as_itself(name: str, partition: str) -> None:
    assert parse_spiffe(identity.service_id(name)) == Caller("service", name)
    assert parse_spiffe(identity.client_id(name)) == Caller("client", name)
    assert parse_spiffe(identity.leaf_id(partition, name)) == Caller("leaf", name, partition=partition)
    for agent in ("bmc", "boot"):
        caller = parse_spiffe(f"spiffe://metalplane/partition/{partition}/{agent}")
        assert caller == Caller(agent, partition, partition=partition)
    assert parse_spiffe(identity.machine_id(UUID)) == Caller("machine", UUID, machine=UUID)


@pytest.mark.parametrize(
    "uri",
    [
        "", "spiffe://metalplane", "spiffe://metalplane/service/", "spiffe://other/service/ipam",
        "spiffe://metalplane/service/ipam/", "spiffe://metalplane/service/ipam/x", "spiffe://metalplane/service/ip am",
        f"spiffe://metalplane/machine/{UUID.upper()}", "spiffe://metalplane/machine/7",
        "spiffe://metalplane/partition/p/leaf/", "spiffe://metalplane/partition//leaf/l",
        "spiffe://metalplane/partition/p/root", "spiffe://metalplane/service/ipam\n", "https://metalplane/service/ipam",
        "spiffe://metalplane/service/ípam",
    ],
)  # fmt: skip
def test_other_uris_name_nobody(uri: str) -> None:
    assert parse_spiffe(uri) is None


@given(st.text(max_size=80))
def test_no_text_breaks_the_parser(text: str) -> None:
    parse_spiffe(text)
    parse_spiffe("spiffe://metalplane/" + text)


@pytest.mark.parametrize("held", list(Role.values())[1:])
@pytest.mark.parametrize("wanted", list(Role.values())[1:])
def test_a_higher_role_includes_the_lower(held: Role.ValueType, wanted: Role.ValueType) -> None:
    caller = Caller("user", "u", projects={PROJECT: held}, tenants={"t": held})
    assert caller.may_project(PROJECT, wanted) == (held >= wanted)
    assert caller.may_tenant("t", wanted) == (held >= wanted)
    assert not caller.may_project("other", wanted)
    assert not caller.may_tenant(PROJECT, wanted)


def test_roles_on_the_plane_open_every_project() -> None:
    viewer = Caller("user", "v", plane_role=PlaneRole.PLANE_ROLE_VIEWER)
    operator = Caller("user", "o", plane_role=PlaneRole.PLANE_ROLE_OPERATOR)
    assert viewer.may_project(PROJECT, Role.ROLE_VIEWER)
    assert not viewer.may_project(PROJECT, Role.ROLE_EDITOR)
    assert operator.may_project(PROJECT, Role.ROLE_OWNER)


def test_services_may_and_agents_may_not() -> None:
    assert Caller("service", "ipam").may_project(PROJECT, Role.ROLE_OWNER)
    for caller in (ANONYMOUS, Caller("client", "c"), Caller("leaf", "l", partition="p"), Caller("machine", UUID)):
        assert not caller.may_project(PROJECT, Role.ROLE_VIEWER)
        assert not caller.may_plane(PlaneRole.PLANE_ROLE_VIEWER)


def test_the_unset_role_asks_for_a_viewer_at_least() -> None:
    assert not Caller("user", "u").may_project(PROJECT, Role.ROLE_UNSPECIFIED)
    assert not Caller("user", "u").may_plane(PlaneRole.PLANE_ROLE_UNSPECIFIED)


def test_a_hidden_project_looks_like_a_missing_object() -> None:
    stranger = Caller("user", "s")
    viewer = Caller("user", "v", projects={PROJECT: Role.ROLE_VIEWER})
    with pytest.raises(NotFound) as hidden:
        stranger.require_project(PROJECT, Role.ROLE_EDITOR, what="network n")
    absent = identity.missing("network n")
    assert (hidden.value.reason, hidden.value.message) == (absent.reason, absent.message)
    with pytest.raises(PermissionDenied):
        viewer.require_project(PROJECT, Role.ROLE_EDITOR, what="network n")
    viewer.require_project(PROJECT, Role.ROLE_VIEWER, what="network n")


def test_an_agent_sees_its_own_partition_only() -> None:
    boot = Caller("boot", "p1", partition="p1")
    boot.require_partition("p1", what="machine m")
    with pytest.raises(NotFound):
        boot.require_partition("p2", what="machine m")
    with pytest.raises(NotFound):
        Caller("user", "u").require_partition("", what="machine m")
