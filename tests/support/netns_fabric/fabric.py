"""The whole of it: leaves, exit, machines, the cables between them, and the plane that drives the leaves."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest
from live_rack import Eventually, LiveRack, attach, confirmed, on_leaves
from metal_kit.ids import uuid7
from metalplane.fabric.v1.cabling_pb2_grpc import CablingServiceStub
from metalplane.fabric.v1.switch_pb2 import DetachMachineRequest, GetAttachmentRequest, PortRole
from metalplane.fabric.v1.switch_pb2_grpc import SwitchServiceStub

from netns_fabric.frr import seen_by
from netns_fabric.leaf import RealLeaf
from netns_fabric.namespace import wire
from netns_fabric.nodes import INTERNET, Exit, Firewall, Machine
from netns_fabric.probe import who_answers

UPLINK = "Ethernet120"


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
        await asyncio.gather(self.exit.power_on(), *(machine.box.start() for machine in self.machines.values()))
        await asyncio.gather(*(leaf.power_on() for leaf in self.leaves))
        for leaf in self.leaves:
            await self._cable(leaf)
        await asyncio.gather(self.exit.start(), *(leaf.boot() for leaf in self.leaves))

    async def revive(self, leaf: RealLeaf) -> None:
        """Give a leaf that lost its power the power back: links come up, and it boots."""
        number = self.leaves.index(leaf)
        await leaf.power_on()
        await self._cable(leaf)
        await self.exit.plug(self.exit.ports[number])
        await asyncio.gather(*(machine.plug(machine.legs[number]) for machine in self.machines.values()))
        await leaf.boot()

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
        await self.want(name, vrf)
        await self.confirmed(name)
        await self.machines[name].start()

    async def want(self, name: str, vrf: int) -> None:
        """Ask for a machine to be in the network of a tenant."""
        self.allocations[name] = uuid7()
        machine = self.machines[name]
        request = attach(self.ids[name], self.allocations[name], vrf, *machine.prefixes)
        if isinstance(machine, Firewall):
            request.role = PortRole.PORT_ROLE_FIREWALL
            request.vrf = 0
            request.vnis.extend((machine.vni, INTERNET))
        await self._switches.AttachMachine(request)

    async def free(self, name: str) -> None:
        """Take a machine out of its tenant's network; its system keeps running. Returns when that is confirmed."""
        await self._switches.DetachMachine(
            DetachMachineRequest(machine=self.ids[name], allocation=self.allocations.pop(name))
        )
        await self.confirmed(name)

    async def confirmed(self, name: str) -> None:
        """Wait until both leaves have confirmed what a machine shall have."""
        await confirmed(self._switches, self.eventually, self.ids[name])

    async def confirmed_by(self, name: str) -> list[str]:
        """The leaves that have confirmed it already."""
        found = await self._switches.GetAttachment(GetAttachmentRequest(machine=self.ids[name]))
        return [leaf.switch_id for leaf in found.leaves if leaf.confirmed]

    @cached_property
    def _switches(self) -> Any:
        return self.rack.stub(SwitchServiceStub, "allocation")

    async def answers(self, name: str, target: str) -> str:
        """Who answers when a machine asks at an address, from its own address of the same family."""
        machine = self.machines[name]
        source = next(address for address in machine.addresses if (":" in address) == (":" in target))
        return await who_answers(machine.box, source, target)

    async def until_reached(self, name: str, other: str) -> None:
        """Wait until a machine reaches another one at all its addresses."""
        for address in self.machines[other].addresses:
            await self.until_answered(name, address, other)

    async def until_answered(self, name: str, address: str, other: str) -> None:
        """Wait until `other` answers a machine at an address, nobody if it is empty; show the fabric if it does not."""

        async def so() -> bool:
            return await self.answers(name, address) == other

        try:
            await self.eventually(so, seconds=45, what=f"{name} asks at {address} and gets {other or 'nobody'}")
        except pytest.fail.Exception:
            boxes = [leaf.box for leaf in self.leaves] + [self.exit.box, *(m.box for m in self.machines.values())]
            for box in boxes:
                print(f"== {box.name}\n{await seen_by(box)}")
            raise
