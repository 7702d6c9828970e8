"""Fabric with its database and two leaves with their agents: a wish becomes rows in both leaves' Redis, and is echoed.

The real fabric and the real agent over mutual TLS; only the switch behind Redis is simulated.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import nats
import pytest
from live_rack import Eventually, LiveRack, attach, confirmed, on_leaves
from metal_kit.ca import Authority
from metal_kit.ids import uuid7
from metal_lab.servers import Redis
from metal_sim.leaf import LeafSpec, SimLeaf
from metalplane.common.v1.event_pb2 import Event
from metalplane.fabric.v1.cabling_pb2_grpc import CablingServiceStub
from metalplane.fabric.v1.events_pb2 import MachineSeen
from metalplane.fabric.v1.observation_pb2 import DriftState
from metalplane.fabric.v1.switch_pb2 import (
    DetachMachineRequest,
    GetAttachmentRequest,
    GetSwitchRequest,
    SwitchHealth,
    SyncStatus,
)
from metalplane.fabric.v1.switch_pb2_grpc import SwitchServiceStub

PORTS = ("Ethernet0", "Ethernet4", "Ethernet8", "Ethernet120", "Ethernet124")


class SimulatedRack(LiveRack):
    """Two leaves on one Redis."""

    def __init__(self, authority: Authority, directory: Path, stack: AsyncExitStack) -> None:
        super().__init__(authority, directory, stack)
        self.leaves: list[SimLeaf] = []

    async def add_leaf(self, number: int, socket: Path) -> None:
        """A leaf that boots and starts its agent."""
        name = f"leaf0{number}"
        spec = LeafSpec(name, PORTS, PORTS[-2:], 4200000010 + number, f"10.0.0.{number}")
        leaf = SimLeaf(spec, socket, self.directory / name, slot=number - 1)
        await self.stack.enter_async_context(leaf)
        self.leaves.append(leaf)
        self.start_agent(leaf.spec, leaf.database_config)


@pytest.fixture
async def rack(
    tmp_path: Path, database_url: str, nats_url: str, redis_server: Callable[[], Awaitable[Redis]]
) -> AsyncIterator[SimulatedRack]:
    """Both leaves are connected as soon as they can be; tests wait for what they need."""
    async with AsyncExitStack() as stack:
        rack = SimulatedRack(Authority.create("e2e"), tmp_path, stack)
        await rack.start_fabric(database_url, nats_url)
        stack.push_async_callback(rack.stop_agents)
        socket = (await redis_server()).socket
        for number in (1, 2):
            await rack.add_leaf(number, socket)
        yield rack


async def cabled(rack: SimulatedRack, eventually: Eventually, port: str) -> str:
    """A new machine on `port` of both leaves, once fabric knows these."""

    async def in_pxe_vlan() -> bool:
        return [await leaf.vlan_of(port) for leaf in rack.leaves] == [4000, 4000]

    await eventually(in_pxe_vlan, what="both leaves have their first state")
    request = on_leaves([leaf.spec.name for leaf in rack.leaves], port)
    await rack.stub(CablingServiceStub, "inventory").ConnectMachine(request)
    return request.machine


async def test_a_machine_goes_into_its_tenants_vrf_on_both_leaves_and_out_again(
    rack: SimulatedRack, eventually: Eventually
) -> None:
    switches = rack.stub(SwitchServiceStub, "allocation")
    first, second = await cabled(rack, eventually, "Ethernet0"), await cabled(rack, eventually, "Ethernet4")
    allocations = uuid7(), uuid7()
    await switches.AttachMachine(attach(first, allocations[0], 104001, "10.1.0.1/32"))
    await switches.AttachMachine(attach(second, allocations[1], 104002, "10.1.0.1/32"))
    for machine in (first, second):
        attachment = await confirmed(switches, eventually, machine)
        assert [leaf.switch_id for leaf in attachment.leaves] == ["leaf01", "leaf02"]
    for leaf in rack.leaves:
        assert await leaf.vni_of("Ethernet0") == 104001
        assert await leaf.vni_of("Ethernet4") == 104002
        assert await leaf.vlan_of("Ethernet8") == 4000
        text = (rack.directory / leaf.spec.name / "frr.conf").read_text()
        assert f"router bgp {leaf.spec.asn} vrf Vrf104001\n" in text
        assert "ip prefix-list Vrf104001-Ethernet0-in-prefixes seq 5 permit 10.1.0.1/32\n" in text
    await switches.DetachMachine(DetachMachineRequest(machine=first, allocation=allocations[0]))
    await confirmed(switches, eventually, first)
    for leaf in rack.leaves:
        assert await leaf.vrf_of("Ethernet0") == ""
        assert await leaf.vlan_of("Ethernet0") == 4000
        assert await leaf.vni_of("Ethernet4") == 104002
        assert leaf.violations == []


async def test_a_leaf_that_was_away_catches_up_and_confirms(rack: SimulatedRack, eventually: Eventually) -> None:
    switches = rack.stub(SwitchServiceStub, "allocation")
    machine, allocation = await cabled(rack, eventually, "Ethernet0"), uuid7()
    await rack.stop_agent("leaf01")
    await switches.AttachMachine(attach(machine, allocation, 104001, "10.1.0.1/32"))

    async def second_alone() -> bool:
        found = await switches.GetAttachment(GetAttachmentRequest(machine=machine))
        return [leaf.confirmed for leaf in found.leaves] == [False, True]

    await eventually(second_alone)
    assert await rack.leaves[0].vni_of("Ethernet0") is None
    rack.start_agent(rack.leaves[0].spec, rack.leaves[0].database_config)
    await confirmed(switches, eventually, machine)
    assert await rack.leaves[0].vni_of("Ethernet0") == 104001


async def test_an_installed_system_seen_by_lldp_becomes_an_event(
    rack: SimulatedRack, eventually: Eventually, nats_url: str
) -> None:
    machine = await cabled(rack, eventually, "Ethernet0")
    seen: list[MachineSeen] = []

    async def take(message: Any) -> None:
        payload = MachineSeen()
        Event.FromString(message.data).payload.Unpack(payload)
        seen.append(payload)

    client = await nats.connect(nats_url)
    try:
        await client.subscribe("metalplane.fabric.machine.seen", cb=take)
        await client.flush()
        for leaf in rack.leaves:
            await leaf.link_up("Ethernet0")
            await leaf.lldp("Ethernet0", chassis="00:11", system_name=machine, description="Debian, provisioned")
        await eventually(lambda: any(each.phone_home.machine == machine for each in seen))
    finally:
        await client.close()
    assert {each.phone_home.port for each in seen if each.phone_home.machine == machine} == {"Ethernet0"}


async def test_a_moved_cable_and_a_change_by_hand_are_told_of_the_leaf(
    rack: SimulatedRack, eventually: Eventually
) -> None:
    switches = rack.stub(SwitchServiceStub, "allocation")
    machine, leaf = await cabled(rack, eventually, "Ethernet0"), rack.leaves[0]

    async def told() -> SyncStatus:
        found: SyncStatus = (await switches.GetSwitch(GetSwitchRequest(id="leaf01"))).sync
        return found

    async def moved() -> bool:
        reasons = (await told()).health_reasons
        return [(each.code, machine in each.message) for each in reasons] == [("CABLE_MOVED", True)]

    async def corrected() -> bool:
        return (await told()).drift.state == DriftState.DRIFT_STATE_CORRECTED

    async def well() -> bool:
        return (await told()).health == SwitchHealth.SWITCH_HEALTH_HEALTHY

    await eventually(well)
    nic = f"aa:{machine[:2]}:{machine[2:4]}:{machine[4:6]}:{machine[6:8]}:00"
    await leaf.lldp("Ethernet4", chassis=nic, system_name="", description="installer")
    await eventually(moved)
    await leaf.lldp_gone("Ethernet4")
    await eventually(well)
    await leaf.change_by_hand(delete="VLAN_MEMBER|Vlan4000|Ethernet8")
    await eventually(corrected)
    assert [row.key for row in (await told()).drift.differences.rows] == ["Vlan4000|Ethernet8"]
    assert await leaf.vlan_of("Ethernet8") == 4000
