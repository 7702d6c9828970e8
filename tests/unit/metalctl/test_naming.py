"""Names instead of ids: the one that is meant, or a refusal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_kit.errors import NotFound
from metalctl.naming import is_uuid
from metalplane.allocation.v1 import allocation_pb2
from metalplane.ipam.v1 import network_pb2
from metalplane.tenancy.v1 import project_pb2, tenant_pb2

FIRST = "0198c1d2-0000-7000-8000-000000000001"
SECOND = "0198c1d2-0000-7000-8000-000000000002"
KINDS: dict[str, tuple[str, Any, Any]] = {
    "tenant": ("ListTenants", lambda *each: tenant_pb2.ListTenantsResponse(tenants=each),
               lambda id_, name: tenant_pb2.Tenant(id=id_, name=name)),
    "project": ("ListProjects", lambda *each: project_pb2.ListProjectsResponse(projects=each),
                lambda id_, name: project_pb2.Project(id=id_, name=name)),
    "network": ("ListNetworks", lambda *each: network_pb2.ListNetworksResponse(networks=each),
                lambda id_, name: network_pb2.Network(id=id_, name=name)),
    "allocation": ("ListAllocations", lambda *each: allocation_pb2.ListAllocationsResponse(allocations=each),
                   lambda id_, name: allocation_pb2.Allocation(id=id_, spec={"name": name})),
}  # fmt: skip


def script(plane: Any, kind: str, *named: tuple[str, str]) -> None:
    """Objects of that kind, and a get that knows ids only."""
    method, page, make = KINDS[kind]
    made = [make(id_, name) for id_, name in named]
    plane.answers[method] = page(*made)

    def get(request: Any) -> Any:
        found = [each for each in made if each.id == request.id]
        if not found:
            raise NotFound("NOT_FOUND", "no such id")
        return found[0]

    plane.answers[f"Get{kind.capitalize()}"] = get


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_stands_for_its_object(call: Any, plane: Any, kind: str) -> None:
    script(plane, kind, (SECOND, "web"))
    outcome = call(kind, "get", "web")
    assert (outcome.code, outcome.err) == (0, "")
    assert SECOND in outcome.out


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_is_not_looked_up(call: Any, plane: Any, kind: str) -> None:
    script(plane, kind, (FIRST, SECOND), (SECOND, "web"))
    assert SECOND in call(kind, "get", SECOND).out
    assert KINDS[kind][0] not in [method for method, _ in plane.asked], "even if it is somebody's name"


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_nobody_has_is_not_found(call: Any, plane: Any, kind: str) -> None:
    script(plane, kind)
    outcome = call(kind, "get", "web")
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err == f"metalctl: no {kind} that you may see has the id or name 'web' [NOT_FOUND]\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_several_have_is_refused_with_their_ids(call: Any, plane: Any, kind: str) -> None:
    script(plane, kind, (FIRST, "web"), (SECOND, "web"))
    outcome = call(kind, "get", "web")
    assert (outcome.code, outcome.out) == (1, "")
    assert f"2 {kind}s are named 'web': say which by its id: {FIRST}, {SECOND} [AMBIGUOUS_NAME]" in outcome.err


def test_an_ambiguous_name_frees_and_deletes_nothing(call: Any, plane: Any) -> None:
    for kind, command in (("allocation", "free"), ("project", "delete"), ("network", "delete")):
        script(plane, kind, (FIRST, "web"), (SECOND, "web"))
        assert call(kind, command, "web").code == 1
    assert {method[:4] for method, _ in plane.asked} <= {"List", "GetN"}


def test_a_network_that_is_called_by_its_id_wins_over_one_of_that_name(call: Any, plane: Any) -> None:
    script(plane, "network", ("internet", ""), (SECOND, "internet"))
    plane.answers["DeleteNetwork"] = network_pb2.Network()
    assert call("network", "delete", "internet").code == 0
    assert plane.requests("DeleteNetwork")[0].id == "internet"


def test_names_are_looked_for_on_every_page(call: Any, plane: Any) -> None:
    plane.answers["ListTenants"] = [
        tenant_pb2.ListTenantsResponse(tenants=[{"id": FIRST, "name": "a"}], next_page_token="more"),
        tenant_pb2.ListTenantsResponse(tenants=[{"id": SECOND, "name": "b"}]),
    ]
    plane.answers["GetTenant"] = tenant_pb2.Tenant(id=SECOND)
    assert call("tenant", "get", "b").code == 0
    assert [request.page_token for request in plane.requests("ListTenants")] == ["", "more"]


def test_filters_take_names_too(call: Any, plane: Any) -> None:
    script(plane, "project", (SECOND, "web"))
    plane.answers["ListAllocations"] = allocation_pb2.ListAllocationsResponse()
    assert call("allocation", "list", "--project", "web", "--all").code == 0
    [request] = plane.requests("ListAllocations")
    assert (request.project, request.include_released) == (SECOND, True)


@given(st.uuids())
def test_uuids_in_their_usual_spelling_are_ids(value: Any) -> None:
    assert is_uuid(str(value))
    assert is_uuid(str(value).upper())
    assert not is_uuid(value.hex)
    assert not is_uuid(f"{{{value}}}")


@given(st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z"))
def test_names_are_no_ids_unless_they_look_just_like_one(name: str) -> None:
    assert not is_uuid(name) or len(name) == 36
