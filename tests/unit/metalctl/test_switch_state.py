"""What `metalctl switch describe` shows of a leaf, to the letter."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from metalctl import values
from metalplane.fabric.v1 import observation_pb2 as seen
from metalplane.fabric.v1 import switch_pb2 as pb

GOLDEN = Path(__file__).parent / "golden" / "switch-describe.txt"
NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "now", lambda: NOW)


def ago(**parts: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(NOW - timedelta(**parts))
    return stamp


def leaf() -> pb.Switch:
    """A leaf with something of everything."""
    differences = {
        "rows": [
            {"table": "PORT", "key": "Ethernet0", "field": "mtu", "wanted": "9000", "found": "1500"},
            {"table": "VLAN_MEMBER", "key": "Vlan4000|Ethernet4", "wanted": "tagging_mode=untagged"},
        ],
        "frr_lines": ["+ neighbor Ethernet0 interface peer-group MACHINE", "-route-map fw deny 10"],
        "row_count": 2,
        "frr_line_count": 140,
    }
    switch = pb.Switch(
        id="leaf1",
        rack="rack-1",
        partition="mini",
        held_ports=[{"port": "Ethernet8", "machine": "e0ab02d2-27cd-5a5e-8efc-080ba80cf258", "wanted_generation": 5}],
        sync={
            "health": pb.SWITCH_HEALTH_UNHEALTHY,
            "health_reasons": [
                {"health": pb.SWITCH_HEALTH_UNHEALTHY, "code": "QUARANTINED", "since_time": ago(minutes=2),
                 "message": "generation 5 is not tried any more"},
                {"health": pb.SWITCH_HEALTH_DEGRADED, "code": "UPLINK_DOWN", "message": "uplink Ethernet124 is down"},
            ],
            "connected": True, "seen_time": ago(seconds=2), "desired_generation": 5, "applied_generation": 4,
            "error": "FRR differs", "phase": "verify", "quarantine": "failed 5 times", "notes": ["taken back"],
            "drift": {"state": seen.DRIFT_STATE_CORRECTED, "generation": 4, "time": ago(minutes=5),
                      "differences": differences},
            "bgp": {
                "time": ago(seconds=7),
                "sessions": [
                    {"vrf": "Vrf20", "port": "Ethernet0", "peer_group": "MACHINE", "state": seen.BGP_STATE_IDLE,
                     "drops": 3, "ipv4": {"accepted": 0, "sent": 0, "prefix_limit": 24000}},
                    {"vrf": "default", "port": "Ethernet120", "peer_group": "FABRIC", "hostname": "spine\n1",
                     "state": seen.BGP_STATE_ESTABLISHED, "establish_time": ago(hours=3),
                     "ipv4": {"accepted": 95, "sent": 59}, "ipv6": {}, "evpn": {"accepted": 7, "sent": 8}},
                ],
            },
            "lldp": {
                "time": ago(seconds=9),
                "neighbours": [{"port": "Ethernet0", "system_name": "web-1", "port_id": "02:00:00:00:00:01",
                                "chassis_id": "02:00:00:00:00:01"}],
            },
        },
    )  # fmt: skip
    switch.sync.durations["prepare"].FromMilliseconds(90)
    switch.sync.durations["apply"].FromMilliseconds(1250)
    switch.sync.differences.CopyFrom(seen.LeafDifferences(frr_lines=["+ vni 20"], frr_line_count=1))
    return switch


def test_a_leaf_is_described_with_its_reasons_differences_sessions_and_neighbours(call: Any, plane: Any) -> None:
    plane.answers["GetSwitch"] = leaf()
    outcome = call("switch", "describe", "leaf1")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == GOLDEN.read_text(encoding="utf-8")
    (request,) = plane.requests("GetSwitch")
    assert request.id == "leaf1"


def test_json_has_all_of_it(call: Any, plane: Any) -> None:
    plane.answers["GetSwitch"] = leaf()
    found = json.loads(call("switch", "describe", "leaf1", "-o", "json").out)
    assert found["sync"]["bgp"]["sessions"][1]["evpn"]["accepted"] == 7
    assert found["sync"]["drift"]["differences"]["frr_line_count"] == 140


def test_what_nobody_has_told_takes_no_room(call: Any, plane: Any) -> None:
    plane.answers["GetSwitch"] = pb.Switch(id="leaf2", partition="mini")
    assert call("switch", "describe", "leaf2").out.splitlines() == [
        "switch      leaf2",
        "rack        - in mini",
        "health      -",
        "connected   no",
        "generation  0 wanted, none applied",
    ]
