"""`metalctl issues` asks every service, and shows what they tell as one list."""

from __future__ import annotations

import json
from typing import Any

from metal_kit.errors import PermissionDenied, Unavailable
from metalplane.plane.v1 import issue_pb2 as pb

MINOR, CRITICAL = (
    pb.PlaneIssueSeverity.PLANE_ISSUE_SEVERITY_MINOR,
    pb.PlaneIssueSeverity.PLANE_ISSUE_SEVERITY_CRITICAL,
)


def _issue(service: str, id_: str, severity: Any) -> pb.PlaneIssue:
    issue = pb.PlaneIssue(id=id_, service=service, severity=severity, subject="a thing", details="is broken")
    issue.since.FromJsonString("2026-11-01T10:00:00Z")
    return issue


def _told(*issues: pb.PlaneIssue, more: str = "") -> pb.ListPlaneIssuesResponse:
    return pb.ListPlaneIssuesResponse(issues=issues, next_page_token=more)


def test_what_all_services_tell_is_one_list_the_worst_first(call: Any, plane: Any) -> None:
    plane.answers["ListPlaneIssues"] = [
        _told(_issue("tenancy", "b", MINOR)),
        _told(_issue("inventory", "a", MINOR), more="next"),
        _told(),
        _told(),
        _told(),
        _told(_issue("bmc", "z", CRITICAL)),
        _told(_issue("inventory", "c", CRITICAL)),
    ]
    outcome = call("issues", "-o", "json")
    assert outcome.code == 0
    found = [(each["service"], each["id"], each["severity"]) for each in json.loads(outcome.out)]
    assert [severity for *_, severity in found] == ["PLANE_ISSUE_SEVERITY_CRITICAL"] * 2 + [
        "PLANE_ISSUE_SEVERITY_MINOR"
    ] * 2
    assert {id_ for _, id_, _ in found} == {"a", "b", "c", "z"}


def test_a_service_that_tells_nothing_is_an_issue_and_hides_nobody_elses(call: Any, plane: Any) -> None:
    plane.away = frozenset({"ipam", "allocation", "fabric", "bmc", "boot"})
    plane.answers["ListPlaneIssues"] = [
        Unavailable("TRANSPORT_UNAVAILABLE", "cannot be reached"),
        _told(_issue("inventory", "a", MINOR)),
    ]
    outcome = call("issues")
    assert outcome.code == 0
    header, first, second = outcome.out.splitlines()
    assert header.split() == ["SEVERITY", "SERVICE", "SUBJECT", "SINCE", "DETAILS"]
    assert first.startswith("critical  tenancy")
    assert "cannot be reached [TRANSPORT_UNAVAILABLE]" in first
    assert second.startswith("minor     inventory  a thing")


def test_who_may_not_ask_is_told_so_and_nothing_else(call: Any, plane: Any) -> None:
    plane.answers["ListPlaneIssues"] = PermissionDenied("NOT_ALLOWED", "this needs the plane role viewer")
    outcome = call("issues")
    assert (outcome.code, outcome.out) == (4, "")
    assert "plane role viewer" in outcome.err
