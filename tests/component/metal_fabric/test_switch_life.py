"""Boxes that are replaced, leaves that relieve others, devices beside the leaves, and the end of a switch."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from metal_kit.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from metal_kit.ids import uuid7
from metalplane.fabric.v1 import agent_pb2, switch_pb2
from metalplane.fabric.v1.cabling_pb2 import ConnectMachineRequest, DisconnectMachineRequest
from metalplane.fabric.v1.generation_pb2 import GetDesiredStateRequest
from metalplane.fabric.v1.switch_pb2 import (
    DeleteSwitchRequest,
    DetachMachineRequest,
    GetAttachmentRequest,
    GetSwitchRequest,
    MigrateSwitchRequest,
    RecordDeviceRequest,
    ReplaceSwitchRequest,
    SetPortStateRequest,
)

CUMULUS = [
    agent_pb2.HelloPort(
        name=f"swp{number}", alias=f"front {number}", uplink=number > 48, state=switch_pb2.PORT_STATE_UP
    )
    for number in range(1, 51)
]


async def follow(leaf: Any, eventually: Any, generation: int) -> None:
    """Have a leaf apply this generation."""
    await eventually(lambda: leaf.generation == generation, what=f"generation {generation}")
    report = await leaf.apply()
    await eventually(lambda: report in leaf.acks, what="its acknowledgement")


@pytest.fixture
async def attached(fabric: Any, pair: Any, eventually: Any) -> tuple[str, str]:
    """A machine on Ethernet4 in VRF 20, which both leaves have confirmed in generation 2; and its allocation."""
    machine, allocation = await fabric.machine("Ethernet4"), uuid7()
    await fabric.switches().AttachMachine(fabric.attaching(machine, allocation))
    for leaf in pair:
        await follow(leaf, eventually, 2)
    return machine, allocation


@pytest.fixture
async def third(fabric: Any, pair: Any, eventually: Any) -> Any:
    """A Cumulus leaf of the same rack that no machine hangs on."""
    leaf = fabric.leaf("leaf03", os=switch_pb2.SWITCH_OS_CUMULUS)
    del leaf.hello.ports[:]
    leaf.hello.ports.extend(CUMULUS)
    await leaf.open()
    await follow(leaf, eventually, 1)
    return leaf


async def attachment(fabric: Any, machine: str) -> Any:
    return await fabric.switches().GetAttachment(GetAttachmentRequest(machine=machine))


def another_box(fabric: Any) -> Any:
    """A Cumulus box that comes as leaf01 and has applied nothing."""
    box = fabric.leaf("leaf01", os=switch_pb2.SWITCH_OS_CUMULUS)
    del box.hello.ports[:]
    box.hello.ports.extend(CUMULUS)
    return box


async def test_another_box_takes_over_under_the_same_name_with_its_own_names_of_ports(
    fabric: Any, pair: Any, attached: Any, eventually: Any
) -> None:
    operator, (machine, _) = fabric.switches(token="operator"), attached
    await operator.SetPortState(SetPortStateRequest(id="leaf01", port="Ethernet8", state=switch_pb2.PORT_STATE_DOWN))
    await follow(pair[0], eventually, 3)
    shown = await operator.ReplaceSwitch(ReplaceSwitchRequest(id="leaf01"))
    assert shown.mode == switch_pb2.SWITCH_MODE_REPLACE
    await pair[0].close()
    box = await another_box(fabric).open()
    await eventually(lambda: box.generation == 4)
    assert (box.port("swp2").role, box.port("swp2").vrf) == (switch_pb2.PORT_ROLE_MACHINE, "Vrf20")
    assert box.port("swp3").role == switch_pb2.PORT_ROLE_UNUSED
    assert box.states[-1].vrfs == pair[0].states[-1].vrfs, "the VRF keeps its VLAN"
    waiting = await attachment(fabric, machine)
    assert [(leaf.switch_id, leaf.port, leaf.confirmed) for leaf in waiting.leaves] == [
        ("leaf01", "swp2", False), ("leaf02", "Ethernet4", True),
    ]  # fmt: skip
    await follow(box, eventually, 4)
    assert (await attachment(fabric, machine)).confirmed
    after = await operator.GetSwitch(GetSwitchRequest(id="leaf01"))
    assert (after.mode, after.os) == (switch_pb2.SWITCH_MODE_OPERATIONAL, switch_pb2.SWITCH_OS_CUMULUS)
    again = await fabric.cabling().ConnectMachine(
        ConnectMachineRequest(
            machine=machine,
            partition="mini",
            neighbours=[
                {"nic_mac": "aa:00:00:00:00:01", "system_name": "leaf01", "port_id": "front 2"},
                {"nic_mac": "aa:00:00:00:00:02", "system_name": "leaf02", "port_id": "Ethernet4"},
            ],
        )
    )
    assert [cable.port for cable in again.cables] == ["swp2", "Ethernet4"], "they mirror each other"


async def test_a_box_with_other_ports_is_refused_unless_a_replacement_was_announced(
    fabric: Any, pair: Any, attached: Any, eventually: Any
) -> None:
    operator = fabric.switches(token="operator")
    await operator.ReplaceSwitch(ReplaceSwitchRequest(id="leaf01"))
    shown = await operator.ReplaceSwitch(ReplaceSwitchRequest(id="leaf01", cancel=True))
    assert shown.mode == switch_pb2.SWITCH_MODE_OPERATIONAL
    await pair[0].close()
    box = await another_box(fabric).open()
    await eventually(lambda: box.ended)
    assert box.failure.reason == "CONNECTED_PORT_REMOVED"
    assert "CONNECTED_PORT_REMOVED" in (await operator.GetSwitch(GetSwitchRequest(id="leaf01"))).sync.error
    assert [cable["port"] for cable in await fabric.rows("SELECT port FROM cable")] == ["Ethernet4", "Ethernet4"]


async def test_a_box_whose_ports_are_broken_out_otherwise_is_refused_and_nothing_moves(
    fabric: Any, pair: Any, attached: Any, eventually: Any
) -> None:
    operator = fabric.switches(token="operator")
    await operator.ReplaceSwitch(ReplaceSwitchRequest(id="leaf01"))
    await pair[0].close()
    box = another_box(fabric)
    del box.hello.ports[1]
    for part in range(4):
        box.hello.ports.add(name=f"swp2s{part}", state=switch_pb2.PORT_STATE_UP)
    await box.open()
    await eventually(lambda: box.ended)
    assert box.failure.reason == "PORT_NOT_TRANSLATABLE"
    shown = await operator.GetSwitch(GetSwitchRequest(id="leaf01"))
    assert shown.mode == switch_pb2.SWITCH_MODE_REPLACE
    assert "Ethernet4" in shown.sync.error
    assert shown.os == switch_pb2.SWITCH_OS_SONIC


async def test_the_old_box_does_not_end_its_own_replacement(
    fabric: Any, pair: Any, attached: Any, eventually: Any
) -> None:
    operator = fabric.switches(token="operator")
    await operator.ReplaceSwitch(ReplaceSwitchRequest(id="leaf01"))
    before = pair[0].acks
    await pair[0].close()
    await pair[0].open()
    await eventually(lambda: pair[0].generation == 2 and not pair[0].ended)
    report = await pair[0].apply()
    await eventually(lambda: report in before)
    shown = await operator.GetSwitch(GetSwitchRequest(id="leaf01"))
    assert shown.mode == switch_pb2.SWITCH_MODE_REPLACE


async def test_another_leaf_of_the_rack_takes_over_everything_at_once(
    fabric: Any, pair: Any, attached: Any, third: Any, events: Any, eventually: Any
) -> None:
    operator, (machine, _) = fabric.switches(token="operator"), attached
    other = await fabric.machine("Ethernet12")
    await operator.SetPortState(SetPortStateRequest(id="leaf01", port="Ethernet12", state=switch_pb2.PORT_STATE_DOWN))
    await fabric.rows("UPDATE vlan SET vlan = 1500 WHERE switch_id = 'leaf01'")
    shown = await operator.MigrateSwitch(MigrateSwitchRequest(id="leaf01", target="leaf03"))
    assert shown.id == "leaf03"
    assert {port.name: port.machine for port in shown.ports if port.machine} == {"swp2": machine, "swp4": other}
    await eventually(lambda: third.generation == 2)
    assert (third.port("swp2").vrf, third.port("swp4").admin_state) == ("Vrf20", switch_pb2.PORT_STATE_DOWN)
    assert [(vrf.vni, vrf.vlan) for vrf in third.states[-1].vrfs] == [(20, 1500)]
    waiting = await attachment(fabric, machine)
    assert [(leaf.switch_id, leaf.port, leaf.confirmed, leaf.former) for leaf in waiting.leaves] == [
        ("leaf02", "Ethernet4", True, False), ("leaf03", "swp2", False, False), ("leaf01", "Ethernet4", False, True),
    ]  # fmt: skip
    await eventually(lambda: events.of("metalplane.fabric.attachment.retracted", machine))
    assert not events.of("metalplane.fabric.attachment.retracted", other), "nothing of it was ever confirmed"
    confirmed = len(events.of("metalplane.fabric.attachment.confirmed", machine))
    await follow(third, eventually, 2)
    await eventually(lambda: pair[0].port("Ethernet4").role == switch_pb2.PORT_ROLE_UNPROVISIONED)
    assert not pair[0].states[-1].vrfs
    waiting = await attachment(fabric, machine)
    assert not waiting.confirmed, "the leaf that was relieved may have it in its network yet"
    held = (await operator.GetSwitch(GetSwitchRequest(id="leaf01"))).held_ports
    assert [(each.port, each.machine, each.wanted_generation) for each in held] == [
        ("Ethernet4", machine, pair[0].generation)
    ]
    await follow(pair[0], eventually, pair[0].generation)
    after = await attachment(fabric, machine)
    assert (after.confirmed, [leaf.switch_id for leaf in after.leaves]) == (True, ["leaf02", "leaf03"])
    assert not (await operator.GetSwitch(GetSwitchRequest(id="leaf01"))).held_ports
    await eventually(lambda: len(events.of("metalplane.fabric.attachment.confirmed", machine)) > confirmed)
    assert pair[1].generation == 2, "the other leaf of the pair has nothing to change"


async def test_machines_that_are_attached_in_the_midst_of_a_migration_end_up_on_the_new_leaf(
    fabric: Any, pair: Any, third: Any
) -> None:
    machines = [await fabric.machine(f"Ethernet{4 * number}") for number in range(6)]

    async def attach(machine: str, number: int) -> None:
        request = fabric.attaching(machine, uuid7(), vrf=20 + number)
        try:
            await fabric.switches().AttachMachine(request)
        except Aborted as aborted:
            if aborted.reason != "CONCURRENT_CHANGE":
                raise
            # Its leaves changed under it, which happens once here.
            await fabric.switches().AttachMachine(request)

    move = fabric.switches(token="operator").MigrateSwitch(MigrateSwitchRequest(id="leaf01", target="leaf03"))
    await asyncio.gather(*(attach(machine, number) for number, machine in enumerate(machines)), move)
    rows = await fabric.rows("SELECT machine, switch_id, former_ports FROM attachment_leaf ORDER BY machine, switch_id")
    assert [(str(row["machine"]), row["switch_id"]) for row in rows if row["former_ports"] is None] == [
        (machine, leaf) for machine in sorted(machines) for leaf in ("leaf02", "leaf03")
    ]
    assert {row["switch_id"] for row in rows if row["former_ports"]} <= {"leaf01"}
    newest = await fabric.generations().GetDesiredState(GetDesiredStateRequest(switch_id="leaf03"))
    assert [port.vrf for port in newest.ports if port.vrf] == [f"Vrf{20 + number}" for number in range(6)]
    left = await fabric.generations().GetDesiredState(GetDesiredStateRequest(switch_id="leaf01"))
    assert not left.vrfs


async def test_a_leaf_that_was_relieved_is_forgotten_once_it_has_let_go(
    fabric: Any, pair: Any, attached: Any, third: Any, eventually: Any
) -> None:
    operator = fabric.switches(token="operator")
    await operator.MigrateSwitch(MigrateSwitchRequest(id="leaf01", target="leaf03"))
    with pytest.raises(FailedPrecondition) as caught:
        await operator.DeleteSwitch(DeleteSwitchRequest(id="leaf01"))
    assert caught.value.reason == "SWITCH_BEHIND"
    # A box that comes back without its state may have its old rows all the same.
    await pair[0].close()
    pair[0].hello.applied_generation, pair[0].hello.applied_hash = 0, ""
    await pair[0].open()
    await eventually(lambda: pair[0].generation == 3)
    with pytest.raises(FailedPrecondition) as caught:
        await operator.DeleteSwitch(DeleteSwitchRequest(id="leaf01"))
    assert caught.value.reason == "SWITCH_BEHIND"
    await follow(pair[0], eventually, 3)
    await operator.DeleteSwitch(DeleteSwitchRequest(id="leaf01"))
    with pytest.raises(NotFound):
        await operator.GetSwitch(GetSwitchRequest(id="leaf01"))


async def test_a_relieved_leaf_that_is_dead_is_not_waited_for_once_an_operator_has_said_so(
    fabric: Any, pair: Any, attached: Any, third: Any, events: Any, eventually: Any
) -> None:
    operator, (machine, allocation) = fabric.switches(token="operator"), attached
    await pair[0].close()
    await operator.MigrateSwitch(MigrateSwitchRequest(id="leaf01", target="leaf03"))
    await follow(third, eventually, 2)
    waiting = await attachment(fabric, machine)
    assert (waiting.confirmed, waiting.allocation) == (False, allocation)
    assert [leaf.switch_id for leaf in waiting.leaves if not leaf.confirmed] == ["leaf01"]
    leaving = await fabric.switches().DetachMachine(DetachMachineRequest(machine=machine, allocation=allocation))
    for leaf in (third, pair[1]):
        await follow(leaf, eventually, 3)
    leaving = await attachment(fabric, machine)
    assert (leaving.confirmed, leaving.allocation) == (False, allocation), "nobody else gets it meanwhile"
    with pytest.raises(FailedPrecondition) as caught:
        await fabric.switches().AttachMachine(fabric.attaching(machine, uuid7(), vrf=30))
    assert caught.value.reason == "DETACHMENT_UNCONFIRMED"
    before = len(events.of("metalplane.fabric.attachment.confirmed", machine))

    async def deleted() -> bool:
        try:
            await operator.DeleteSwitch(DeleteSwitchRequest(id="leaf01"))
        except FailedPrecondition as refused:
            # Its stream has just ended, and the end of it is on its way.
            if refused.reason != "SWITCH_BEHIND":
                raise
            return False
        return True

    await eventually(deleted)
    after = await attachment(fabric, machine)
    assert (after.confirmed, after.allocation) == (True, "")
    await eventually(lambda: len(events.of("metalplane.fabric.attachment.confirmed", machine)) > before)
    assert (await fabric.switches().AttachMachine(fabric.attaching(machine, uuid7(), vrf=30))).vrf == 30


async def test_a_relieved_leaf_that_takes_back_an_older_state_takes_the_confirmation_with_it(
    fabric: Any, pair: Any, attached: Any, third: Any, events: Any, eventually: Any
) -> None:
    operator, (machine, _) = fabric.switches(token="operator"), attached
    old = pair[0].states[-1]
    await operator.MigrateSwitch(MigrateSwitchRequest(id="leaf01", target="leaf03"))
    await follow(third, eventually, 2)
    await follow(pair[0], eventually, 3)
    assert (await attachment(fabric, machine)).confirmed
    newest = pair[0].states[-1]
    report = agent_pb2.ApplyReport(id=uuid7(), generation=3, hash=newest.hash, error="the plane was not reached")
    report.standing_generation, report.standing_hash = old.generation, old.hash
    before = len(events.of("metalplane.fabric.attachment.retracted", machine))
    await pair[0].send(apply_report=report)
    await eventually(lambda: len(events.of("metalplane.fabric.attachment.retracted", machine)) > before)
    shown = await attachment(fabric, machine)
    assert [(leaf.switch_id, leaf.former) for leaf in shown.leaves if not leaf.confirmed] == [("leaf01", True)]


async def test_a_machine_that_moves_to_other_leaves_while_it_is_attached_is_let_go_of_by_those_before(
    fabric: Any, pair: Any, attached: Any, third: Any, eventually: Any
) -> None:
    machine, _ = attached
    neighbours = fabric.cables(machine, "Ethernet4")
    neighbours.neighbours[0].system_name, neighbours.neighbours[0].port_id = "leaf03", "swp2"
    await fabric.cabling().ConnectMachine(neighbours)
    await follow(third, eventually, 2)
    waiting = await attachment(fabric, machine)
    assert [(leaf.switch_id, leaf.port, leaf.former) for leaf in waiting.leaves if not leaf.confirmed] == [
        ("leaf01", "Ethernet4", True)
    ]
    await follow(pair[0], eventually, 3)
    assert (await attachment(fabric, machine)).confirmed
    with pytest.raises(FailedPrecondition) as refused:
        await fabric.cabling().DisconnectMachine(DisconnectMachineRequest(machine=machine))
    assert refused.value.reason == "MACHINE_ATTACHED"


async def test_a_machine_that_is_leaving_holds_a_migration_up_and_one_that_has_left_does_not(
    fabric: Any, pair: Any, attached: Any, third: Any, eventually: Any
) -> None:
    operator, (machine, allocation) = fabric.switches(token="operator"), attached
    await fabric.switches().DetachMachine(DetachMachineRequest(machine=machine, allocation=allocation))
    request = MigrateSwitchRequest(id="leaf01", target="leaf03")
    with pytest.raises(FailedPrecondition) as caught:
        await operator.MigrateSwitch(request)
    assert caught.value.reason == "DETACHMENT_UNCONFIRMED"
    assert machine in caught.value.message
    for leaf in pair:
        await follow(leaf, eventually, 3)
    await operator.MigrateSwitch(request)
    left = await attachment(fabric, machine)
    assert (left.confirmed, left.allocation) == (True, ""), "it can be given to somebody else"


async def test_a_refused_migration_moves_nothing(fabric: Any, pair: Any, attached: Any, eventually: Any) -> None:
    operator = fabric.switches(token="operator")
    elsewhere = await fabric.leaf("leaf09", rack="r2").open()
    await eventually(lambda: elsewhere.generation == 1)
    before = await fabric.rows("SELECT * FROM cable ORDER BY switch_id, port")
    for target, reason in (
        ("leaf01", "MIGRATION_TO_ITSELF"), ("leaf02", "MIGRATION_TARGET_IN_USE"), ("leaf09", "SWITCH_IN_OTHER_RACK"),
    ):  # fmt: skip
        with pytest.raises(FailedPrecondition) as caught:
            await operator.MigrateSwitch(MigrateSwitchRequest(id="leaf01", target=target))
        assert caught.value.reason == reason
    with pytest.raises(NotFound):
        await operator.MigrateSwitch(MigrateSwitchRequest(id="leaf01", target="nobody"))
    assert await fabric.rows("SELECT * FROM cable ORDER BY switch_id, port") == before


async def test_spines_and_exits_are_known_and_no_machine_hangs_on_them(fabric: Any, pair: Any, eventually: Any) -> None:
    operator = fabric.switches(token="operator")
    request = RecordDeviceRequest(
        id="spine01", kind=switch_pb2.SWITCH_KIND_SPINE, partition="mini", asn=4200000001, description="left"
    )
    first = await operator.RecordDevice(request)
    assert (first.kind, first.asn, first.description, len(first.ports)) == (
        switch_pb2.SWITCH_KIND_SPINE, 4200000001, "left", 0,
    )  # fmt: skip
    assert (await operator.RecordDevice(request)).etag == first.etag, "the same again changes nothing"
    request.description = "right"
    assert (await operator.RecordDevice(request)).description == "right"
    with pytest.raises(FailedPrecondition) as caught:
        await fabric.machine_on(["leaf01", "spine01"])
    assert caught.value.reason == "NOT_TWO_LEAVES"
    for wrong, reason in (
        (RecordDeviceRequest(id="leaf01", kind=request.kind, partition="mini"), "NAME_OF_A_LEAF"),
        (RecordDeviceRequest(id="spine01", kind=request.kind, partition="other"), "SWITCH_IN_OTHER_PARTITION"),
        (RecordDeviceRequest(id="SPINE01", kind=request.kind, partition="mini"), "HOST_NAME_TAKEN"),
    ):
        with pytest.raises(FailedPrecondition) as refused:
            await operator.RecordDevice(wrong)
        assert refused.value.reason == reason
    with pytest.raises(InvalidArgument):
        await operator.RecordDevice(RecordDeviceRequest(id="x", kind=switch_pb2.SWITCH_KIND_LEAF, partition="mini"))
    with pytest.raises(FailedPrecondition) as no_leaf:
        await operator.ReplaceSwitch(ReplaceSwitchRequest(id="spine01"))
    assert no_leaf.value.reason == "SWITCH_IS_NO_LEAF"
    impostor = await fabric.leaf("spine01").open()
    await eventually(lambda: impostor.ended)
    assert impostor.failure.reason == "NAME_OF_A_DEVICE"
    await operator.DeleteSwitch(DeleteSwitchRequest(id="spine01"))
    with pytest.raises(NotFound):
        await operator.GetSwitch(GetSwitchRequest(id="spine01"))
