"""Redfish without I/O: documents that lie about their types, paths that lead away, event streams in pieces."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metal_bmc.drivers.telemetry import Cursor, Health, LogEntry, after
from metal_bmc.redfish import document, log, measurements, session, system
from metal_bmc.redfish.document import Document
from metal_bmc.redfish.events import MOST_BYTES, EventLines
from metal_bmc.redfish.failures import BadAnswer, Busy, LoginRefused, NotThere, RedfishFailure, Refused, SlotsFull
from metal_bmc.redfish.wire import Pin, Reply

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = (
    "PowerState", "Boot", "Actions", "Links", "IndicatorLED", "LocationIndicatorActive", "UUID", "SystemType",
    "BootSourceOverrideEnabled", "BootSourceOverrideTarget", "BootSourceOverrideMode",
    "ResetType@Redfish.AllowableValues", "Parameters", "Temperatures", "Fans", "Voltages", "PowerSupplies", "Status",
    "Reading", "ReadingUnits", "Id", "Created", "Message", "EventId", "@odata.id", "Members",
)  # fmt: skip
NESTED = st.recursive(
    JSON,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from(NAMES), NESTED, max_size=6)
READERS = (
    system.powered,
    system.override,
    system.light,
    system.machine_uuid,
    lambda each: system.reset_types(each, each),
    lambda each: system.cannot_boot(each, "Pxe", persistent=True),
    lambda each: system.boot_change(each, "Pxe", persistent=True, uefi=True),
    measurements.of_thermal,
    measurements.of_power,
    measurements.of_sensor,
    measurements.part,
    log.entry,
    log.event,
    log.rank,
    lambda each: each.links("Members"),
    lambda each: each.link("Links"),
)


@settings(max_examples=150)
@given(OBJECTS)
def test_whatever_a_document_holds_is_read_or_refused(data: dict[str, Any]) -> None:
    for read in READERS:
        told = ""
        try:
            read(Document("/redfish/v1/Systems/1", data))
        except BadAnswer as failure:
            told = str(failure)
        assert len(told) < 300


@settings(max_examples=150)
@given(st.binary(max_size=200) | JSON.map(lambda each: json.dumps(each).encode()))
def test_whatever_a_body_holds_is_parsed_or_refused(body: bytes) -> None:
    told = "JSON"
    try:
        document.parse("/redfish/v1", body)
    except BadAnswer as failure:
        told = str(failure)
    assert "JSON" in told
    assert all(len(each) < 200 for each in document.message_ids(body))


@pytest.mark.parametrize("text", ['{"a": 1', "[]", "", "null", "9" * 5000, "[" * 200_000, b"\xff\xfe{}"])
def test_what_is_no_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(BadAnswer):
        document.parse("/redfish/v1", text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(
    "path",
    [
        "/redfish/v1", "/redfish/v1/", "/redfish/v1/Systems/System.Embedded.1",
        "/redfish/v1/a(b)%20c/d?$skip=50&$top=1",
        "/redfish/v1/Chassis/{ChassisId}/Sensors/0|1",
    ],
)  # fmt: skip
def test_paths_of_the_service_are_followed(path: str) -> None:
    assert document.checked_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "Systems/1", "/redfish/v10", "/redfish/v1//evil.example/x", "//evil.example/redfish/v1",
        "https://evil.example/redfish/v1", "/redfish/v1/../../etc", "/redfish/v1/x\r\nHost: evil", "/redfish/v1/a b",
        "/redfish/v1/" + "x" * 600, "/redfish/v1/é", "/redfish/v1/x#y", "\\redfish\\v1",
    ],
)  # fmt: skip
def test_paths_that_lead_away_are_not(path: str) -> None:
    with pytest.raises(BadAnswer):
        document.checked_path(path)


def test_a_location_may_be_a_whole_url_of_which_the_path_counts() -> None:
    sessions = "/redfish/v1/SessionService/Sessions/7"
    assert document.location_path(sessions) == sessions
    assert document.location_path(f"https://elsewhere.example:8443{sessions}") == sessions
    for bad in ("https://[::1", "mailto:x", "https://elsewhere.example/login"):
        with pytest.raises(BadAnswer):
            document.location_path(bad)


def test_a_wrong_type_is_told_by_place_name_and_kind() -> None:
    with pytest.raises(BadAnswer, match=r"/redfish/v1/Systems/1: PowerState should be a text and is a number"):
        system.powered(Document("/redfish/v1/Systems/1", {"PowerState": 1}))
    with pytest.raises(BadAnswer, match="PowerState should be a text and is missing"):
        system.powered(Document("/redfish/v1/Systems/1", {"PowerState": None}))
    with pytest.raises(BadAnswer, match="none of the standard's"):
        system.powered(Document("/redfish/v1/Systems/1", {"PowerState": "Yes"}))


POWER = {"On": True, "Off": False, "PoweringOn": False, "PoweringOff": True}


@pytest.mark.parametrize("state", POWER)
def test_a_machine_is_on_until_it_is_off_and_off_until_it_is_on(state: str) -> None:
    assert system.powered(Document("/", {"PowerState": state})) is POWER[state]


def test_reset_types_are_those_of_the_list_or_of_the_action_info_or_the_usual() -> None:
    listed = Document("/", {"ResetType@Redfish.AllowableValues": ["ForceOn"]})
    info = Document("/", {"Parameters": [{"Name": "Other"}, {"Name": "ResetType", "AllowableValues": ["On", "Nmi"]}]})
    plain = Document("/", {})
    assert system.reset_types(listed, info) == {"ForceOn"}
    assert system.reset_types(plain, info) == {"On", "Nmi"}
    assert system.reset_types(plain, None) >= {"On", "ForceOff", "ForceRestart"}
    assert system.choose(system.ON, {"ForceOn", "ForceRestart"}) == "ForceOn"
    assert system.choose(system.ON, {"ForceRestart", "PowerCycle"}) == ""


def reply(status: int, message_id: str = "", **headers: str) -> Reply:
    body = {"error": {"code": "Base.1.8.GeneralError", "@Message.ExtendedInfo": [{"MessageId": message_id}]}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, named, json.dumps(body).encode() if message_id else b"<html>")


FAILURES: list[tuple[Reply, type[RedfishFailure]]] = [
    (reply(400, "Base.1.8.ActionParameterNotSupported"), NotThere),
    (reply(400, "Base.1.8.PropertyValueNotInList"), Refused),
    (reply(403), Refused),
    (reply(404), NotThere),
    (reply(405), NotThere),
    (reply(409, "x"), Refused),
    (reply(429), Busy),
    (reply(500), Refused),
    (reply(503, retry_after="7"), Busy),
    (reply(307), BadAnswer),
]


@pytest.mark.parametrize(("answer", "kind"), FAILURES, ids=lambda each: str(getattr(each, "status", "")))
def test_a_status_means_what_the_standard_says(answer: Reply, kind: type[RedfishFailure]) -> None:
    assert type(session.failure("/redfish/v1/x", answer)) is kind


LOGINS: list[tuple[Reply, type[RedfishFailure]]] = [
    (reply(400), LoginRefused),
    (reply(401), LoginRefused),
    (reply(403), LoginRefused),
    (reply(503, "Base.1.8.SessionLimitExceeded"), SlotsFull),
    (reply(400, "Base.1.2.SessionLimitExceeded"), SlotsFull),
    (reply(503), Busy),
    (reply(500), BadAnswer),
    (reply(404), BadAnswer),
]


@pytest.mark.parametrize(("answer", "kind"), LOGINS, ids=lambda each: str(getattr(each, "status", "")))
def test_a_refused_login_is_told_from_a_full_table_and_from_a_defect(answer: Reply, kind: type[RedfishFailure]) -> None:
    assert type(session._login_failure(answer)) is kind


WAITS = {"7": 7.0, " 12 ": 12.0, "": 0.0, "-3": 0.0, "1.5": 0.0, "Wed, 21 Oct 2026 07:28:00 GMT": 0.0, "9" * 30: 0.0}


@pytest.mark.parametrize("text", WAITS)
def test_retry_after_is_a_number_of_seconds(text: str) -> None:
    assert session.retry_after(reply(503, retry_after=text)) == WAITS[text]


def test_retry_after_has_an_end() -> None:
    assert session.retry_after(reply(503, retry_after="999999999")) == 3600


def test_message_ids_are_the_last_parts_of_what_looks_like_one() -> None:
    found = document.message_ids(reply(503, "Base.1.8.SessionLimitExceeded").body)
    assert found == ("GeneralError", "SessionLimitExceeded")
    assert document.message_ids(b'{"error": {"code": "x\\u001b[2J", "@Message.ExtendedInfo": [1]}}') == ()


def test_a_fingerprint_has_the_length_of_sha_256() -> None:
    assert Pin(bytes(range(32))).seen == bytes(range(32))
    with pytest.raises(ValueError, match="32 bytes"):
        Pin(b"short")


EVENTS = (b'{"a": 1}', b"two\nlines", b"x" * 500)


@settings(max_examples=100)
@given(st.lists(st.sampled_from(EVENTS), max_size=6), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.data())
def test_events_are_the_same_in_whatever_pieces_they_come(events: list[bytes], end: bytes, data: st.DataObject) -> None:
    text = b": hello" + end
    for number, event in enumerate(events):
        lines = b"".join(b"data: " + line + end for line in event.split(b"\n"))
        text += b"id: %d" % number + end + lines + end
    text += b": bye" + end + end
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[one:two] for one, two in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    lines = EventLines()
    assert [event for piece in pieces for event in lines.feed(piece)] == events


@pytest.mark.parametrize("piece", [b"x" * 8192, b"data: " + b"x" * 8186 + b"\n"], ids=["line", "event"])
def test_an_event_without_end_is_refused(piece: bytes) -> None:
    lines = EventLines()
    for _ in range(MOST_BYTES // 8192):
        assert lines.feed(piece) == []
    with pytest.raises(BadAnswer, match=str(MOST_BYTES)):
        lines.feed(piece * 2)


def test_a_log_is_sorted_and_read_from_the_cursor_on() -> None:
    def entry(minute: int, number: int) -> LogEntry:
        return LogEntry(
            Cursor(datetime(2026, 1, 1, 0, minute, tzinfo=UTC), number), Health.OK, "", f"{minute}/{number}"
        )

    entries = [entry(3, 9), entry(1, 7), entry(3, 10), entry(2, 8)]
    assert [each.text for each in after(entries, entry(1, 7).cursor)] == ["2/8", "3/9", "3/10"]
    # Cleared and numbered anew: the time tells.
    assert [each.text for each in after([entry(4, 1)], entry(3, 10).cursor)] == ["4/1"]


TIMES = {
    "2026-11-22T06:00:00Z": datetime(2026, 11, 22, 6, tzinfo=UTC),
    "2026-11-22T06:00:00+02:00": datetime(2026, 11, 22, 4, tzinfo=UTC),
    "2026-11-22T06:00:00": datetime(2026, 11, 22, 6, tzinfo=UTC),
    "yesterday": log.LONG_AGO,
    "": log.LONG_AGO,
    "0001-01-01T00:00:00+14:00": log.LONG_AGO,
}


@pytest.mark.parametrize("text", TIMES)
def test_times_are_in_utc_or_long_ago(text: str) -> None:
    assert log.time(text) == TIMES[text]
