"""Cabling as inventory asks for it, and what operators do with switches."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from metal_kit.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from metal_kit.ids import uuid7
from metalplane.fabric.v1 import switch_pb2
from metalplane.fabric.v1.cabling_pb2 import DisconnectMachineRequest, ListCablesRequest
from metalplane.fabric.v1.switch_pb2 import (
    DeleteSwitchRequest,
    DetachMachineRequest,
    GetAttachmentRequest,
    GetSwitchRequest,
    ListSwitchesRequest,
    SetPortStateRequest,
    Switch,
    UpdateSwitchRequest,
)


async def test_cabling_gives_the_rack_and_shows_up_on_the_switch(fabric: Any, pair: Any) -> None:
    machine = str(uuid4())
    answer = await fabric.cabling().ConnectMachine(fabric.cables(machine, "alias-Ethernet4"))
    assert answer.rack == "r1"
    assert [(cable.switch_id, cable.port) for cable in answer.cables] == [
        ("leaf01", "Ethernet4"),
        ("leaf02", "Ethernet4"),
    ]
    shown = await fabric.switches().GetSwitch(GetSwitchRequest(id="leaf02"))
    port = next(each for each in shown.ports if each.name == "Ethernet4")
    assert (port.machine, port.nic_mac) == (machine, answer.cables[1].nic_mac)
    assert await fabric.cabling().ConnectMachine(fabric.cables(machine, "Ethernet4")) == answer


async def test_a_wrong_cabling_is_refused_and_nothing_is_recorded(fabric: Any, pair: Any) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        await fabric.cabling().ConnectMachine(fabric.cables(str(uuid4()), hosts=["leaf01", "nobody"]))
    assert caught.value.reason == "NOT_TWO_LEAVES"
    assert "nobody" in caught.value.message
    assert not await fabric.rows("SELECT 1 FROM cable")


async def test_lldp_garbage_is_passed_over_or_named(fabric: Any, pair: Any) -> None:
    request = fabric.cables(str(uuid4()))
    request.neighbours.add(nic_mac="aa:00:00:00:00:99", system_name="\x00\x1b[2J", port_id="\x00")
    request.neighbours.add(nic_mac="aa:00:00:00:00:98", system_name="\u202e" * 200)
    assert len((await fabric.cabling().ConnectMachine(request)).cables) == 2
    request.neighbours.add(nic_mac="aa:00:00:00:00:97", system_name="leaf01", port_id="Ethernet0\x00")
    with pytest.raises(FailedPrecondition) as caught:
        await fabric.cabling().ConnectMachine(request)
    assert caught.value.reason == "LEAF_PORT_UNKNOWN"
    assert "\x00" not in caught.value.message
    with pytest.raises(InvalidArgument) as bad:
        await fabric.switches(token="viewer").ListSwitches(ListSwitchesRequest(partition="mini\x00"))
    assert bad.value.reason == "INVALID_TEXT"


async def test_a_machine_that_moved_is_refused_until_it_is_deleted(fabric: Any, pair: Any, eventually: Any) -> None:
    others = [await fabric.leaf(host, rack="r2").open() for host in ("leaf03", "leaf04")]
    await eventually(lambda: all(leaf.states for leaf in others))
    machine, cabling = await fabric.machine(), fabric.cabling()
    moved = fabric.cables(machine, hosts=["leaf03", "leaf04"])
    with pytest.raises(FailedPrecondition) as caught:
        await cabling.ConnectMachine(moved)
    assert caught.value.reason == "MACHINE_MOVED"
    assert "leaf01, leaf02" in caught.value.message
    await cabling.DisconnectMachine(DisconnectMachineRequest(machine=machine))
    assert (await cabling.ConnectMachine(moved)).rack == "r2"


async def test_two_machines_that_claim_one_port_at_once_do_not_both_get_it(fabric: Any, pair: Any) -> None:
    cabling = fabric.cabling()
    requests = [fabric.cables(str(uuid4()), hosts=hosts) for hosts in (["leaf01", "leaf02"], ["leaf02", "leaf01"])]
    answers = await asyncio.gather(*map(cabling.ConnectMachine, requests), return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["ConnectMachineResponse", "FailedPrecondition"]
    assert len(await fabric.rows("SELECT DISTINCT machine FROM cable")) == 1


async def test_an_attachment_follows_its_machine_to_other_ports(fabric: Any, pair: Any, eventually: Any) -> None:
    machine = await fabric.machine("Ethernet0")
    await fabric.switches().AttachMachine(fabric.attaching(machine, uuid7()))
    await fabric.cabling().ConnectMachine(fabric.cables(machine, "Ethernet4"))
    await eventually(lambda: all(leaf.generation == 3 for leaf in pair))
    for leaf in pair:
        assert leaf.port("Ethernet0").role == switch_pb2.PORT_ROLE_UNPROVISIONED
        assert leaf.port("Ethernet4").vrf == "Vrf20"
    attachment = await fabric.switches().GetAttachment(GetAttachmentRequest(machine=machine))
    assert [(leaf.port, leaf.wanted_generation) for leaf in attachment.leaves] == [("Ethernet4", 3), ("Ethernet4", 3)]


async def test_an_attached_machine_stays_cabled(fabric: Any, pair: Any, eventually: Any) -> None:
    machine, allocation = await fabric.machine(), uuid7()
    await fabric.switches().AttachMachine(fabric.attaching(machine, allocation))
    disconnect = DisconnectMachineRequest(machine=machine)
    with pytest.raises(FailedPrecondition) as caught:
        await fabric.cabling().DisconnectMachine(disconnect)
    assert caught.value.reason == "MACHINE_ATTACHED"
    await fabric.switches().DetachMachine(DetachMachineRequest(machine=machine, allocation=allocation))
    for leaf in pair:
        await eventually(lambda leaf=leaf: leaf.generation == 3)
        report = await leaf.apply()
        await eventually(lambda leaf=leaf, report=report: report in leaf.acks)
    await fabric.cabling().DisconnectMachine(disconnect)
    await fabric.cabling().DisconnectMachine(disconnect)
    assert not await fabric.rows("SELECT 1 FROM cable")


async def test_cables_are_listed_page_by_page(fabric: Any, pair: Any) -> None:
    for number in range(3):
        await fabric.machine(f"Ethernet{4 * number}")
    cabling = fabric.cabling(token="viewer")
    seen, token = [], ""
    while True:
        page = await cabling.ListCables(ListCablesRequest(page_size=4, page_token=token))
        seen += [(cable.switch_id, cable.port) for cable in page.cables]
        token = page.next_page_token
        if not token:
            break
    assert seen == [(leaf, f"Ethernet{4 * number}") for leaf in ("leaf01", "leaf02") for number in range(3)]
    with pytest.raises(InvalidArgument) as caught:
        await cabling.ListCables(ListCablesRequest(page_token="x"))
    assert caught.value.field == "page_token"


async def test_switches_are_listed_page_by_page(fabric: Any, pair: Any) -> None:
    switches = fabric.switches(token="viewer")
    first = await switches.ListSwitches(ListSwitchesRequest(page_size=1))
    second = await switches.ListSwitches(ListSwitchesRequest(page_size=1, page_token=first.next_page_token))
    assert [first.switches[0].id, second.switches[0].id] == ["leaf01", "leaf02"]
    assert not second.next_page_token
    with pytest.raises(InvalidArgument):
        await switches.ListSwitches(ListSwitchesRequest(rack="r1", page_token=first.next_page_token))
    assert not (await switches.ListSwitches(ListSwitchesRequest(partition="other"))).switches


async def test_a_description_is_changed_by_who_has_seen_the_latest(fabric: Any, pair: Any) -> None:
    switches = fabric.switches(token="operator")
    before = await switches.GetSwitch(GetSwitchRequest(id="leaf01"))
    mask = FieldMask(paths=["description"])
    edit = Switch(id="leaf01", description="left of the pair", etag=before.etag)
    after = await switches.UpdateSwitch(UpdateSwitchRequest(switch=edit, update_mask=mask))
    assert after.description == "left of the pair"
    assert after.etag != before.etag
    edit.description = "right"
    with pytest.raises(Aborted):
        await switches.UpdateSwitch(UpdateSwitchRequest(switch=edit, update_mask=mask))
    with pytest.raises(InvalidArgument) as caught:
        await switches.UpdateSwitch(
            UpdateSwitchRequest(switch=Switch(id="leaf01", rack="r9"), update_mask=FieldMask(paths=["rack"]))
        )
    assert caught.value.field == "rack"
    with pytest.raises(PermissionDenied):
        await fabric.switches(token="viewer").UpdateSwitch(UpdateSwitchRequest(switch=edit))


async def test_a_machines_port_is_switched_off_and_comes_back_when_the_machine_is_gone(
    fabric: Any, pair: Any, eventually: Any
) -> None:
    switches = fabric.switches(token="operator")
    request = SetPortStateRequest(id="leaf01", port="Ethernet0", state=switch_pb2.PORT_STATE_DOWN)
    machine = await fabric.machine("Ethernet0")
    shown = await switches.SetPortState(request)
    assert shown.ports[0].desired_state == switch_pb2.PORT_STATE_DOWN
    assert shown.ports[0].reported_state == switch_pb2.PORT_STATE_UP
    assert shown.ports[0].role == switch_pb2.PORT_ROLE_UNPROVISIONED
    await eventually(lambda: pair[0].generation == 2)
    assert pair[0].port("Ethernet0").admin_state == switch_pb2.PORT_STATE_DOWN
    assert pair[1].generation == 1, "the other leaf has nothing to change"
    with pytest.raises(InvalidArgument) as caught:
        await switches.SetPortState(SetPortStateRequest(id="leaf01", port="Ethernet3", state=switch_pb2.PORT_STATE_UP))
    assert caught.value.field == "port"
    await fabric.cabling().DisconnectMachine(DisconnectMachineRequest(machine=machine))
    await eventually(lambda: pair[0].generation == 3)
    # Not merely unspecified: that leaves the port as it is, which is off.
    assert pair[0].port("Ethernet0").admin_state == switch_pb2.PORT_STATE_UP


async def test_a_port_that_nothing_hangs_on_is_taken_out_of_use_and_back(
    fabric: Any, pair: Any, eventually: Any
) -> None:
    switches = fabric.switches(token="operator")
    shown = await switches.SetPortState(
        SetPortStateRequest(id="leaf01", port="Ethernet8", state=switch_pb2.PORT_STATE_DOWN)
    )
    assert shown.ports[2].role == switch_pb2.PORT_ROLE_UNUSED
    await eventually(lambda: pair[0].generation == 2)
    port = pair[0].port("Ethernet8")
    assert (port.role, port.admin_state) == (switch_pb2.PORT_ROLE_UNUSED, switch_pb2.PORT_STATE_DOWN)
    machine = await fabric.machine("Ethernet8")
    await eventually(lambda: pair[0].generation == 3)
    port = pair[0].port("Ethernet8")
    assert (port.role, port.admin_state) == (switch_pb2.PORT_ROLE_UNPROVISIONED, switch_pb2.PORT_STATE_DOWN)
    await fabric.cabling().DisconnectMachine(DisconnectMachineRequest(machine=machine))
    await eventually(lambda: pair[0].generation == 4)
    assert pair[0].port("Ethernet8").admin_state == switch_pb2.PORT_STATE_UP


async def test_an_uplink_is_not_switched_off(fabric: Any, pair: Any) -> None:
    request = SetPortStateRequest(id="leaf01", port="Ethernet192", state=switch_pb2.PORT_STATE_DOWN)
    with pytest.raises(FailedPrecondition) as refused:
        await fabric.switches(token="operator").SetPortState(request)
    assert (refused.value.reason, refused.value.field) == ("PORT_IS_UPLINK", "port")


async def test_a_switch_is_forgotten_only_without_machines_and_comes_back_with_a_later_generation(
    fabric: Any, pair: Any, events: Any, eventually: Any
) -> None:
    switches = fabric.switches(token="operator")
    machine = await fabric.machine()
    with pytest.raises(FailedPrecondition) as caught:
        await switches.DeleteSwitch(DeleteSwitchRequest(id="leaf01"))
    assert machine in caught.value.message
    await fabric.cabling().DisconnectMachine(DisconnectMachineRequest(machine=machine))
    await switches.DeleteSwitch(DeleteSwitchRequest(id="leaf01"))
    with pytest.raises(NotFound):
        await switches.GetSwitch(GetSwitchRequest(id="leaf01"))
    await eventually(lambda: pair[0].ended)
    await eventually(lambda: events.of("metalplane.fabric.switch.deleted", "leaf01"))
    deleted = events.of("metalplane.fabric.switch.deleted", "leaf01")[0]
    pair[0].states.clear()
    await pair[0].open()
    await eventually(lambda: pair[0].generation == 2)
    await eventually(lambda: events.of("metalplane.fabric.switch.changed", "leaf01"))
    assert deleted.deleted
    assert events.of("metalplane.fabric.switch.changed", "leaf01")[-1].entity_version > deleted.entity_version


async def test_an_unknown_switch_is_not_found(fabric: Any) -> None:
    switches = fabric.switches(token="operator")
    with pytest.raises(NotFound):
        await switches.DeleteSwitch(DeleteSwitchRequest(id="nobody"))
    with pytest.raises(NotFound):
        await switches.UpdateSwitch(UpdateSwitchRequest(switch=Switch(id="nobody", description="x")))
