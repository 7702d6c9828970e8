"""What operators ask of switches."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import empty_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from metal_fabric.problems import Invalid
from metal_fabric.settings import PortSettings as SetPort
from metal_fabric.settings import Settings, check
from metal_kit.errors import FailedPrecondition
from metalplane.fabric.v1 import generation_pb2, switch_pb2
from metalplane.fabric.v1.settings_pb2 import (
    DRIFT_POLICY_REPORT,
    PORT_FEC_NONE,
    PORT_FEC_RS,
    FabricSettings,
    PortSettings,
)

CHANGES = [
    generation_pb2.StateChange(object="port Ethernet8", field="role", before="unprovisioned", after="unused"),
    generation_pb2.StateChange(object="vrf Vrf20", before="vni 20, vlan 1001"),
]
LEAF = switch_pb2.Switch(
    id="leaf1", rack="r1", kind=switch_pb2.SWITCH_KIND_LEAF, mode=switch_pb2.SWITCH_MODE_OPERATIONAL,
    sync={"desired_generation": 5, "applied_generation": 4}, pin={"generation": 2, "reason": "broken"},
)  # fmt: skip


def test_a_port_is_switched_by_name(call: Any, plane: Any) -> None:
    plane.answers["SetPortState"] = LEAF
    outcome = call("switch", "port", "down", "leaf1", "Ethernet8")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [
        "ID     RACK  KIND  MODE         DESIRED  APPLIED  PIN",
        "leaf1  r1    leaf  operational  5        4        2",
    ]
    call("switch", "port", "up", "leaf1", "Ethernet8")
    assert [(each.id, each.port, each.state) for each in plane.requests("SetPortState")] == [
        ("leaf1", "Ethernet8", switch_pb2.PORT_STATE_DOWN), ("leaf1", "Ethernet8", switch_pb2.PORT_STATE_UP),
    ]  # fmt: skip


def test_history_shows_what_was_applied_and_what_was_returned_to(call: Any, plane: Any) -> None:
    made = Timestamp(seconds=1_790_000_000)
    plane.answers["ListGenerations"] = generation_pb2.ListGenerationsResponse(
        generations=[
            generation_pb2.Generation(number=3, hash="ab" * 32, create_time=made, wanted=True, pinned_to=1),
            generation_pb2.Generation(
                number=2, hash="cd" * 32, create_time=made, applied=True, vrfs=1, ports={"uplink": 2, "machine": 1}
            ),
        ]
    )
    assert call("switch", "history", "leaf1").out.splitlines() == [
        "GENERATION  TIME                      STATE    PINNED TO  VRFS  PORTS                HASH",
        "3           2026-09-21T14:13:20.000Z  wanted   1          0     -                    abababababab",
        "2           2026-09-21T14:13:20.000Z  applied  -          1     machine 1, uplink 2  cdcdcdcdcdcd",
    ]


def test_a_diff_says_what_it_compares_and_json_has_all_of_it(call: Any, plane: Any) -> None:
    answer = generation_pb2.DiffGenerationsResponse(before=2, after=3, changes=CHANGES)
    plane.answers["DiffGenerations"] = answer
    outcome = call("switch", "diff", "leaf1", "--from", "2", "--to", "3")
    assert outcome.err == "generation 2 to 3\n"
    assert outcome.out.splitlines() == [
        "WHAT            FIELD  BEFORE             AFTER",
        "port Ethernet8  role   unprovisioned      unused",
        "vrf Vrf20       -      vni 20, vlan 1001  -",
    ]
    assert plane.requests("DiffGenerations")[0] == generation_pb2.DiffGenerationsRequest(
        switch_id="leaf1", before=2, after=3
    )
    told = json.loads(call("switch", "diff", "leaf1", "-o", "json").out)
    assert (told["before"], len(told["changes"])) == ("2", 2)


def test_a_plan_that_changes_nothing_says_so(call: Any, plane: Any) -> None:
    plane.answers["PlanSwitch"] = generation_pb2.PlanSwitchResponse(applied_generation=4, desired_generation=4)
    outcome = call("switch", "plan", "leaf1")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == "generation 4 to what the plane wants: nothing differs\n"
    call("switch", "plan", "leaf1", "--rollback-to", "2")
    assert plane.requests("PlanSwitch")[1].rollback_to == 2


def test_a_rollback_names_a_generation_and_a_reason(call: Any, plane: Any) -> None:
    plane.answers |= {"RollbackSwitch": LEAF, "UnpinSwitch": LEAF}
    assert call("switch", "rollback", "leaf1", "2", "--reason", "broken").code == 0
    assert plane.requests("RollbackSwitch") == [
        generation_pb2.RollbackSwitchRequest(switch_id="leaf1", generation=2, reason="broken")
    ]
    assert call("switch", "unpin", "leaf1").code == 0
    assert plane.requests("UnpinSwitch")[0].switch_id == "leaf1"


def test_a_retry_says_whether_there_was_anything_to_try(call: Any, plane: Any) -> None:
    plane.answers["RetrySwitch"] = generation_pb2.RetrySwitchResponse(switch=LEAF, set_aside=2)
    outcome = call("switch", "retry", "leaf1")
    assert (outcome.code, plane.requests("RetrySwitch")[0].switch_id) == (0, "leaf1")
    assert "leaf1 has set aside generation 2; it is wanted again as " in outcome.err
    plane.answers["RetrySwitch"] = generation_pb2.RetrySwitchResponse(switch=LEAF)
    outcome = call("switch", "retry", "leaf1")
    assert outcome.code == 0
    assert "leaf1 has set nothing aside" in outcome.err


@pytest.mark.parametrize("generation", ["0", "-1", "x"])
def test_a_rollback_to_what_is_no_generation_asks_nobody(call: Any, plane: Any, generation: str) -> None:
    assert call("switch", "rollback", "leaf1", generation).code == 2
    assert not plane.asked


def test_boxes_are_replaced_relieved_recorded_and_forgotten(call: Any, plane: Any) -> None:
    plane.answers |= {
        "ReplaceSwitch": LEAF, "MigrateSwitch": LEAF, "RecordDevice": LEAF, "DeleteSwitch": empty_pb2.Empty(),
        "GetSwitch": LEAF,
    }  # fmt: skip
    assert call("switch", "replace", "leaf1").code == 0
    assert call("switch", "replace", "leaf1", "--cancel").code == 0
    assert [each.cancel for each in plane.requests("ReplaceSwitch")] == [False, True]
    assert call("switch", "migrate", "leaf1", "leaf3").code == 0
    assert plane.requests("MigrateSwitch") == [switch_pb2.MigrateSwitchRequest(id="leaf1", target="leaf3")]
    assert call("switch", "record", "spine1", "--kind", "spine", "--partition", "mini", "--asn", "65000").code == 0
    assert plane.requests("RecordDevice") == [
        switch_pb2.RecordDeviceRequest(id="spine1", kind=switch_pb2.SWITCH_KIND_SPINE, partition="mini", asn=65000)
    ]
    assert call("switch", "record", "leaf9", "--kind", "leaf", "--partition", "mini").code == 2
    assert call("switch", "delete", "leaf1").code == 0
    assert plane.requests("DeleteSwitch")[0].id == "leaf1"


@pytest.mark.parametrize("connected", [True, False])
def test_a_migration_says_what_the_old_leaf_has_yet_to_let_go_of(call: Any, plane: Any, connected: bool) -> None:
    old = switch_pb2.Switch(id="leaf1", sync={"connected": connected})
    plane.answers |= {"MigrateSwitch": LEAF, "GetSwitch": old}
    assert "leaf1 has nothing to let go of" in call("switch", "migrate", "leaf1", "leaf3").err
    for number in range(7):
        old.held_ports.add(port=f"Ethernet{number}", machine="m", wanted_generation=9)
    told = call("switch", "migrate", "leaf1", "leaf3").err
    assert "leaf1 has to let go of Ethernet0 (machine m), " in told
    assert " and 2 more by applying generation 9" in told
    assert ("metalctl switch delete leaf1" in told) is not connected


def test_settings_are_changed_by_name_and_cleared_by_name(call: Any, plane: Any) -> None:
    plane.answers |= {"UpdateFabricSettings": FabricSettings(id="mini"), "GetFabricSettings": FabricSettings(id="mini")}
    outcome = call(
        "switch", "set", "mini", "--bgp-keepalive", "2", "--bgp-hold", "8", "--management-route", "10.0.0.0/8",
        "--management-route", "10.9.0.0/16", "--drift-policy", "report", "--no-source-loopback",
        "--clear", "pxe-vlan", "--clear", "confirm_seconds", "--port", "Ethernet4:speed=25000,fec=rs",
        "--port", "Ethernet8:fec=none",
    )  # fmt: skip
    assert (outcome.code, outcome.err) == (0, "")
    [request] = plane.requests("UpdateFabricSettings")
    assert request.settings == FabricSettings(
        id="mini", bgp_keepalive=2, bgp_hold=8, management_routes=["10.0.0.0/8", "10.9.0.0/16"],
        drift_policy=DRIFT_POLICY_REPORT,
        ports=[
            PortSettings(name="Ethernet4", speed=25000, fec=PORT_FEC_RS),
            PortSettings(name="Ethernet8", fec=PORT_FEC_NONE),
        ],
    )  # fmt: skip
    assert set(request.update_mask.paths) == {
        "bgp_keepalive", "bgp_hold", "management_routes", "drift_policy", "source_loopback", "pxe_vlan",
        "confirm_seconds", "ports",
    }  # fmt: skip
    assert call("switch", "settings", "mini").code == 0
    assert plane.requests("GetFabricSettings")[0].id == "mini"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--clear", "etag"],
        ["--clear", "nothing"],
        ["--bgp-hold", "9", "--clear", "bgp-hold"],
        ["--port", "Ethernet4"],
        ["--port", "Ethernet4:speed=fast"],
        ["--port", "Ethernet4:fec=reed"],
        ["--port", "Ethernet4:mtu=9000"],
        ["--port", ":speed=1000"],
    ],
)
def test_a_change_of_no_setting_or_of_one_twice_asks_nobody(call: Any, plane: Any, arguments: list[str]) -> None:
    assert call("switch", "set", "mini", *arguments).code == 2
    assert not plane.asked


@pytest.mark.parametrize("speed", [25, 1001, 1_601_000])
def test_a_speed_that_no_port_has_is_refused_here_in_the_words_of_fabric(call: Any, plane: Any, speed: int) -> None:
    outcome = call("switch", "set", "mini", "--port", f"Ethernet4:speed={speed}")
    assert (outcome.code, plane.asked) == (2, [])
    with pytest.raises(Invalid) as caught:
        check(Settings(ports=(SetPort("Ethernet4", speed),)))
    assert caught.value.message in outcome.err


def test_a_refused_rollback_is_one_line(call: Any, plane: Any) -> None:
    plane.answers["RollbackSwitch"] = FailedPrecondition("ROLLBACK_CROSSES_TENANTS", "choose a later generation")
    outcome = call("switch", "rollback", "leaf1", "2")
    assert (outcome.code, outcome.out) == (1, "")
    assert "choose a later generation" in outcome.err
