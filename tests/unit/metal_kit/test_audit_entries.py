"""What an entry says of a call: its subject, clean texts, sums; and that no value of a request gets into it."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import metalplane
import pytest
from google.protobuf.descriptor import MethodDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st
from metal_kit.access import read_rule
from metal_kit.audit.entry import LONGEST, clean, row_of
from metal_kit.audit.subject import Subject
from metal_kit.audit.sums import Sums
from metalplane.allocation.v1 import allocation_pb2
from metalplane.audit.v1.audit_pb2 import AuditEntry, AuditPhase
from metalplane.bmc.v1 import bmc_pb2
from metalplane.fabric.v1 import agent_pb2
from metalplane.ipam.v1 import ip_pb2
from metalplane.tenancy.v1 import project_pb2, tenant_pb2, token_pb2

MACHINE = "4c4c4544-0051-3510-8052-b4c04f4e3132"


def audited() -> dict[str, MethodDescriptor]:
    found = {}
    for module in pkgutil.walk_packages(metalplane.__path__, "metalplane."):
        if module.name.endswith("_pb2"):
            for service in importlib.import_module(module.name).DESCRIPTOR.services_by_name.values():
                found |= {method.name: method for method in service.methods if read_rule(method).audited}
    return found


METHODS = audited()
# These change the service as a whole, or many things in one call, of which the service's own history has each.
NO_OBJECT = {"ResealCredentials", "ExchangeIps"}


def subject(name: str) -> Subject:
    return Subject(METHODS[name], read_rule(METHODS[name]))


def test_every_audited_method_tells_what_it_was_about() -> None:
    assert len(METHODS) > 50
    for method in METHODS.values():
        found = Subject(method, read_rule(method))
        request = method.input_type._concrete_class()
        answer = method.output_type._concrete_class()
        fill(request)
        fill(answer)
        named = bool(found.object(request, answer))
        assert named != (method.name in NO_OBJECT), f"{method.full_name}: which field says what a call is about?"


def fill(message: Any, depth: int = 2) -> None:
    """Give every text a value."""
    for field in message.DESCRIPTOR.fields:
        if field.is_repeated or (field.containing_oneof and message.WhichOneof(field.containing_oneof.name)):
            continue
        if field.type == field.TYPE_STRING:
            setattr(message, field.name, f"the {field.name}")
        elif field.type == field.TYPE_MESSAGE and depth:
            fill(getattr(message, field.name), depth - 1)


@pytest.mark.parametrize(
    ("method", "request_", "answer", "expected"),
    [
        ("CreateAllocation", allocation_pb2.CreateAllocationRequest(project="p"),
         allocation_pb2.Allocation(id="a", project="p"), ("a", "p", "")),
        ("CreateAllocation", allocation_pb2.CreateAllocationRequest(project="p"), None, ("", "p", "")),
        ("FreeAllocation", allocation_pb2.FreeAllocationRequest(id="a"), None, ("a", "asked", "")),
        # What an update says of the object's project is a claim; where it is, the handler has found out.
        ("UpdateAllocation", allocation_pb2.UpdateAllocationRequest(allocation={"id": "a", "project": "claimed"}),
         None, ("a", "asked", "")),
        ("UpdateAllocation", allocation_pb2.UpdateAllocationRequest(allocation={"id": "a", "project": "claimed"}),
         allocation_pb2.Allocation(id="a", project="real"), ("a", "real", "")),
        ("RegisterBmc", bmc_pb2.RegisterBmcRequest(bmc={"machine": MACHINE, "user": "root", "password": "x"}), None,
         (MACHINE, "asked", "")),
        ("ReleaseOwned", ip_pb2.ReleaseOwnedRequest(owner={"id": "a"}), None, ("a", "asked", "")),
        ("CreateProject", project_pb2.CreateProjectRequest(project={"tenant": "t", "name": "n"}),
         project_pb2.Project(id="p", tenant="t"), ("p", "p", "t")),
        ("SetTenantMember", tenant_pb2.SetTenantMemberRequest(tenant="t", member={"user": "bob"}),
         tenant_pb2.Member(user="bob"), ("bob", "asked", "t")),
        ("SetProjectMember", project_pb2.SetProjectMemberRequest(project="p", member={"user": "bob"}), None,
         ("bob", "p", "")),
        # The id that a maker writes into a new token is ignored; the one that it got is what counts.
        ("CreateToken", token_pb2.CreateTokenRequest(token={"id": "written", "user": "bob"}),
         token_pb2.CreateTokenResponse(token={"id": "made"}, secret="s"), ("made", "asked", "")),
        ("Connect", agent_pb2.ConnectRequest(hello={"switch_id": "leaf01"}), None, ("leaf01", "asked", "")),
    ],
)  # fmt: skip
def test_object_project_and_tenant_are_where_the_contract_has_them(
    method: str, request_: Any, answer: Any, expected: tuple[str, str, str]
) -> None:
    found = subject(method)
    assert (
        found.object(request_, answer),
        found.project(request_, answer, "asked"),
        found.tenant(request_),
    ) == expected


def test_an_update_tells_its_fields_and_not_their_values() -> None:
    request = bmc_pb2.UpdateBmcRequest(bmc={"machine": MACHINE, "password": "hunter2"})
    request.update_mask.paths.extend(["password", "user\n", *(f"f{number}" for number in range(200))])
    fields = subject("UpdateBmc").fields(request)
    assert fields[:2] == ["password", "user\N{REPLACEMENT CHARACTER}"]
    assert len(fields) == 64


@settings(max_examples=100)
@given(st.text())
def test_whatever_a_caller_calls_himself_can_be_stored_and_shown(text: str) -> None:
    found = clean(text * 40)
    assert len(found) <= LONGEST
    assert found.isprintable()
    assert "\0" not in found


def test_a_row_has_the_time_of_its_entry_to_the_microsecond() -> None:
    entry = AuditEntry(call="c", phase=AuditPhase.AUDIT_PHASE_BEGUN)
    entry.time.seconds, entry.time.nanos = 1_770_000_000, 123_456_789
    row = row_of(entry)
    assert row.time.timestamp() == 1_770_000_000 + 0.123456
    assert AuditEntry.FromString(row.entry) == entry


def said(name: str, at: int = 0) -> AuditEntry:
    entry = AuditEntry(call="c", method=name, object="o", phase=AuditPhase.AUDIT_PHASE_ENDED, code="OK")
    entry.begin_time.seconds = entry.time.seconds = at
    return entry


def test_calls_that_are_alike_become_one_entry_from_the_first_to_the_last() -> None:
    sums = Sums(600, 10)
    for at in range(5):
        assert sums.add(("a",), said("a", at), float(at)) == []
    assert sums.due(599) == []
    [entry] = sums.due(600)
    assert (entry.count, entry.phase) == (5, AuditPhase.AUDIT_PHASE_SUMMED)
    assert (entry.begin_time.seconds, entry.time.seconds) == (0, 4)
    assert sums.close() == []


def test_open_sums_are_bounded_and_the_oldest_makes_room() -> None:
    sums = Sums(600, 2)
    ready = [entry.method for name in "abcd" for entry in sums.add((name,), said(name), 0)]
    assert ready == ["a", "b"]
    assert [entry.method for entry in sums.close()] == ["c", "d"]


def test_the_first_refusals_of_a_kind_are_told_each_and_a_sum_names_no_object_that_they_do_not_share() -> None:
    sums = Sums(600, 10, single=2)
    told = [len(sums.add(("a",), said("a"), 0)) for _ in range(5)]
    assert told == [1, 1, 0, 0, 0]
    other = said("a")
    other.object = "another"
    sums.add(("a",), other, 0)
    [entry] = sums.close()
    assert (entry.count, entry.object) == (4, "")
