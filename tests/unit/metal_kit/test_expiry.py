"""From when on the end of a certificate is an issue, and how bad a one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metal_init.certificates import RENEW_BELOW
from metal_kit.issues import Severity
from metal_kit.issues.events import waiting_issue
from metal_kit.issues.expiry import Lifetime, limit

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SPANS = st.timedeltas(min_value=timedelta(minutes=5), max_value=timedelta(days=7300))


@settings(max_examples=50)
@given(span=SPANS)
def test_it_gets_worse_step_by_step_and_no_step_is_left_out(span: timedelta) -> None:
    minor, major, critical = (limit(severity, span) for severity in Severity)
    assert span > minor > major > critical > timedelta(0)
    life = Lifetime(BEGIN, BEGIN + span)
    tick = timedelta(microseconds=1)
    assert life.severity(life.ends - minor - tick) is None
    assert life.severity(life.ends - minor) is Severity.MINOR
    assert life.severity(life.ends - major) is Severity.MAJOR
    assert life.severity(life.ends - critical) is Severity.CRITICAL
    assert life.severity(life.ends + DAY) is Severity.CRITICAL


@pytest.mark.parametrize(
    ("days", "minor", "major", "critical"),
    [(90, 30, 9, 1), (30, 10, 6, 1), (365, 365 / 3, 30, 1), (3650, 180, 30, 1), (3, 1, 0.6, 0.15)],
)
def test_the_limits_of_the_certificates_that_the_plane_has(
    days: float, minor: float, major: float, critical: float
) -> None:
    found = [limit(severity, days * DAY) / DAY for severity in Severity]
    assert found == pytest.approx([minor, major, critical])


def test_what_was_renewed_when_it_was_due_has_not_been_an_issue() -> None:
    # metal-init renews at the moment at which the issue begins; who runs it daily sees the issue for a day at most.
    assert limit(Severity.MINOR, 90 * DAY) == 90 * DAY * RENEW_BELOW


def test_an_issue_says_when_it_ends_and_since_when_that_is_near() -> None:
    life = Lifetime(BEGIN, BEGIN + 90 * DAY)
    issue = life.issue("certificate/own", "certificate of the service", "renew it", life.ends - 5 * DAY)
    assert issue is not None
    assert (issue.severity, issue.since) == (Severity.MAJOR, life.ends - 30 * DAY)
    assert issue.details == "ends at 2026-04-01 00:00Z, 5 days from now; renew it"
    soon = life.issue("x", "x", "renew it", life.ends - timedelta(hours=3, minutes=20))
    assert soon is not None
    assert "3 h 20 min from now" in soon.details
    over = life.issue("x", "x", "renew it", life.ends + DAY)
    assert over is not None
    assert over.details.startswith("ended at 2026-04-01")
    assert life.issue("x", "x", "renew it", BEGIN) is None


@pytest.mark.parametrize(
    ("age", "severity"),
    [(59, None), (60, Severity.MINOR), (599, Severity.MINOR), (600, Severity.MAJOR), (3600, Severity.CRITICAL)],
)
def test_events_that_wait_get_worse_with_time(age: int, severity: Severity | None) -> None:
    now = BEGIN + timedelta(seconds=age)
    issue = waiting_issue(3, BEGIN, now)
    assert (issue.severity if issue is not None else None) == severity
    if issue is not None:
        assert (issue.id, issue.since) == ("events/waiting", BEGIN)
        assert "3 events" in issue.details
