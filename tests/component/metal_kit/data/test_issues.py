"""What a service tells of itself: its certificates, its peers', its events; over real files, rows and connections."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import structlog
from metal_kit import clock, identity
from metal_kit.ca import Authority
from metal_kit.db import Database
from metal_kit.errors import InvalidArgument, Unavailable
from metal_kit.issues import Issue, Severity
from metal_kit.issues.api import IssueApi
from metal_kit.issues.certificates import CertificateWatch
from metal_kit.issues.events import EventIssues
from metal_kit.paging import Paging
from metal_kit.tls import Identity, PeerCertificates
from metalplane.plane.v1 import issue_pb2 as pb

DAY = timedelta(days=1)
NOTHING: Any = None


@pytest.fixture
def root() -> Authority:
    return Authority.create("issues")


def _files(directory: Path, root: Authority, days: float = 90) -> Identity:
    root.save(directory)
    cert, key = root.issue("ipam", identity.service_id("ipam"), ["ipam.metalplane"], ttl=days * DAY).save(
        directory, "tls"
    )
    return Identity(directory / "ca.crt", cert, key)


def _watch(mine: Identity, peers: PeerCertificates | None = None, machines: Path | None = None) -> CertificateWatch:
    return CertificateWatch("kit-test", mine, peers or PeerCertificates(), machines)


async def _found(watch: CertificateWatch, after: timedelta) -> list[tuple[str, Severity]]:
    return [(issue.id, issue.severity) for issue in await watch.issues(clock.now() + after)]


async def test_a_certificate_is_an_issue_before_it_is_an_outage_and_none_once_it_is_renewed(
    tmp_path: Path, root: Authority
) -> None:
    watch = _watch(_files(tmp_path, root))
    assert await _found(watch, 59 * DAY) == []
    assert await _found(watch, 61 * DAY) == [("certificate/own", Severity.MINOR)]
    assert await _found(watch, 82 * DAY) == [("certificate/own", Severity.MAJOR)]
    assert await _found(watch, 89.5 * DAY) == [("certificate/own", Severity.CRITICAL)]
    assert await _found(watch, 91 * DAY) == [("certificate/own", Severity.CRITICAL)]
    _files(tmp_path, root, days=300)
    assert await _found(watch, 91 * DAY) == []


async def test_authorities_end_too_and_a_successor_in_the_bundle_settles_it(tmp_path: Path) -> None:
    old = Authority.create("old", ttl=90 * DAY)
    mine = _files(tmp_path, old, days=85)
    watch = _watch(mine)
    assert await _found(watch, 70 * DAY) == [
        ("certificate/own", Severity.MINOR),
        ("certificate/issuer", Severity.MINOR),
    ]
    new = Authority.create("new")
    mine.ca.write_bytes(old.cert + new.cert)
    assert await _found(watch, 70 * DAY) == [
        ("certificate/own", Severity.MINOR),
        ("certificate/issuer", Severity.MINOR),
    ]
    new.issue("ipam", identity.service_id("ipam"), ttl=90 * DAY).save(tmp_path, "tls")
    assert await _found(watch, 20 * DAY) == []


async def test_the_authority_for_machines_is_watched_where_there_is_one(tmp_path: Path, root: Authority) -> None:
    root.machine_intermediate("machines", ttl=30 * DAY).save(tmp_path, "machines")
    watch = _watch(_files(tmp_path, root), machines=tmp_path / "machines.crt")
    assert await _found(watch, 25 * DAY) == [("certificate/machine_authority", Severity.MAJOR)]


async def test_files_that_cannot_be_used_are_an_issue_while_those_before_them_still_are(
    tmp_path: Path, root: Authority
) -> None:
    mine = _files(tmp_path, root)
    watch = _watch(mine)
    mine.key.write_bytes(root.issue("x", identity.service_id("x")).key)
    (issue,) = await watch.issues(clock.now())
    assert (issue.id, issue.severity) == ("certificate/files", Severity.MAJOR)
    assert "does not belong" in issue.details
    mine.key.unlink()
    assert [each.id for each in await watch.issues(clock.now())] == ["certificate/files"]


async def test_peers_certificates_are_told_of_those_that_still_call_and_of_the_latest_only(
    tmp_path: Path, root: Authority
) -> None:
    peers = PeerCertificates()

    def shows(spiffe: str, days: float) -> None:
        peers.caller({"x509_pem_cert": [root.issue("x", spiffe, ttl=days * DAY).cert]})

    shows(identity.leaf_id("fra", "leaf1"), 10)
    shows(identity.partition_agent_id("fra", "boot"), 10)
    shows(identity.partition_agent_id("fra", "boot"), 90)  # renewed since
    shows(identity.service_id("inventory"), 90)
    shows(identity.machine_id("4c4c4544-0051-3510-8052-b4c04f4e3132"), 3)
    shows(identity.client_id("anna"), 3)
    shows(identity.client_id("edge"), 3)
    watch = _watch(_files(tmp_path, root), peers)
    assert await _found(watch, 2.9 * DAY) == [("certificate/peer/client:edge", Severity.CRITICAL)]
    assert await _found(watch, 0 * DAY) == []
    for shown in peers.latest():
        shown.used += 8 * DAY.total_seconds()  # they all go on calling
    found = await watch.issues(clock.now() + 9 * DAY)
    assert {(each.id, each.severity) for each in found} == {
        ("certificate/peer/client:edge", Severity.CRITICAL),
        ("certificate/peer/leaf:leaf1", Severity.MAJOR),
    }
    assert "certificate of leaf:leaf1" in {each.subject for each in found}


async def test_the_end_of_each_certificate_is_a_metric_and_one_that_is_near_a_line_an_hour(
    tmp_path: Path, root: Authority
) -> None:
    short = _files(tmp_path, root, days=0.0005)  # of six minutes, five are over
    watch = _watch(short)
    with structlog.testing.capture_logs() as lines:
        for _ in range(5):
            await watch.look()
    told = [line for line in lines if line["event"] == "certificate.ends_soon"]
    assert [(line["certificate"], line["log_level"]) for line in told] == [("own", "warning")]
    labels = {"service": "kit-test", "certificate": "own"}
    end = prometheus_client.REGISTRY.get_sample_value("metalplane_certificate_expiry_timestamp_seconds", labels)
    assert end == pytest.approx(datetime.now(UTC).timestamp() + 43, abs=30)
    trust = prometheus_client.REGISTRY.get_sample_value(
        "metalplane_certificate_expiry_timestamp_seconds", labels | {"certificate": "trust"}
    )
    assert trust == root.ends.timestamp()


async def test_events_that_wait_and_events_put_aside_are_issues(db: Database) -> None:
    look = EventIssues(db).issues
    now = clock.now()
    assert await look(now) == []
    async with db.connection() as connection:
        await connection.execute(
            "INSERT INTO outbox (msg_id, subject, envelope, created_at) VALUES ('a', 's', '', now() - interval '20 s')"
        )
        assert await look(now) == [], "an outage of seconds is nobody's concern"
        await connection.execute("UPDATE outbox SET created_at = created_at - interval '15 min'")
        await connection.execute(
            "INSERT INTO parked_event (consumer, subject, event_id, entity, entity_id, error, attempts, envelope) "
            "SELECT c, 's', 'e' || n, 'thing', 'id', 'x', 1, '' FROM generate_series(1, 3) n, unnest('{a,b}'::text[]) c"
        )
    found = {issue.id: issue for issue in await look(now)}
    assert set(found) == {"events/waiting", "events/parked/a", "events/parked/b"}
    assert found["events/waiting"].severity is Severity.MAJOR
    assert "1 event" in found["events/waiting"].details
    assert "15 min" in found["events/waiting"].details
    assert "3 events" in found["events/parked/a"].details
    assert "kit.parked_event" in found["events/parked/a"].details


async def test_a_source_that_cannot_look_is_an_issue_and_hides_none(tmp_path: Path) -> None:
    now = clock.now()

    async def broken(_: datetime) -> list[Issue]:
        raise Unavailable("DATABASE_UNAVAILABLE", "the database is away")

    async def fine(_: datetime) -> list[Issue]:
        return [Issue("thing", Severity.MINOR, "a thing", "is broken", now)]

    api = IssueApi("ipam", Paging(b"x"), [("events", broken), ("things", fine)])
    answer = await api.ListPlaneIssues(pb.ListPlaneIssuesRequest(), NOTHING)
    assert [(each.id, each.service, each.severity) for each in answer.issues] == [
        ("unknown/events", "ipam", pb.PlaneIssueSeverity.PLANE_ISSUE_SEVERITY_CRITICAL),
        ("thing", "ipam", pb.PlaneIssueSeverity.PLANE_ISSUE_SEVERITY_MINOR),
    ]
    assert answer.issues[1].since.ToDatetime(UTC) == now
    severe = pb.ListPlaneIssuesRequest(min_severity=pb.PlaneIssueSeverity.PLANE_ISSUE_SEVERITY_MAJOR)
    assert [each.id for each in (await api.ListPlaneIssues(severe, NOTHING)).issues] == ["unknown/events"]


async def test_a_long_list_comes_in_pages_without_gap_or_repetition() -> None:
    now = clock.now()
    every = [Issue(f"i{n:03}", Severity(n % 3 + 1), "s", "d", now) for n in range(23)]

    async def many(_: datetime) -> list[Issue]:
        return every

    api = IssueApi("ipam", Paging(b"x"), [("many", many)])
    seen: list[tuple[int, str]] = []
    token = ""
    while True:
        answer = await api.ListPlaneIssues(pb.ListPlaneIssuesRequest(page_size=5, page_token=token), NOTHING)
        seen += [(each.severity, each.id) for each in answer.issues]
        token = answer.next_page_token
        if not token:
            break
    assert seen == [(issue.severity, issue.id) for issue in sorted(every, key=lambda i: (-i.severity, i.id))]
    with pytest.raises(InvalidArgument):
        await api.ListPlaneIssues(pb.ListPlaneIssuesRequest(page_token="made up"), NOTHING)
