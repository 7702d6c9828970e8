"""Settings of a partition: changed by operators, and carried to its leaves one after the other."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from metal_fabric.common_settings import CommonSettings
from metal_fabric.planner import Planner
from metal_kit.errors import Aborted, FailedPrecondition, InvalidArgument, PermissionDenied
from metalplane.fabric.v1 import settings_pb2, switch_pb2
from metalplane.fabric.v1.generation_pb2 import RollbackSwitchRequest, UnpinSwitchRequest
from metalplane.fabric.v1.settings_pb2 import (
    FabricSettings,
    GetFabricSettingsRequest,
    PortFec,
    PortSettings,
    UpdateFabricSettingsRequest,
)
from metalplane.fabric.v1.switch_pb2 import GetSwitchRequest
from metalplane.plane.v1.issue_pb2 import ListPlaneIssuesRequest

TIMERS = FabricSettings(id="mini", bgp_keepalive=2, bgp_hold=8)


async def update(fabric: Any, settings: FabricSettings, *paths: str, token: str = "operator") -> FabricSettings:
    request = UpdateFabricSettingsRequest(settings=settings, update_mask=FieldMask(paths=paths))
    changed: FabricSettings = await fabric.settings_of_partitions(token=token).UpdateFabricSettings(request)
    return changed


async def follow(leaf: Any, eventually: Any, generation: int) -> None:
    """Have a leaf apply this generation."""
    await eventually(lambda: leaf.generation == generation, what=f"generation {generation}")
    report = await leaf.apply()
    await eventually(lambda: report in leaf.acks, what="its acknowledgement")


async def rolled_out(fabric: Any) -> bool:
    return not await fabric.rows("SELECT 1 FROM fabric_settings WHERE rolling")


async def test_what_was_never_set_is_shown_as_not_set(fabric: Any) -> None:
    shown = await fabric.settings_of_partitions(token="viewer").GetFabricSettings(GetFabricSettingsRequest(id="mini"))
    assert shown == FabricSettings(id="mini", etag="0")
    assert not await fabric.rows("SELECT 1 FROM fabric_settings"), "looking makes no row"


async def test_settings_reach_the_leaves_of_a_rack_one_after_the_other(fabric: Any, pair: Any, eventually: Any) -> None:
    changed = await update(fabric, TIMERS)
    assert (changed.bgp_hold, changed.HasField("update_time")) == (8, True)
    await eventually(lambda: pair[0].generation == 2)
    assert (pair[0].states[-1].bgp_keepalive, pair[0].states[-1].bgp_hold) == (2, 8)
    waiting = await fabric.switches(token="viewer").GetSwitch(GetSwitchRequest(id="leaf02"))
    assert list(waiting.settings_wait_for) == ["leaf01"]
    machine = await fabric.machine()
    await fabric.switches().AttachMachine(fabric.attaching(machine, "0198c1d2-0000-7000-8000-000000000001"))
    await eventually(lambda: pair[1].generation == 2, what="tenants do not wait for settings")
    assert pair[1].states[-1].bgp_hold == 0
    await follow(pair[0], eventually, 3)
    await follow(pair[1], eventually, 3)
    assert pair[1].states[-1].bgp_hold == 8
    await eventually(lambda: rolled_out(fabric), what="the end of the rollout")
    done = await fabric.switches(token="viewer").GetSwitch(GetSwitchRequest(id="leaf02"))
    assert not done.settings_wait_for


async def test_a_nonsensical_speed_from_before_it_was_refused_keeps_a_leaf_from_nothing(
    fabric: Any, pair: Any, eventually: Any
) -> None:
    ports = '[{"name": "Ethernet4", "speed": 7, "fec": ""}, {"name": "Ethernet999", "speed": 7, "fec": ""}]'
    settings = f'{{"bgp_hold": 9, "bgp_keepalive": 3, "ports": {ports}}}'
    await fabric.rows("UPDATE switch SET settings = $1::text::jsonb WHERE id = 'leaf01'", settings)
    await pair[0].close()
    await pair[0].open()
    await eventually(lambda: pair[0].generation == 2)
    state = pair[0].states[-1]
    assert (state.bgp_hold, {port.speed for port in state.ports}) == (9, {0})
    await follow(pair[0], eventually, 2)
    shown = await fabric.switches(token="viewer").GetSwitch(GetSwitchRequest(id="leaf01"))
    (reason,) = shown.sync.health_reasons
    assert (reason.code, shown.sync.health) == ("PORT_SETTING_IGNORED", switch_pb2.SWITCH_HEALTH_DEGRADED)
    assert all(word in reason.message for word in ("speed 7 of port Ethernet4", "metalctl switch set mini --port"))
    issues = await fabric.issues(token="operator").ListPlaneIssues(ListPlaneIssuesRequest())
    told = [each.id for each in issues.issues if each.id.startswith("switch/")]
    assert told == ["switch/leaf01/PORT_SETTING_IGNORED/Ethernet4"]
    await update(fabric, FabricSettings(id="mini", ports=[PortSettings(name="Ethernet4", speed=25000)]))
    await eventually(lambda: pair[0].generation == 3)
    assert {port.name: port.speed for port in pair[0].states[-1].ports if port.speed} == {"Ethernet4": 25000}
    shown = await fabric.switches(token="viewer").GetSwitch(GetSwitchRequest(id="leaf01"))
    assert not shown.sync.health_reasons


async def test_settings_that_a_leaf_cannot_apply_never_reach_the_other_one(
    fabric: Any, pair: Any, eventually: Any
) -> None:
    await update(fabric, TIMERS)
    await eventually(lambda: pair[0].generation == 2)
    report = await pair[0].apply(error="no such timer")
    await eventually(lambda: report in pair[0].acks)
    await pair[0].close()
    await CommonSettings(fabric.replicas[0].runtime.require_db(), Planner()).advance()
    assert pair[1].generation == 1
    await update(fabric, FabricSettings(id="mini", bgp_keepalive=3, bgp_hold=9))
    await eventually(lambda: pair[1].generation == 2, what="the remedy, for the one that is there")
    assert [state.bgp_hold for state in pair[1].states] == [0, 9], "it has never had the bad ones"
    await follow(pair[1], eventually, 2)
    await pair[0].open()
    await eventually(lambda: pair[0].states[-1].bgp_hold == 9)


async def test_a_leaf_that_comes_later_has_the_settings_from_its_first_generation(fabric: Any, eventually: Any) -> None:
    await update(fabric, FabricSettings(id="mini", management_gateway="192.0.2.1", management_routes=["10.9.0.0/16"]))
    leaf = await fabric.leaf("leaf01").open()
    await eventually(lambda: leaf.generation == 1)
    assert (leaf.states[-1].management_gateway, list(leaf.states[-1].management_routes)) == (
        "192.0.2.1", ["10.9.0.0/16"],
    )  # fmt: skip
    await eventually(lambda: rolled_out(fabric))
    assert len(leaf.states) == 1


async def test_a_pinned_leaf_holds_nobody_up_and_has_the_settings_when_it_is_unpinned(
    fabric: Any, pair: Any, eventually: Any
) -> None:
    await fabric.generations().RollbackSwitch(RollbackSwitchRequest(switch_id="leaf01", generation=1))
    await update(fabric, TIMERS)
    await follow(pair[1], eventually, 2)
    assert (pair[1].states[-1].bgp_hold, pair[0].generation) == (8, 1)
    await fabric.generations().UnpinSwitch(UnpinSwitchRequest(switch_id="leaf01"))
    await eventually(lambda: pair[0].generation == 2)
    assert pair[0].states[-1].bgp_hold == 8


async def test_only_what_the_mask_names_changes_and_only_for_who_has_seen_the_latest(fabric: Any) -> None:
    first = await update(fabric, FabricSettings(id="mini", source_loopback=True, confirm_seconds=30))
    second = await update(fabric, FabricSettings(id="mini", etag=first.etag), "confirm_seconds")
    assert (second.source_loopback, second.confirm_seconds) == (True, 0)
    with pytest.raises(Aborted):
        await update(fabric, FabricSettings(id="mini", etag=first.etag), "source_loopback")
    assert (await update(fabric, FabricSettings(id="mini"), "confirm_seconds")).etag == second.etag
    with pytest.raises(PermissionDenied):
        await update(fabric, TIMERS, token="viewer")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        (FabricSettings(id="mini", pxe_vlan=1500), "settings.pxe_vlan"),
        (FabricSettings(id="mini", pxe_vlan=5000), "settings.pxe_vlan"),
        (FabricSettings(id="mini", management_gateway="here"), "settings.management_gateway"),
        (FabricSettings(id="mini", management_routes=["10.0.0.0/8"]), "settings.management_gateway"),
        (FabricSettings(id="mini", bgp_hold=9), "settings.bgp_hold"),
        (FabricSettings(id="mini", confirm_seconds=5), "settings.confirm_seconds"),
        (FabricSettings(id="mini", ports=[PortSettings(name="Ethernet0", speed=9_999_999)]), "settings.ports[0].speed"),
        (FabricSettings(id="mini", ports=[PortSettings(name="Ethernet0", fec=9)]), "settings.ports[0].fec"),  # type: ignore[arg-type]
        (FabricSettings(id="mini", ports=2 * [PortSettings(name="Ethernet0", speed=1000)]), "settings.ports"),
    ],
)
async def test_bad_settings_name_their_field_and_change_nothing(
    fabric: Any, settings: FabricSettings, field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await update(fabric, settings)
    assert caught.value.field == field
    assert not await fabric.rows("SELECT 1 FROM fabric_settings WHERE version > 0")


async def test_speed_and_error_correction_reach_one_leaf_and_then_the_other(
    fabric: Any, pair: Any, eventually: Any
) -> None:
    ports = [PortSettings(name="Ethernet8", speed=100_000), PortSettings(name="Ethernet4", fec=PortFec.PORT_FEC_RS)]
    shown = await update(fabric, FabricSettings(id="mini", ports=ports))
    assert list(shown.ports) == ports[::-1]
    await follow(pair[0], eventually, 2)
    await follow(pair[1], eventually, 2)
    for leaf in pair:
        assert (leaf.port("Ethernet4").fec, leaf.port("Ethernet8").speed) == (PortFec.PORT_FEC_RS, 100_000)
        assert (leaf.port("Ethernet8").fec, leaf.port("Ethernet0").speed) == (PortFec.PORT_FEC_UNSPECIFIED, 0)


async def test_a_port_is_the_operators_own_or_a_machines(fabric: Any, pair: Any, eventually: Any) -> None:
    machine = await fabric.machine("Ethernet0")
    with pytest.raises(FailedPrecondition) as caught:
        await update(fabric, FabricSettings(id="mini", additional_bridge_ports=["Ethernet0"]))
    assert caught.value.reason == "ADDITIONAL_PORT_IN_USE"
    assert machine not in caught.value.message
    await update(
        fabric,
        FabricSettings(id="mini", additional_bridge_ports=["Ethernet8"], drift_policy=settings_pb2.DRIFT_POLICY_REPORT),
    )
    await follow(pair[0], eventually, 2)
    port = pair[0].port("Ethernet8")
    assert (port.role, port.mtu) == (switch_pb2.PORT_ROLE_ADDITIONAL, 0)
    assert pair[0].states[-1].drift_policy == settings_pb2.DRIFT_POLICY_REPORT
    shown = await fabric.switches(token="viewer").GetSwitch(GetSwitchRequest(id="leaf01"))
    assert shown.ports[2].role == switch_pb2.PORT_ROLE_ADDITIONAL
    with pytest.raises(FailedPrecondition) as refused:
        await fabric.machine("Ethernet8")
    assert refused.value.reason == "LEAF_PORT_IS_ADDITIONAL"
