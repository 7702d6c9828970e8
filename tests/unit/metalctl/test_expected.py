"""`metalctl bmc expect`: manifests of machines that are expected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from metalplane.bmc.v1 import bmc_pb2, expected_pb2

MAC_1, MAC_2, MAC_3 = ("0c:c4:7a:00:00:01", "0c:c4:7a:00:00:02", "0c:c4:7a:00:00:03")
MANIFEST = """
partition: fra1
machines:
  - {mac: "0C-C4-7A-00-00-01", serial: S1, user: root, password: on-the-label, rack: r1, driver: redfish}
  - mac: "0c:c4:7a:00:00:02"
    serial: S2
    model: R650
  - {mac: "0c:c4:7a:00:00:03", serial: S3}
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return tmp_path / "manifest.yaml"


def known(number: int, mac: str, serial: str, **more: Any) -> expected_pb2.ExpectedMachine:
    id_ = f"0198c1d2-0000-7000-8000-00000000000{number}"
    return expected_pb2.ExpectedMachine(id=id_, partition="fra1", mac=mac, serial=serial, etag="7", **more)


def test_a_manifest_adds_what_is_new_and_changes_what_differs(call: Any, plane: Any, manifest: Path) -> None:
    manifest.write_text(MANIFEST)
    pages = [
        expected_pb2.ListExpectedMachinesResponse(expected_machines=[known(2, MAC_2, "s2")], next_page_token="more"),
        expected_pb2.ListExpectedMachinesResponse(expected_machines=[known(3, MAC_3, "S3", rack="r9")]),
    ]
    plane.answers |= {
        "ListExpectedMachines": pages,
        "CreateExpectedMachine": known(1, MAC_1, "S1"),
        "UpdateExpectedMachine": known(2, MAC_2, "S2"),
    }
    outcome = call("bmc", "expect", "-f", str(manifest))
    assert (outcome.code, outcome.err) == (0, "1 added, 1 changed, 1 as they were\n")
    (created,) = plane.requests("CreateExpectedMachine")
    assert created.request_id
    assert created.expected_machine == expected_pb2.ExpectedMachine(
        partition="fra1", mac=MAC_1, serial="S1", user="root", password="on-the-label", rack="r1",
        driver=bmc_pb2.DRIVER_KIND_REDFISH,
    )  # fmt: skip
    (updated,) = plane.requests("UpdateExpectedMachine")
    assert (updated.expected_machine.id[-1], updated.expected_machine.etag) == ("2", "7")
    assert list(updated.update_mask.paths) == ["serial", "model"]
    assert "on-the-label" not in outcome.out + outcome.err


def test_a_password_is_not_sent_again_once_it_was_used(call: Any, plane: Any, manifest: Path) -> None:
    entry = {"mac": MAC_1, "user": "root", "password": "on-the-label"}
    manifest.write_text(json.dumps({"partition": "fra1", "machines": [entry]}))
    found = known(1, MAC_1, "", user="root", machine="0198c1d2-0000-7000-8000-00000000000f")
    plane.answers["ListExpectedMachines"] = expected_pb2.ListExpectedMachinesResponse(expected_machines=[found])
    assert call("bmc", "expect", "-f", str(manifest)).code == 0
    assert plane.requests("UpdateExpectedMachine") == []


ONE = "partition: fra1\nmachines:\n  - "


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a: [", "neither YAML nor JSON, line 1"),
        ("a: \x00", "neither YAML nor JSON"),
        ("[]", "has `partition` and `machines`, and nothing else"),
        ("partition: fra1\nmachines: []", "`partition` is a text, and `machines` a list with something in it"),
        (ONE + "S1", "machine 1 is not a set of fields"),
        (ONE + "{rack: r1}", "machine 1: name its mac or its serial"),
        (ONE + "{serial: 12345}", "machine 1: serial is not a text; put it in quotes"),
        (ONE + "{serial: S1, colour: red}", "machine 1: there is no field 'colour'; there are mac, serial, user,"),
        (ONE + "{serial: S1, driver: manually}", "machine 1: driver is ipmi or redfish"),
        (ONE + "{serial: S1}\n  - {serial: s1}", "machines 1 and 2 have the same serial"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused_as_a_whole(
    call: Any, plane: Any, manifest: Path, text: str, error: str
) -> None:
    manifest.write_text(text)
    outcome = call("bmc", "expect", "-f", str(manifest))
    assert (outcome.code, plane.asked) == (2, [])
    assert outcome.err.startswith(f"metalctl: {manifest}: {error}")


def test_a_manifest_that_cannot_be_read_is_named(call: Any, plane: Any, tmp_path: Path) -> None:
    outcome = call("bmc", "expect", "-f", str(tmp_path))
    assert (outcome.code, outcome.err) == (2, f"metalctl: {tmp_path}: Is a directory\n")
    assert plane.asked == []
