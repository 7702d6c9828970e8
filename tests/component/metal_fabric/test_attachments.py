"""Machines in and out of a tenant's network: confirmed by both leaves, and never by the wrong allocation."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
from metal_kit.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from metal_kit.ids import uuid7
from metalplane.fabric.v1 import switch_pb2
from metalplane.fabric.v1.events_pb2 import AttachmentConfirmed, MachineSeen
from metalplane.fabric.v1.switch_pb2 import (
    AttachMachineRequest,
    DetachMachineRequest,
    GetAttachmentRequest,
    PortRole,
)
from structlog.testing import capture_logs

CONFIRMED = "metalplane.fabric.attachment.confirmed"
SEEN = "metalplane.fabric.machine.seen"


async def both_apply(pair: Any, eventually: Any, generation: int) -> None:
    for leaf in pair:
        await eventually(lambda leaf=leaf: leaf.generation >= generation, what=f"generation {generation}")
        report = await leaf.apply()
        await eventually(lambda leaf=leaf, report=report: report in leaf.acks)


async def insist(call: Any, request: Any) -> None:
    """Ask as allocation does, which comes again when the plane is too busy to answer in time."""
    for _ in range(4):
        with suppress(Aborted, DeadlineExceeded, Unavailable):
            await call(request)
            return
    await call(request)


async def test_machines_with_the_same_addresses_are_apart_in_their_vrfs(
    fabric: Any, pair: Any, eventually: Any
) -> None:
    """Children of a namespaced super network: projects that share a leaf may have the same prefixes."""
    switches, machines = fabric.switches(), {vrf: await fabric.machine(f"Ethernet{vrf % 20 * 4}") for vrf in (20, 21)}
    same = ["10.0.0.0/22", "10.0.0.1/32"]
    for vrf, machine in machines.items():
        await switches.AttachMachine(fabric.attaching(machine, uuid7(), vrf, allowed_prefixes=same))
    await both_apply(pair, eventually, 3)
    for leaf in pair:
        ports = [leaf.port(name) for name in ("Ethernet0", "Ethernet4")]
        assert [(port.vrf, list(port.allowed_prefixes)) for port in ports] == [
            ("Vrf20", ["10.0.0.0/22"]), ("Vrf21", ["10.0.0.0/22"]),
        ]  # fmt: skip
    await switches.DetachMachine(
        DetachMachineRequest(
            machine=machines[20],
            allocation=(await switches.GetAttachment(GetAttachmentRequest(machine=machines[20]))).allocation,
        )
    )
    await both_apply(pair, eventually, 4)
    assert [pair[0].port(name).vrf for name in ("Ethernet0", "Ethernet4")] == ["", "Vrf21"]
    assert list(pair[0].port("Ethernet4").allowed_prefixes) == ["10.0.0.0/22"]


async def test_an_attachment_needs_both_leaves(fabric: Any, pair: Any, events: Any, eventually: Any) -> None:
    switches, machine, allocation = fabric.switches(), await fabric.machine(), uuid7()
    attachment = await switches.AttachMachine(fabric.attaching(machine, allocation))
    assert not attachment.confirmed
    assert [(leaf.switch_id, leaf.port, leaf.confirmed) for leaf in attachment.leaves] == [
        ("leaf01", "Ethernet0", False),
        ("leaf02", "Ethernet0", False),
    ]
    await eventually(lambda: pair[0].generation == 2 and pair[1].generation == 2)
    port = pair[0].port("Ethernet0")
    assert (port.role, port.vrf, list(port.allowed_prefixes)) == (
        switch_pb2.PORT_ROLE_MACHINE, "Vrf20", ["10.0.0.0/22"],
    )  # fmt: skip
    assert [(vrf.name, vrf.vni, vrf.vlan) for vrf in pair[0].states[-1].vrfs] == [("Vrf20", 20, 1001)]

    report = await pair[0].apply()
    await eventually(lambda: report in pair[0].acks)
    attachment = await switches.GetAttachment(GetAttachmentRequest(machine=machine))
    assert not attachment.confirmed
    assert [leaf.confirmed for leaf in attachment.leaves] == [True, False]
    assert not events.of(CONFIRMED, machine)

    report = await pair[1].apply()
    await eventually(lambda: report in pair[1].acks)
    attachment = await switches.GetAttachment(GetAttachmentRequest(machine=machine))
    assert attachment.confirmed
    assert attachment.allocation == allocation
    await eventually(lambda: events.of(CONFIRMED, machine))
    payload = AttachmentConfirmed()
    assert events.of(CONFIRMED, machine)[0].payload.Unpack(payload)
    assert payload.allocation == allocation
    assert payload.attachment == attachment


async def test_a_dead_leaf_is_named_with_when_it_was_last_seen(fabric: Any, pair: Any, eventually: Any) -> None:
    switches, machine, allocation = fabric.switches(), await fabric.machine(), uuid7()
    await switches.AttachMachine(fabric.attaching(machine, allocation))
    await both_apply(pair, eventually, 2)
    await pair[1].close()
    attachment = await switches.DetachMachine(DetachMachineRequest(machine=machine, allocation=allocation))
    assert attachment.role == switch_pb2.PORT_ROLE_UNPROVISIONED
    await eventually(lambda: pair[0].generation == 3)
    report = await pair[0].apply()
    await eventually(lambda: report in pair[0].acks)

    async def dead() -> bool:
        leaf = (await switches.GetAttachment(GetAttachmentRequest(machine=machine))).leaves[1]
        return not leaf.connected and not leaf.confirmed and leaf.HasField("seen_time")

    await eventually(dead)
    attachment = await switches.GetAttachment(GetAttachmentRequest(machine=machine))
    assert not attachment.confirmed
    assert attachment.allocation == allocation, "it holds the machine until every leaf has let go"
    assert attachment.leaves[0].confirmed


async def test_the_next_allocation_waits_for_a_leaf_that_has_not_let_go(
    fabric: Any, pair: Any, eventually: Any
) -> None:
    switches, machine, first, second = fabric.switches(), await fabric.machine(), uuid7(), uuid7()
    await switches.AttachMachine(fabric.attaching(machine, first))
    await both_apply(pair, eventually, 2)
    await switches.DetachMachine(DetachMachineRequest(machine=machine, allocation=first))
    await eventually(lambda: pair[0].generation == 3)
    await pair[0].apply()
    with pytest.raises(FailedPrecondition) as caught:
        await switches.AttachMachine(fabric.attaching(machine, second))
    assert caught.value.reason == "DETACHMENT_UNCONFIRMED"
    assert "leaf02" in caught.value.message
    await both_apply(pair, eventually, 3)
    assert (await switches.AttachMachine(fabric.attaching(machine, second, 30))).allocation == second


async def test_an_attached_machine_is_never_taken_over(fabric: Any, pair: Any) -> None:
    switches, machine = fabric.switches(), await fabric.machine()
    owner = uuid7()
    await switches.AttachMachine(fabric.attaching(machine, owner))
    with pytest.raises(FailedPrecondition) as caught:
        await switches.AttachMachine(fabric.attaching(machine, uuid7(), 30))
    assert caught.value.reason == "ATTACHED_TO_OTHER"
    assert (await switches.GetAttachment(GetAttachmentRequest(machine=machine))).vrf == 20


async def test_a_replayed_detach_does_nothing_to_the_next_allocation(fabric: Any, pair: Any, eventually: Any) -> None:
    switches, machine, first, second = fabric.switches(), await fabric.machine(), uuid7(), uuid7()
    old_attach = fabric.attaching(machine, first)
    old_detach = DetachMachineRequest(machine=machine, allocation=first)
    await switches.AttachMachine(old_attach)
    await both_apply(pair, eventually, 2)
    await switches.DetachMachine(old_detach)
    await both_apply(pair, eventually, 3)
    await switches.AttachMachine(fabric.attaching(machine, second, 30))
    await both_apply(pair, eventually, 4)
    before = await switches.GetAttachment(GetAttachmentRequest(machine=machine))
    assert (before.allocation, before.vrf, before.confirmed) == (second, 30, True)

    assert await switches.DetachMachine(old_detach) == before
    with pytest.raises(FailedPrecondition) as caught:
        await switches.AttachMachine(old_attach)
    assert caught.value.reason == "ALLOCATION_ENDED"
    assert await switches.GetAttachment(GetAttachmentRequest(machine=machine)) == before
    assert [row["desired_generation"] for row in await fabric.rows("SELECT * FROM switch")] == [4, 4]


async def test_an_attach_that_arrives_after_the_end_of_its_allocation_does_nothing(fabric: Any, pair: Any) -> None:
    switches, machine, allocation = fabric.switches(), await fabric.machine(), uuid7()
    freed = await switches.DetachMachine(DetachMachineRequest(machine=machine, allocation=allocation))
    assert (freed.confirmed, freed.allocation) == (True, "")
    with pytest.raises(FailedPrecondition) as caught:
        await switches.AttachMachine(fabric.attaching(machine, allocation))
    assert caught.value.reason == "ALLOCATION_ENDED"
    assert [row["desired_generation"] for row in await fabric.rows("SELECT * FROM switch")] == [1, 1]


async def test_an_allocation_is_over_also_for_a_machine_that_hangs_on_no_leaf(fabric: Any, pair: Any) -> None:
    switches, machine, allocation = fabric.switches(), str(uuid4()), uuid7()
    with pytest.raises(NotFound):
        await switches.DetachMachine(DetachMachineRequest(machine=machine, allocation=allocation))
    await fabric.cabling().ConnectMachine(fabric.cables(machine))
    with pytest.raises(FailedPrecondition) as caught:
        await switches.AttachMachine(fabric.attaching(machine, allocation))
    assert caught.value.reason == "ALLOCATION_ENDED"


async def test_an_allocation_that_says_so_may_return(fabric: Any, pair: Any, eventually: Any) -> None:
    switches, machine, allocation = fabric.switches(), await fabric.machine(), uuid7()
    await switches.AttachMachine(fabric.attaching(machine, allocation))
    await both_apply(pair, eventually, 2)
    detach = DetachMachineRequest(machine=machine, allocation=allocation, will_return=True)
    assert (await switches.DetachMachine(detach)).role == switch_pb2.PORT_ROLE_UNPROVISIONED
    await both_apply(pair, eventually, 3)
    assert (await switches.AttachMachine(fabric.attaching(machine, allocation))).allocation == allocation


async def test_repeating_a_request_makes_no_generation_and_no_second_event(
    fabric: Any, pair: Any, events: Any, eventually: Any
) -> None:
    switches, machine, allocation = fabric.switches(), await fabric.machine(), uuid7()
    request = fabric.attaching(machine, allocation, allowed_prefixes=["10.0.1.0/24", "10.0.0.0/24"])
    await switches.AttachMachine(request)
    await both_apply(pair, eventually, 2)
    same = fabric.attaching(machine, allocation, allowed_prefixes=["10.0.0.0/23"])
    assert await switches.AttachMachine(request) == await switches.AttachMachine(same)
    assert [row["desired_generation"] for row in await fabric.rows("SELECT * FROM switch")] == [2, 2]
    more = fabric.attaching(machine, allocation, allowed_prefixes=["10.0.0.0/23", "10.9.9.9/32"])
    assert not (await switches.AttachMachine(more)).confirmed
    await both_apply(pair, eventually, 3)
    await eventually(lambda: len(events.of(CONFIRMED, machine)) == 2)
    versions = [event.entity_version for event in events.of(CONFIRMED, machine)]
    assert versions == sorted(set(versions))


async def test_a_firewall_gets_its_vnis_and_no_vrf(fabric: Any, pair: Any, eventually: Any) -> None:
    machine = await fabric.machine()
    request = AttachMachineRequest(
        machine=machine,
        allocation=uuid7(),
        role=switch_pb2.PORT_ROLE_FIREWALL,
        allowed_prefixes=["10.1.0.1/32"],
        vnis=[104009, 20],
    )
    await fabric.switches().AttachMachine(request)
    await eventually(lambda: pair[0].generation == 2)
    port = pair[0].port("Ethernet0")
    assert (port.role, port.vrf, list(port.vnis), port.mtu) == (
        switch_pb2.PORT_ROLE_FIREWALL, "", [20, 104009], 9216,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"vrf": 0}, "vrf"),
        ({"vnis": [5]}, "vnis"),
        ({"allowed_prefixes": ["10.0.0.1/8"]}, "allowed_prefixes[0]"),
        ({"machine": "nonsense"}, "machine"),
        ({"allocation": ""}, "allocation"),
        ({"role": switch_pb2.PORT_ROLE_UPLINK}, "role"),
    ],
)
async def test_a_bad_attachment_is_named_and_changes_nothing(
    fabric: Any, pair: Any, change: dict[str, Any], field: str
) -> None:
    request = fabric.attaching(await fabric.machine(), uuid7())
    for name in change:
        request.ClearField(name)
    request.MergeFrom(AttachMachineRequest(**change))
    with pytest.raises(InvalidArgument) as caught:
        await fabric.switches().AttachMachine(request)
    assert caught.value.field == field
    assert not await fabric.rows("SELECT 1 FROM attachment")


async def test_two_networks_do_not_share_a_vni_while_machines_are_attached(
    fabric: Any, pair: Any, eventually: Any
) -> None:
    """They would see each other's machines. A VRF that several networks share has one that it belongs to.

    Viewers of the refused one's project read the refusal: whose the number is only the log says.
    """
    switches, vrf = fabric.switches(), 20
    one, two, wall = [await fabric.machine(port) for port in ("Ethernet0", "Ethernet4", "Ethernet8")]
    first = fabric.attaching(one, uuid7(), vrf, networks={vrf: "blue"})
    await switches.AttachMachine(first)
    await switches.AttachMachine(first)
    for role, numbers in (
        (PortRole.PORT_ROLE_MACHINE, {"vrf": vrf}),
        (PortRole.PORT_ROLE_FIREWALL, {"vnis": [9, vrf]}),
    ):
        request = AttachMachineRequest(machine=two, allocation=uuid7(), role=role, networks={vrf: "red"}, **numbers)
        with capture_logs() as lines, pytest.raises(FailedPrecondition) as caught:
            await switches.AttachMachine(request)
        assert (caught.value.reason, caught.value.field) == ("VNI_OF_OTHER_NETWORK", f"networks[{vrf}]")
        assert all(name in caught.value.message for name in (str(vrf), "red"))
        assert not any(name in f"{caught.value}{caught.value.metadata}" for name in ("blue", one))
        logged = next(line for line in lines if line["event"] == "vni.of_other_network")
        assert [logged[name] for name in ("vni", "network", "machine", "owner", "attached")] == [
            vrf, "red", two, "blue", one,
        ]  # fmt: skip
    assert not (await switches.GetAttachment(GetAttachmentRequest(machine=two))).allocation
    # A firewall of the network's own, and a caller that does not say whose the number is.
    await switches.AttachMachine(
        AttachMachineRequest(
            machine=wall, allocation=uuid7(), role=PortRole.PORT_ROLE_FIREWALL, vnis=[9, vrf], networks={vrf: "blue"}
        )
    )
    await switches.AttachMachine(fabric.attaching(two, uuid7(), 30))
    for machine in (one, wall):
        held = await switches.GetAttachment(GetAttachmentRequest(machine=machine))
        # The firewall alone keeps it from being another network's, too.
        await switches.DetachMachine(DetachMachineRequest(machine=machine, allocation=held.allocation))
        newcomer = fabric.attaching(await fabric.machine(f"Ethernet{12 if machine == one else 16}"), uuid7(), vrf)
        newcomer.networks[vrf] = "red"
        if machine == one:
            with pytest.raises(FailedPrecondition):
                await switches.AttachMachine(newcomer)
    assert (await switches.AttachMachine(newcomer)).vrf == vrf, "nobody is left of the network that had the number"


async def test_a_repeated_attachment_says_whose_a_vni_is_that_nobody_had_said_before(fabric: Any, pair: Any) -> None:
    """As for machines that were attached before attachments said it."""
    switches = fabric.switches()
    request = fabric.attaching(await fabric.machine(), uuid7(), 20)
    before = await switches.AttachMachine(request)
    request.networks[20] = "blue"
    assert await switches.AttachMachine(request) == before
    other = fabric.attaching(await fabric.machine("Ethernet4"), uuid7(), 20, networks={20: "red"})
    with pytest.raises(FailedPrecondition) as caught:
        await switches.AttachMachine(other)
    assert caught.value.reason == "VNI_OF_OTHER_NETWORK"


async def test_a_network_without_its_number_is_refused(fabric: Any, pair: Any) -> None:
    machine = await fabric.machine()
    for strange in (0, 21):
        with pytest.raises(InvalidArgument) as caught:
            await fabric.switches().AttachMachine(fabric.attaching(machine, uuid7(), 20, networks={strange: "blue"}))
        assert (caught.value.reason, caught.value.field) == ("NETWORK_WITHOUT_VNI", "networks")


async def test_of_two_networks_that_want_a_vni_at_once_one_gets_it(fabric: Any, pair: Any) -> None:
    machines = [await fabric.machine(f"Ethernet{4 * number}") for number in range(6)]
    answers = await asyncio.gather(
        *(
            fabric.switches().AttachMachine(
                fabric.attaching(machine, uuid7(), 20, networks={20: "blue" if number % 2 else "red"})
            )
            for number, machine in enumerate(machines)
        ),
        return_exceptions=True,
    )
    refused = [number % 2 for number, answer in enumerate(answers) if isinstance(answer, FailedPrecondition)]
    assert len(refused) == 3
    assert len(set(refused)) == 1, "all of one network"


async def test_a_machine_without_cables_cannot_be_attached_and_has_no_attachment(fabric: Any) -> None:
    switches, machine = fabric.switches(), str(uuid4())
    with pytest.raises(FailedPrecondition) as caught:
        await switches.AttachMachine(fabric.attaching(machine, uuid7()))
    assert caught.value.reason == "MACHINE_NOT_CABLED"
    with pytest.raises(NotFound):
        await switches.GetAttachment(GetAttachmentRequest(machine=machine))
    with pytest.raises(NotFound):
        await switches.DetachMachine(DetachMachineRequest(machine=machine, allocation=uuid7()))


async def test_forty_machines_of_one_leaf_pair_are_detached_at_once(fabric: Any, pair: Any, eventually: Any) -> None:
    await fabric.replica()
    clients = [fabric.switches(replica=0), fabric.switches(replica=1)]
    machines = {await fabric.machine(f"Ethernet{4 * number}"): uuid7() for number in range(40)}
    attaching = (
        insist(clients[number % 2].AttachMachine, fabric.attaching(machine, allocation, 20 + number % 7))
        for number, (machine, allocation) in enumerate(machines.items())
    )
    await asyncio.gather(*attaching)
    await both_apply(pair, eventually, 41)

    detaching = (
        insist(clients[number % 2].DetachMachine, DetachMachineRequest(machine=machine, allocation=allocation))
        for number, (machine, allocation) in enumerate(machines.items())
    )
    await asyncio.gather(*detaching)
    await both_apply(pair, eventually, 81)
    for leaf in pair:
        assert {port.role for port in leaf.states[-1].ports} == {
            switch_pb2.PORT_ROLE_UNPROVISIONED, switch_pb2.PORT_ROLE_UPLINK,
        }  # fmt: skip
        assert not leaf.states[-1].vrfs
        generations = [state.generation for state in leaf.states]
        assert generations == sorted(set(generations))
    for machine in machines:
        assert (await clients[0].GetAttachment(GetAttachmentRequest(machine=machine))).confirmed


async def test_a_phone_home_is_published_once_in_a_while_and_at_once_after_an_attach(
    fabric: Any, pair: Any, events: Any, eventually: Any
) -> None:
    switches, machine, first = fabric.switches(), await fabric.machine(), uuid7()
    await switches.AttachMachine(fabric.attaching(machine, first))
    for leaf in (*pair, pair[0]):
        report = await leaf.observe(seen=[("Ethernet0", machine)])
        await eventually(lambda leaf=leaf, report=report: report in leaf.acks)
    await eventually(lambda: events.of(SEEN, machine))
    payload = MachineSeen()
    assert events.of(SEEN, machine)[0].payload.Unpack(payload)
    assert (payload.switch_id, payload.phone_home.port, payload.phone_home.machine) == ("leaf01", "Ethernet0", machine)

    async def seen_again(leaf: Any, times: int) -> None:
        report = await leaf.observe(seen=[("Ethernet0", machine.upper())])
        await eventually(lambda: report in leaf.acks)
        await eventually(lambda: len(events.of(SEEN, machine)) == times)

    await fabric.rows("UPDATE sighting SET emit_time = emit_time - interval '30 seconds'")
    await seen_again(pair[1], 2)
    await both_apply(pair, eventually, 2)
    await switches.DetachMachine(DetachMachineRequest(machine=machine, allocation=first))
    await both_apply(pair, eventually, 3)
    await switches.AttachMachine(fabric.attaching(machine, uuid7()))
    await seen_again(pair[1], 3)
    versions = [event.entity_version for event in events.of(SEEN, machine)]
    assert versions == sorted(set(versions))


async def test_a_system_that_claims_to_be_another_machine_is_not_believed(
    fabric: Any, pair: Any, events: Any, eventually: Any
) -> None:
    victim = await fabric.machine("Ethernet0")
    await fabric.machine("Ethernet4")
    report = await pair[0].observe(seen=[("Ethernet4", victim), ("Ethernet8", victim)])
    await eventually(lambda: report in pair[0].acks)
    assert not await fabric.rows("SELECT 1 FROM sighting")
    assert not events.of(SEEN)


async def test_only_allocation_attaches(fabric: Any, pair: Any) -> None:
    machine = await fabric.machine()
    for client in (fabric.switches(as_="inventory"), fabric.switches(token="operator")):
        with pytest.raises(PermissionDenied):
            await client.AttachMachine(fabric.attaching(machine, uuid7()))
    assert not await fabric.rows("SELECT 1 FROM attachment")
