"""Generations of a leaf: looked back at, compared, returned to, and left again."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from metal_kit.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from metal_kit.ids import uuid7
from metalplane.fabric.v1 import agent_pb2, switch_pb2
from metalplane.fabric.v1.generation_pb2 import (
    DiffGenerationsRequest,
    GetDesiredStateRequest,
    ListGenerationsRequest,
    PlanSwitchRequest,
    RetrySwitchRequest,
    RollbackSwitchRequest,
    UnpinSwitchRequest,
)
from metalplane.fabric.v1.switch_pb2 import (
    DetachMachineRequest,
    GetAttachmentRequest,
    GetSwitchRequest,
    SetPortStateRequest,
)

TENANT, WAITING = switch_pb2.PORT_ROLE_MACHINE, switch_pb2.PORT_ROLE_UNPROVISIONED


@pytest.fixture
async def attached(fabric: Any, pair: Any, eventually: Any) -> tuple[str, str]:
    """A machine on Ethernet0 in VRF 20, which both leaves have confirmed in generation 2; and its allocation."""
    machine, allocation = await fabric.machine(), uuid7()
    await fabric.switches().AttachMachine(fabric.attaching(machine, allocation))
    await follow(pair, eventually, 2)
    return machine, allocation


async def follow(leaves: Any, eventually: Any, generation: int) -> None:
    """Have the leaves apply this generation."""
    for leaf in leaves:
        await eventually(lambda leaf=leaf: leaf.generation == generation, what=f"generation {generation}")
        report = await leaf.apply()
        await eventually(lambda leaf=leaf, report=report: report in leaf.acks, what="its acknowledgement")


async def shut(fabric: Any, port: str) -> None:
    request = SetPortStateRequest(id="leaf01", port=port, state=switch_pb2.PORT_STATE_DOWN)
    await fabric.switches(token="operator").SetPortState(request)


def rollback(generation: int, reason: str = "") -> RollbackSwitchRequest:
    return RollbackSwitchRequest(switch_id="leaf01", generation=generation, reason=reason)


async def confirmed(fabric: Any, machine: str) -> bool:
    return bool((await fabric.switches().GetAttachment(GetAttachmentRequest(machine=machine))).confirmed)


async def test_generations_are_listed_newest_first_page_by_page(fabric: Any, pair: Any, attached: Any) -> None:
    await shut(fabric, "Ethernet8")
    generations = fabric.generations(token="viewer")
    first = await generations.ListGenerations(ListGenerationsRequest(switch_id="leaf01", page_size=2))
    rest = await generations.ListGenerations(
        ListGenerationsRequest(switch_id="leaf01", page_size=2, page_token=first.next_page_token)
    )
    listed = [*first.generations, *rest.generations]
    assert [(each.number, each.applied, each.wanted) for each in listed] == [
        (3, False, True), (2, True, False), (1, False, False),
    ]  # fmt: skip
    assert not rest.next_page_token
    assert [dict(each.ports) for each in listed] == [
        {"machine": 1, "unused": 1, "uplink": 2}, {"machine": 1, "uplink": 2}, {"uplink": 2},
    ]  # fmt: skip
    assert [each.vrfs for each in listed] == [1, 1, 0]
    assert all(each.create_time.seconds and each.hash and not each.pinned_to for each in listed)
    with pytest.raises(NotFound):
        await generations.ListGenerations(ListGenerationsRequest(switch_id="nobody"))


async def test_a_generations_content_is_shown(fabric: Any, pair: Any, attached: Any) -> None:
    generations = fabric.generations(token="viewer")
    old = await generations.GetDesiredState(GetDesiredStateRequest(switch_id="leaf01", generation=1))
    new = await generations.GetDesiredState(GetDesiredStateRequest(switch_id="leaf01"))
    assert (old, new) == (pair[0].states[0], pair[0].states[-1])
    with pytest.raises(NotFound) as caught:
        await generations.GetDesiredState(GetDesiredStateRequest(switch_id="leaf01", generation=9))
    assert (caught.value.reason, caught.value.field) == ("GENERATION_NOT_KEPT", "generation")


async def test_what_differs_is_told_by_object_and_field(fabric: Any, pair: Any, attached: Any) -> None:
    await shut(fabric, "Ethernet8")
    generations = fabric.generations(token="viewer")
    pending = await generations.DiffGenerations(DiffGenerationsRequest(switch_id="leaf01"))
    assert (pending.before, pending.after) == (2, 3)
    assert [(each.object, each.field, each.before, each.after) for each in pending.changes] == [
        ("port Ethernet8", "role", "unprovisioned", "unused"),
        ("port Ethernet8", "admin", "", "down"),
        ("port Ethernet8", "mtu", "9000", ""),
    ]
    back = await generations.DiffGenerations(DiffGenerationsRequest(switch_id="leaf01", before=2, after=1))
    assert ("vrf Vrf20", "", "vni 20, vlan 1001", "") in [
        (each.object, each.field, each.before, each.after) for each in back.changes
    ]


async def test_a_switch_is_held_at_an_old_content_until_it_is_unpinned(
    fabric: Any, pair: Any, attached: Any, eventually: Any
) -> None:
    generations, operator = fabric.generations(), fabric.switches(token="operator")
    await shut(fabric, "Ethernet8")
    await follow(pair[:1], eventually, 3)
    view = await generations.RollbackSwitch(rollback(2, "wrong port"))
    assert (view.pin.generation, view.pin.reason, view.pin.HasField("create_time")) == (2, "wrong port", True)
    await follow(pair[:1], eventually, 4)
    assert pair[0].states[-1].ports == pair[0].states[-3].ports
    listed = await generations.ListGenerations(ListGenerationsRequest(switch_id="leaf01", page_size=1))
    assert (listed.generations[0].number, listed.generations[0].pinned_to) == (4, 2)
    assert await confirmed(fabric, attached[0]), "the old content has the attachment as well"
    await shut(fabric, "Ethernet12")
    assert (await operator.GetSwitch(GetSwitchRequest(id="leaf01"))).sync.desired_generation == 4
    plan = await generations.PlanSwitch(PlanSwitchRequest(switch_id="leaf01"))
    assert {each.object for each in plan.changes} == {"port Ethernet8", "port Ethernet12"}
    released = await generations.UnpinSwitch(UnpinSwitchRequest(switch_id="leaf01"))
    assert not released.HasField("pin")
    await eventually(lambda: pair[0].generation == 5)
    assert pair[0].port("Ethernet12").role == switch_pb2.PORT_ROLE_UNUSED
    again = await generations.UnpinSwitch(UnpinSwitchRequest(switch_id="leaf01"))
    assert (again.etag, again.sync.desired_generation) == (released.etag, 5), "there was nothing to release"


async def test_a_tenant_that_the_old_content_lacks_is_confirmed_only_after_the_pin(
    fabric: Any, pair: Any, attached: Any, events: Any, eventually: Any
) -> None:
    machine, _ = attached
    assert await confirmed(fabric, machine)
    await fabric.generations().RollbackSwitch(rollback(1))
    await follow(pair[:1], eventually, 3)
    assert pair[0].port("Ethernet0").role == WAITING
    assert not await confirmed(fabric, machine)
    await eventually(lambda: len(events.of("metalplane.fabric.attachment.retracted", machine)) == 1)
    newcomer = await fabric.machine("Ethernet4")
    await fabric.switches().AttachMachine(fabric.attaching(newcomer, uuid7(), vrf=30))
    await follow(pair[1:], eventually, 3)
    assert pair[0].generation == 3, "the pinned leaf is left alone"
    assert not await confirmed(fabric, newcomer)
    await fabric.generations().UnpinSwitch(UnpinSwitchRequest(switch_id="leaf01"))
    await follow(pair[:1], eventually, 4)
    assert (pair[0].port("Ethernet0").vrf, pair[0].port("Ethernet4").vrf) == ("Vrf20", "Vrf30")
    assert await confirmed(fabric, machine)
    assert await confirmed(fabric, newcomer)
    assert not events.of("metalplane.fabric.attachment.retracted", newcomer), "it has never been confirmed before"


async def test_another_return_under_a_pin_confirms_nobody_either(
    fabric: Any, pair: Any, attached: Any, eventually: Any
) -> None:
    await shut(fabric, "Ethernet8")
    await follow(pair[:1], eventually, 3)
    await fabric.generations().RollbackSwitch(rollback(1))
    await follow(pair[:1], eventually, 4)
    await shut(fabric, "Ethernet12")
    await fabric.generations().UnpinSwitch(UnpinSwitchRequest(switch_id="leaf01"))
    await fabric.generations().RollbackSwitch(rollback(1))
    await follow(pair[:1], eventually, 6)
    assert pair[0].port("Ethernet0").role == WAITING
    assert not await confirmed(fabric, attached[0])


async def test_both_leaves_of_a_rack_are_rolled_back_one_after_the_other(
    fabric: Any, pair: Any, attached: Any, eventually: Any
) -> None:
    """What a leaf does not survive must not reach the other one, which carries the rack meanwhile."""
    generations, first, second = fabric.generations(), "leaf01", "leaf02"

    async def too_early(call: Any, remedy: str) -> None:
        with pytest.raises(FailedPrecondition) as caught:
            await call
        assert (caught.value.reason, caught.value.field) == ("OTHER_LEAF_RETURNING", "switch_id")
        assert all(word in caught.value.message for word in (first, second, remedy))

    def back(switch: str) -> Any:
        return generations.RollbackSwitch(RollbackSwitchRequest(switch_id=switch, generation=1))

    def on(switch: str) -> Any:
        return generations.UnpinSwitch(UnpinSwitchRequest(switch_id=switch))

    await back(first)
    await too_early(back(second), "unpin leaf01")
    await back(first)
    await on(first)
    await back(second)
    await too_early(back(first), "unpin leaf02")
    await on(second)
    await back(first)
    newest = (await fabric.switches().GetSwitch(GetSwitchRequest(id=first))).sync.desired_generation
    await follow(pair[:1], eventually, newest)
    await back(second)
    await too_early(on(first), "unpin leaf02")
    newest = (await fabric.switches().GetSwitch(GetSwitchRequest(id=second))).sync.desired_generation
    await follow(pair[1:], eventually, newest)
    await on(first)
    await too_early(on(second), "pin leaf01 again")
    assert (await on(first)).id == first, "without effect, so nobody is in its way"
    # A leaf that is not there and will not be keeps nobody from following the plane.
    await pair[0].close()

    async def followed() -> bool:
        try:
            return not (await on(second)).HasField("pin")
        except FailedPrecondition:
            return False

    await eventually(followed, what="the other leaf, once the first is gone")


@pytest.mark.parametrize("moved", [True, False], ids=["held after a change", "held where it was"])
async def test_tenants_changes_under_pins_keep_no_leaf_from_being_unpinned(
    fabric: Any, pair: Any, attached: Any, eventually: Any, moved: bool
) -> None:
    """Both have arrived where they are held; what neither applies after that is no return that the other waits for."""
    generations, switches, operator = fabric.generations(), fabric.switches(), fabric.switches(token="operator")

    async def wanted(switch: str) -> int:
        return int((await switches.GetSwitch(GetSwitchRequest(id=switch))).sync.desired_generation)

    for leaf, switch in zip(pair, ("leaf01", "leaf02"), strict=True):
        if moved:
            down = SetPortStateRequest(id=switch, port="Ethernet8", state=switch_pb2.PORT_STATE_DOWN)
            await operator.SetPortState(down)
            await follow([leaf], eventually, 3)
        await generations.RollbackSwitch(RollbackSwitchRequest(switch_id=switch, generation=2))
        await follow([leaf], eventually, 4 if moved else 2)
    machine, allocation = attached
    await switches.DetachMachine(DetachMachineRequest(machine=machine, allocation=allocation))
    under = 5 if moved else 3
    assert [await wanted(switch) for switch in ("leaf01", "leaf02")] == [under, under]
    assert not (await generations.UnpinSwitch(UnpinSwitchRequest(switch_id="leaf01"))).HasField("pin")
    if moved:
        # That is a way back, for which the other one waits whatever it has yet to apply itself.
        assert await wanted("leaf01") == 6
        with pytest.raises(FailedPrecondition) as caught:
            await generations.UnpinSwitch(UnpinSwitchRequest(switch_id="leaf02"))
        assert caught.value.reason == "OTHER_LEAF_RETURNING"
    else:
        assert await wanted("leaf01") == under, "without the pin it would have the same"
        assert not (await generations.UnpinSwitch(UnpinSwitchRequest(switch_id="leaf02"))).HasField("pin")


async def test_of_two_leaves_that_have_both_yet_to_return_none_waits_for_the_other(
    fabric: Any, pair: Any, attached: Any, eventually: Any
) -> None:
    """One was away when it was let go, so the other one was rolled back; then it came again. Neither gets there."""
    generations = fabric.generations()
    await generations.RollbackSwitch(rollback(1))
    await follow(pair[:1], eventually, 3)
    await pair[0].close()

    async def gone() -> bool:
        return not (await fabric.switches().GetSwitch(GetSwitchRequest(id="leaf01"))).sync.connected

    await eventually(gone)
    await generations.UnpinSwitch(UnpinSwitchRequest(switch_id="leaf01"))
    await generations.RollbackSwitch(RollbackSwitchRequest(switch_id="leaf02", generation=1))
    await pair[0].open()
    await eventually(lambda: pair[0].generation == 4)
    assert not (await generations.UnpinSwitch(UnpinSwitchRequest(switch_id="leaf02"))).HasField("pin")


async def test_a_leaf_that_was_let_go_on_its_way_back_is_waited_for_though_it_wants_nothing_new(
    fabric: Any, pair: Any, attached: Any, eventually: Any
) -> None:
    """The plane wants by now what the leaf was rolled back to, so that the end of its pin is no new generation."""
    generations, (machine, allocation) = fabric.generations(), attached
    await generations.RollbackSwitch(rollback(1))
    await eventually(lambda: pair[0].generation == 3)
    await fabric.switches().DetachMachine(DetachMachineRequest(machine=machine, allocation=allocation))
    await follow(pair[1:], eventually, 3)
    shown = await generations.UnpinSwitch(UnpinSwitchRequest(switch_id="leaf01"))
    assert (shown.sync.desired_generation, shown.sync.applied_generation, shown.HasField("pin")) == (3, 2, False)
    other = RollbackSwitchRequest(switch_id="leaf02", generation=1)
    with pytest.raises(FailedPrecondition) as caught:
        await generations.RollbackSwitch(other)
    assert caught.value.reason == "OTHER_LEAF_RETURNING"
    assert "leaf01" in caught.value.message
    await follow(pair[:1], eventually, 3)
    assert (await generations.RollbackSwitch(other)).pin.generation == 1


async def test_of_two_leaves_that_are_rolled_back_at_once_one_is(fabric: Any, pair: Any, attached: Any) -> None:
    answers = await asyncio.gather(
        *(
            fabric.generations().RollbackSwitch(RollbackSwitchRequest(switch_id=switch, generation=1))
            for switch in ("leaf01", "leaf02")
        ),
        return_exceptions=True,
    )
    assert sorted(type(answer).__name__ for answer in answers) == ["FailedPrecondition", "Switch"]


async def test_a_machine_that_is_freed_leaves_a_pinned_leaf_at_once(
    fabric: Any, pair: Any, attached: Any, eventually: Any
) -> None:
    machine, allocation = attached
    await fabric.generations().RollbackSwitch(rollback(2))
    await fabric.switches().DetachMachine(DetachMachineRequest(machine=machine, allocation=allocation))
    await follow(pair, eventually, 3)
    assert pair[0].port("Ethernet0").role == WAITING
    assert not pair[0].states[-1].vrfs
    assert await confirmed(fabric, machine)


async def test_nobody_is_put_back_into_a_network_that_he_has_left(
    fabric: Any, pair: Any, attached: Any, eventually: Any
) -> None:
    machine, allocation = attached
    await fabric.switches().DetachMachine(DetachMachineRequest(machine=machine, allocation=allocation))
    await follow(pair, eventually, 3)
    for request in (fabric.generations().RollbackSwitch(rollback(2)),
                    fabric.generations().PlanSwitch(PlanSwitchRequest(switch_id="leaf01", rollback_to=2))):  # fmt: skip
        with pytest.raises(FailedPrecondition) as caught:
            await request
        assert caught.value.reason == "ROLLBACK_CROSSES_TENANTS"
        assert "Ethernet0" in caught.value.message
    view = await fabric.switches(token="viewer").GetSwitch(GetSwitchRequest(id="leaf01"))
    assert not view.HasField("pin")
    assert view.sync.desired_generation == 3


async def test_a_vlan_that_carries_another_vni_by_now_is_not_taken_back(fabric: Any, pair: Any, attached: Any) -> None:
    # A thousand VRFs later the number would have been given away, and the VRF have come back under another one.
    await fabric.rows("UPDATE vlan SET vlan = 1002 WHERE switch_id = 'leaf01' AND vni = 20")
    await fabric.rows("INSERT INTO vlan (switch_id, vni, vlan) VALUES ('leaf01', 77, 1001)")
    with pytest.raises(FailedPrecondition) as caught:
        await fabric.generations().RollbackSwitch(rollback(2))
    assert caught.value.reason == "VLAN_NOT_ITS_OWN"
    assert "VNI 77" in caught.value.message


async def test_a_plan_says_what_a_return_would_do_and_does_nothing(fabric: Any, pair: Any, attached: Any) -> None:
    plan = await fabric.generations(token="viewer").PlanSwitch(PlanSwitchRequest(switch_id="leaf01", rollback_to=1))
    assert (plan.applied_generation, plan.desired_generation) == (2, 2)
    assert ("port Ethernet0", "role", "machine", "unprovisioned") in [
        (each.object, each.field, each.before, each.after) for each in plan.changes
    ]
    assert not (await fabric.generations().PlanSwitch(PlanSwitchRequest(switch_id="leaf01"))).changes
    assert not await fabric.rows("SELECT 1 FROM switch_pin")
    assert pair[0].generation == 2


async def test_who_only_looks_cannot_roll_back(fabric: Any, pair: Any) -> None:
    with pytest.raises(PermissionDenied):
        await fabric.generations(token="viewer").RollbackSwitch(rollback(1))
    with pytest.raises(InvalidArgument) as caught:
        await fabric.generations().RollbackSwitch(rollback(0))
    assert caught.value.field == "generation"
    with pytest.raises(NotFound):
        await fabric.generations().RollbackSwitch(rollback(7))


async def test_what_a_leaf_has_set_aside_is_wanted_again_under_a_new_number(
    fabric: Any, pair: Any, eventually: Any
) -> None:
    machine = await fabric.machine()
    await fabric.switches().AttachMachine(fabric.attaching(machine, uuid7()))
    for leaf in pair:
        await eventually(lambda leaf=leaf: leaf.generation == 2)
    operator, request = fabric.generations(), RetrySwitchRequest(switch_id="leaf01")
    before = await operator.RetrySwitch(request)
    assert (before.set_aside, before.switch.sync.desired_generation) == (0, 2)

    refused = pair[0].states[-1]
    report = agent_pb2.ApplyReport(
        id=str(uuid4()), generation=2, hash=refused.hash, error="FRR differs", quarantine="3 attempts failed"
    )
    await pair[0].send(apply_report=report)
    await eventually(lambda: report.id in pair[0].acks)
    again = await operator.RetrySwitch(request)
    assert (again.set_aside, again.switch.sync.desired_generation, again.switch.sync.quarantine) == (2, 3, "")
    assert (await operator.RetrySwitch(request)).set_aside == 0, "it has not said anything about the new one yet"
    await eventually(lambda: pair[0].generation == 3)
    assert (pair[0].states[-1].hash, pair[1].generation) == (refused.hash, 2)
    assert not await confirmed(fabric, machine)
    for leaf in pair:
        await leaf.apply()
    await eventually(lambda: confirmed(fabric, machine))
    with pytest.raises(NotFound):
        await operator.RetrySwitch(RetrySwitchRequest(switch_id="nobody"))
    with pytest.raises(PermissionDenied):
        await fabric.generations(token="viewer").RetrySwitch(request)
