"""Two real FRR leaves and an exit in network namespaces, driven only through fabric and the agents on the leaves.

What counts here is what gets through: datagrams between machines. Fabric has its Postgres and NATS, each leaf its Redis
from Debian's package, its agent and its FRR; Linux forwards in place of the ASIC.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from live_rack import Eventually, LiveRack, attach, confirmed, on_leaves
from metal_kit.ca import Authority
from metal_kit.ids import uuid7
from metal_lab.servers import Redis
from metal_lab.servers.binaries import REDIS_VARIABLE
from metal_sim.leaf import LeafSpec
from metalplane.fabric.v1.cabling_pb2_grpc import CablingServiceStub
from metalplane.fabric.v1.switch_pb2_grpc import SwitchServiceStub
from netns_fabric.frr import seen_by
from netns_fabric.leaf import RealLeaf
from netns_fabric.namespace import wire
from netns_fabric.nodes import Exit, Machine
from netns_fabric.probe import who_answers
from netns_fabric.requirements import missing

UPLINK = "Ethernet120"
WHY_NOT = missing()
pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(
        bool(WHY_NOT) and os.environ.get("METALPLANE_REQUIRE_PEERS") != "1",
        reason=f"the fabric in network namespaces did not run: {WHY_NOT}",
    ),
]


@dataclass
class Fabric:
    """All boxes and the plane. `places` has the port of each machine, `ids` what the plane calls it."""

    rack: LiveRack
    leaves: list[RealLeaf]
    exit: Exit
    machines: dict[str, Machine]
    places: dict[str, str]
    eventually: Eventually
    ids: dict[str, str] = field(default_factory=dict)
    allocations: dict[str, str] = field(default_factory=dict)

    async def start(self) -> None:
        """Power, cables, then exit and leaves boot; a machine boots when it is attached."""
        await asyncio.gather(*(box.start() for box in (self.exit.box, *(m.box for m in self.machines.values()))))
        await asyncio.gather(*(leaf.power_on() for leaf in self.leaves))
        for leaf in self.leaves:
            await self._cable(leaf)
        await asyncio.gather(self.exit.start(), *(leaf.boot() for leaf in self.leaves))

    async def _cable(self, leaf: RealLeaf) -> None:
        number = self.leaves.index(leaf)
        await wire(leaf.box, UPLINK, self.exit.box, self.exit.ports[number])
        for name, port in self.places.items():
            await wire(leaf.box, port, self.machines[name].box, self.machines[name].legs[number])

    async def stop(self) -> None:
        """Everything ends, also when something of it fails to."""
        nodes = [self.exit.stop(), *(machine.stop() for machine in self.machines.values())]
        ended = await asyncio.gather(*nodes, *(leaf.power_off() for leaf in self.leaves), return_exceptions=True)
        for each in ended:
            if isinstance(each, BaseException):
                raise each

    async def register(self) -> None:
        """The machines tell inventory what they are connected to, as soon as fabric knows both leaves."""
        await self.eventually(self._all_in_pxe_vlan, what="both leaves have their first state")
        cabling = self.rack.stub(CablingServiceStub, "inventory")
        for name, port in self.places.items():
            request = on_leaves([leaf.spec.name for leaf in self.leaves], port)
            await cabling.ConnectMachine(request)
            self.ids[name] = request.machine

    async def _all_in_pxe_vlan(self) -> bool:
        return all([await leaf.vlan_of(port) == 4000 for leaf in self.leaves for port in self.places.values()])

    async def attach(self, name: str, vrf: int) -> None:
        """Bring a machine with its addresses into the network of a tenant, and boot its system when it is confirmed."""
        self.allocations[name] = uuid7()
        switches = self.rack.stub(SwitchServiceStub, "allocation")
        prefixes = [f"{address}/{128 if ':' in address else 32}" for address in self.machines[name].addresses]
        await switches.AttachMachine(attach(self.ids[name], self.allocations[name], vrf, *prefixes))
        await confirmed(switches, self.eventually, self.ids[name])
        await self.machines[name].start()

    async def answers(self, name: str, target: str) -> str:
        """Who answers when a machine asks at an address, from its own address of the same family."""
        machine = self.machines[name]
        source = next(address for address in machine.addresses if (":" in address) == (":" in target))
        return await who_answers(machine.box, source, target)

    async def until_reached(self, name: str, other: str, seconds: float = 30) -> None:
        """Wait until a machine reaches another one at all its addresses; say what FRR sees when it does not."""
        for address in self.machines[other].addresses:
            what = f"{name} reaches {other} at {address}"
            try:
                await self.eventually(lambda to=address: self.reaches(name, to, other), seconds=seconds, what=what)
            except pytest.fail.Exception:
                for box in (
                    *(leaf.box for leaf in self.leaves),
                    self.exit.box,
                    *(m.box for m in self.machines.values()),
                ):
                    print(f"== {box.name}\n{await seen_by(box)}")
                raise

    async def reaches(self, name: str, address: str, other: str) -> bool:
        return await self.answers(name, address) == other


@pytest.fixture
async def fabric(
    tmp_path: Path,
    database_url: str,
    nats_url: str,
    server_directory: Path,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Fabric]:
    """Everybody is up and registered, and nobody has anything."""
    assert not WHY_NOT, f"METALPLANE_REQUIRE_PEERS is set: {WHY_NOT}"
    monkeypatch.setenv(REDIS_VARIABLE, str(shutil.which("redis-server")))

    async def new_redis() -> Redis:
        server = Redis(server_directory / f"redis-{uuid7()[-8:]}")
        await server.start()
        return server

    places = {"a1": "Ethernet0", "a2": "Ethernet4"}
    ports = (*places.values(), UPLINK)
    async with AsyncExitStack() as stack:
        rack = LiveRack(Authority.create("e2e"), tmp_path, stack)
        await rack.start_fabric(database_url, nats_url)
        leaves = [
            RealLeaf(rack, LeafSpec(f"leaf0{n}", ports, (UPLINK,), 4200000010 + n, f"10.0.0.{n}"), new_redis)
            for n in (1, 2)
        ]
        machines = {
            "a1": Machine("a1", 4210000001, ("10.1.0.1", "2001:db8:1::1")),
            "a2": Machine("a2", 4210000002, ("10.1.0.2", "2001:db8:1::2")),
        }
        fabric = Fabric(rack, leaves, Exit(("swp1", "swp2")), machines, places, eventually)
        stack.push_async_callback(fabric.stop)
        await fabric.start()
        await fabric.register()
        yield fabric


async def test_machines_of_a_tenant_reach_each_other_across_leaves(fabric: Fabric) -> None:
    await fabric.attach("a1", 2000)
    await fabric.attach("a2", 2000)
    await fabric.machines["a1"].unplug("lan1")
    await fabric.machines["a2"].unplug("lan0")
    await fabric.until_reached("a1", "a2")
