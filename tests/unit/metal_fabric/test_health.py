"""How a switch is and why, and whether its cables are where they were recorded."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from metal_fabric.cabling import Cable
from metal_fabric.health import (
    BEHIND,
    RIVAL_FORGOTTEN,
    STILL_ITSELF,
    Code,
    Facts,
    Finding,
    Health,
    assess,
    health_of,
)
from metal_fabric.verification import Announced, verify

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=1)
WELL = Facts(
    "leaf01", NOW, 7, 7, wanted_since=LONG_AGO, connected=True, seen=NOW, uplinks=("Ethernet120", "Ethernet124")
)
M1, M2 = "4c4c4544-0042-4b10-8031-b9c04f4b3533", "4c4c4544-0042-4b10-8031-b9c04f4b3534"
CABLES = [
    Cable("leaf01", "Ethernet0", M1, "aa:00:00:00:00:01"),
    Cable("leaf02", "Ethernet0", M1, "aa:00:00:00:00:02"),
    Cable("leaf01", "Ethernet4", M2, "bb:00:00:00:00:01"),
    Cable("leaf02", "Ethernet4", M2, "bb:00:00:00:00:02"),
]


@pytest.mark.parametrize(
    ("change", "health", "codes"),
    [
        ({}, Health.HEALTHY, []),
        ({"connected": False}, Health.UNKNOWN, [Code.NOT_CONNECTED]),
        ({"connected": False, "seen": None, "applied": 0}, Health.UNKNOWN, [Code.NOT_CONNECTED]),
        ({"applied": 6}, Health.UNHEALTHY, [Code.BEHIND]),
        ({"applied": 6, "wanted_since": NOW - BEHIND}, Health.HEALTHY, []),
        ({"error": "no"}, Health.UNHEALTHY, [Code.APPLY_FAILED]),
        ({"error": "no", "quarantine": "failed 5 times"}, Health.UNHEALTHY, [Code.QUARANTINED]),
        ({"uplinks_down": ("Ethernet120",)}, Health.DEGRADED, [Code.UPLINK_DOWN]),
        ({"uplinks_down": ("Ethernet120", "Ethernet124")}, Health.UNHEALTHY, [Code.NO_UPLINK]),
        ({"uplinks": ()}, Health.HEALTHY, []),
        ({"findings": (Finding(Code.DRIFT, "", "2 rows"),)}, Health.DEGRADED, [Code.DRIFT]),
        (
            {"findings": (Finding(Code.DRIFT, "", "2 rows"),), "applied": 0, "connected": False},
            Health.UNKNOWN,
            [Code.NOT_CONNECTED, Code.DRIFT],
        ),
        (
            {"findings": (Finding(Code.NAME_TAKEN, "x", "two", LONG_AGO, NOW - RIVAL_FORGOTTEN),)},
            Health.DEGRADED,
            [Code.NAME_TAKEN],
        ),
        ({"findings": (Finding(Code.NAME_TAKEN, "x", "two", LONG_AGO, LONG_AGO),)}, Health.HEALTHY, []),
        # One that does not say which box it is may be the same one, whose old stream is still open.
        ({"findings": (Finding(Code.NAME_TAKEN, "", "two", NOW - STILL_ITSELF, NOW),)}, Health.HEALTHY, []),
        (
            {"findings": (Finding(Code.NAME_TAKEN, "", "two", NOW - 2 * STILL_ITSELF, NOW),)},
            Health.DEGRADED,
            [Code.NAME_TAKEN],
        ),
    ],
)
def test_a_switch_is_as_its_worst_reason(change: dict[str, object], health: Health, codes: list[Code]) -> None:
    reasons = assess(replace(WELL, **change))  # type: ignore[arg-type]
    assert [reason.code for reason in reasons] == codes
    assert health_of(reasons) is health
    assert all(reason.message for reason in reasons)


def seen(port: str, mac: str = "", name: str = "") -> Announced:
    return Announced(port, mac, "eth0", name)


@pytest.mark.parametrize(
    ("announced", "codes"),
    [
        ([], []),
        ([seen("Ethernet0", "aa:00:00:00:00:01", M1), seen("Ethernet4", "BB-00-00-00-00-01")], []),
        # A tenant may call himself what he likes; the NIC is where it was recorded.
        ([seen("Ethernet0", "aa:00:00:00:00:01", M2)], []),
        # A NIC that nobody has recorded says nothing.
        ([seen("Ethernet0", "cc:00:00:00:00:01", "web-1")], []),
        ([seen("Ethernet120", "cc:00:00:00:00:01", "spine01")], []),
        (
            [seen("Ethernet0", "bb:00:00:00:00:01"), seen("Ethernet4", "aa:00:00:00:00:01")],
            [("Ethernet0", Code.CABLES_SWAPPED)],
        ),
        ([seen("Ethernet0", "aa:00:00:00:00:02")], [("Ethernet0", Code.CABLES_SWAPPED)]),
        ([seen("Ethernet8", "aa:00:00:00:00:01")], [("Ethernet8", Code.CABLE_MOVED)]),
        ([seen("Ethernet0", "bb:00:00:00:00:02")], [("Ethernet0", Code.CABLE_MOVED)]),
        ([seen("Ethernet0", "", M2)], [("Ethernet0", Code.OTHER_MACHINE)]),
        ([seen("Ethernet8", "", M2)], [("Ethernet8", Code.OTHER_MACHINE)]),
        ([seen("Ethernet8", "", "4c4c4544-0042-4b10-8031-b9c04f4b3599")], []),
        ([seen("Ethernet0", "", "LEAF02.example.org")], [("Ethernet0", Code.SWITCH_ON_MACHINE_PORT)]),
        ([seen("Ethernet8", "", "leaf02")], []),
    ],
)
def test_cables_are_compared_with_what_was_recorded(announced: list[Announced], codes: list[tuple[str, Code]]) -> None:
    findings = verify("leaf01", announced, CABLES, {"leaf02"})
    assert [(finding.subject, finding.code) for finding in findings] == codes
    assert all(finding.subject in finding.message for finding in findings)
