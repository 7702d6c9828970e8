"""Many callers at once on one pair of leaves: no deadlock, no lost confirmation, no port with the wrong owner."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from metal_kit.errors import FailedPrecondition
from metal_kit.ids import uuid7
from metalplane.fabric.v1 import switch_pb2
from metalplane.fabric.v1.switch_pb2 import DetachMachineRequest, GetAttachmentRequest

MACHINES = 6
ROUNDS = 5


async def follow(leaf: Any, stopping: asyncio.Event, chance: random.Random) -> None:
    """Apply what arrives, a little late and not always at the first attempt, and see systems all the time."""
    done = 0
    while not stopping.is_set():
        await asyncio.sleep(chance.uniform(0, 0.02))
        state = leaf.states[-1]
        if state.generation != done:
            failed = chance.random() < 0.2
            await leaf.apply(state, error="not yet" if failed else "")
            done = done if failed else state.generation
        attached = [port.name for port in state.ports if port.role == switch_pb2.PORT_ROLE_MACHINE]
        if attached and chance.random() < 0.3:
            await leaf.observe(up=attached[:1])


async def use(fabric: Any, machine: str, vrf: int, eventually: Any, replica: int) -> None:
    """Attach, wait, detach, wait, again and again, with rivals and replays in between."""
    switches = fabric.switches(replica=replica)
    ended: list[str] = []

    async def confirmed() -> bool:
        attachment = await switches.GetAttachment(GetAttachmentRequest(machine=machine))
        return bool(attachment.confirmed)

    async def refused(allocation: str) -> None:
        try:
            await switches.AttachMachine(fabric.attaching(machine, allocation, 999))
        except FailedPrecondition:
            return
        raise AssertionError(f"{allocation} must not get {machine}")

    for _ in range(ROUNDS):
        owner = uuid7()
        await switches.AttachMachine(fabric.attaching(machine, owner, vrf))
        await asyncio.gather(refused(uuid7()), *(refused(old) for old in ended))
        for old in ended:
            await switches.DetachMachine(DetachMachineRequest(machine=machine, allocation=old))
        await eventually(confirmed)
        held = await switches.GetAttachment(GetAttachmentRequest(machine=machine))
        assert (held.allocation, held.vrf) == (owner, vrf)
        detach = DetachMachineRequest(machine=machine, allocation=owner)
        await asyncio.gather(switches.DetachMachine(detach), switches.DetachMachine(detach))
        ended.append(owner)
        await eventually(confirmed)


async def test_a_crowd_on_one_pair_of_leaves(fabric: Any, pair: Any, events: Any, eventually: Any) -> None:
    await fabric.replica()
    machines = [await fabric.machine(f"Ethernet{4 * number}") for number in range(MACHINES)]
    stopping, chance = asyncio.Event(), random.Random(7)
    followers = [asyncio.create_task(follow(leaf, stopping, chance)) for leaf in pair]
    try:
        uses = (
            use(fabric, machine, 20 + number % 3, eventually, number % 2) for number, machine in enumerate(machines)
        )
        await asyncio.gather(*uses)
    finally:
        stopping.set()
        await asyncio.gather(*followers)
    confirmed = "metalplane.fabric.attachment.confirmed"
    await eventually(lambda: all(len(events.of(confirmed, machine)) == 2 * ROUNDS for machine in machines))
    for leaf in pair:
        assert not leaf.ended
        # Every state that was ever sent holds together: numbers rise, each VRF is there once, nobody saw the rivals.
        numbers = [state.generation for state in leaf.states]
        assert numbers == sorted(set(numbers))
        for state in leaf.states:
            assert {vrf.name for vrf in state.vrfs} == {port.vrf for port in state.ports if port.vrf}
            assert {vrf.name for vrf in state.vrfs} <= {"Vrf20", "Vrf21", "Vrf22"}
            assert len({vrf.vlan for vrf in state.vrfs}) == len(state.vrfs)
    vlans = await fabric.rows("SELECT switch_id, count(DISTINCT vlan) AS n FROM vlan GROUP BY 1")
    assert [row["n"] for row in vlans] == [3, 3], "a VNI keeps its VLAN, however often it comes and goes"
