"""Fabric's half of bench/switch_config.py: computing states, connected leaves, and wishes on their way to leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from _switch_core import FEW, took
from _switch_leaf import FIRST_VNI, PARTITION, Leaf, compiled, leaf
from _switch_plane import FakeLeaf, Plane, fabric, postgres, write_switches
from metal_fabric.filters import PortRole as Role
from metal_fabric.filters import wish as wish_of
from metal_fabric.machines import Machines
from metal_fabric.planner import Planned, Planner
from metal_fabric.service import SPEC
from metal_fabric.store import SwitchStore
from metal_kit.db import Connection, Database
from metal_kit.ids import uuid7
from metal_kit.migrations import migrate
from metalplane.fabric.v1.cabling_pb2 import ConnectMachineRequest
from metalplane.fabric.v1.cabling_pb2_grpc import CablingServiceStub
from metalplane.fabric.v1.switch_pb2 import (
    AttachMachineRequest,
    DetachMachineRequest,
    GetAttachmentRequest,
    PortRole,
)
from metalplane.fabric.v1.switch_pb2_grpc import SwitchServiceStub
from report import Answer

LOOK_SECONDS = 0.02
_AT_ONCE = 50
# As when a machine is attached, the two leaves of a rack share a transaction.
_LEAVES_OF_A_RACK = 2
_WORKERS = 4


class Counting(Planner):
    """A planner that counts which switches it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.computed: list[str] = []

    async def plan_all(self, conn: Connection, switch_ids: Collection[str], *, beyond: int = 0) -> dict[str, Planned]:
        """As the planner's own."""
        self.computed.extend(switch_ids)
        return await super().plan_all(conn, switch_ids, beyond=beyond)


async def compute(where: Path, quick: bool) -> list[Answer]:
    """Every state of a partition from scratch, and what one change computes of it."""
    switches, tenants, rounds = (40, 40, 1) if quick else (400, 40, 3)
    async with postgres(where) as server:
        await migrate(server.url, SPEC.name, SPEC.package)
        database = await Database.open(server.url, SPEC.name)
        try:
            async with database.transaction(purpose="fill") as conn:
                machines = await write_switches(conn, switches, tenants)
            planner = Counting()
            whole = [await _from_scratch(database, planner, switches) for _ in range(rounds)]
            return [
                took(f"{switches} switches x 48 ports from scratch", whole, "< 2",
                     f"{tenants} tenants on each; read from Postgres, computed, written as generations, rack by rack"),
                *await _one_change(database, planner, machines, 5 if quick else 50),
            ]  # fmt: skip
        finally:
            await database.close()


async def _from_scratch(database: Database, planner: Counting, switches: int) -> float:
    async with database.transaction(purpose="forget") as conn:
        await conn.execute("DELETE FROM switch_generation")
        await conn.execute("DELETE FROM vlan")
        await conn.execute("UPDATE switch SET desired_generation = 0")
        ids = [str(row["id"]) for row in await conn.fetch("SELECT id FROM switch ORDER BY id")]
    store = SwitchStore()

    async def share(mine: Sequence[str]) -> None:
        for first in range(0, len(mine), _LEAVES_OF_A_RACK):
            rack = mine[first : first + _LEAVES_OF_A_RACK]
            async with database.transaction(purpose="compute") as conn:
                await store.lock(conn, rack)
                await planner.plan_all(conn, rack)

    part = len(ids) // _WORKERS
    began = time.perf_counter()
    await asyncio.gather(*(share(ids[start : start + part]) for start in range(0, len(ids), part)))
    seconds = time.perf_counter() - began
    made = await database.pool.fetchval("SELECT count(*) FROM switch_generation")
    if made != switches:
        raise RuntimeError(f"{made} generations were made, not {switches}")
    return seconds


async def _one_change(database: Database, planner: Counting, machines: Sequence[UUID], count: int) -> list[Answer]:
    use = Machines(database, planner)
    samples: list[float] = []
    computed: set[int] = set()
    made: set[int] = set()
    newest = "SELECT sum(desired_generation)::int FROM switch"
    for number, machine in enumerate(machines[:: max(1, len(machines) // count)][:count]):
        async with database.connection() as conn:
            owner = await conn.fetchval("SELECT owner FROM attachment WHERE machine = $1", machine)
        before, planner.computed = await database.pool.fetchval(newest), []
        wanted = wish_of(Role.MACHINE, 200_000 + number, ["10.77.0.0/16"], [])
        began = time.perf_counter()
        await use.attach(str(machine), str(owner), wanted)
        samples.append(time.perf_counter() - began)
        computed.add(len(planner.computed))
        made.add(await database.pool.fetchval(newest) - before)
    return [
        Answer("switches that one change computes", max(computed), "switches", "= 2", note=f"{len(samples)} changes"),
        Answer("generations that one change makes", max(made), "generations", "= 2"),
        took("one change: computed and written", samples),
    ]


async def connected(where: Path, quick: bool) -> list[Answer]:
    """Leaves that are connected to one process of fabric, each on a connection of its own."""
    count, still = (50, 2.0) if quick else (1000, 20.0)
    async with fabric(where) as plane, asyncio.TaskGroup() as group:
        alone = plane.memory()
        leaves = [FakeLeaf(n, plane.pki.leaf(PARTITION, f"leaf{n:04d}"), plane.address) for n in range(count)]
        began = time.perf_counter()
        tasks = []
        for start in range(0, count, _AT_ONCE):
            some = leaves[start : start + _AT_ONCE]
            tasks += [group.create_task(each.run()) for each in some]
            async with asyncio.timeout(120):
                await asyncio.gather(*(each.acknowledged.wait() for each in some))
        seconds = time.perf_counter() - began
        cpu, ended, then = plane.cpu(), await plane.transactions(), time.perf_counter()
        await asyncio.sleep(still)
        lasted = time.perf_counter() - then
        share, queries = (plane.cpu() - cpu) / lasted, (await plane.transactions() - ended) / lasted
        memory, most = plane.memory(), plane.memory("VmHWM")
        if any(task.done() for task in tasks):
            raise RuntimeError("a leaf was cut off")
        for task in tasks:
            task.cancel()
    what = f"{count:,} connected leaves"
    note = f"{alone:.0f} MiB without leaves, {most:.0f} MiB at most"
    return [
        Answer(f"{what}: memory of fabric", memory, "MiB", "< 300", note=note),
        Answer(f"{what}: CPU of fabric while nothing happens", share, "of a core", note="signs of life every 5 s"),
        Answer(f"{what}: transactions of Postgres while nothing happens", queries, "1/s"),
        Answer(f"{what}: from the first hello to the last acknowledgement", seconds, "s", note=f"{_AT_ONCE} at once"),
    ]


async def wishes(where: Path, quick: bool) -> list[Answer]:
    """Tenants that come one after the other on two leaves with real FRR, until both have confirmed each."""
    count = 3 if quick else FEW
    async with AsyncExitStack() as stack:
        plane = await stack.enter_async_context(fabric(where))
        await compiled(where)
        leaves = [await stack.enter_async_context(leaf(where, number, count + 1)) for number in (1, 2)]
        for each in leaves:
            identity = plane.pki.leaf(PARTITION, each.spec.name)
            log = await stack.enter_async_context(each.agent(identity, plane.address))
            await log.event("plane.connected")
        machines = await _cabled(plane, leaves, count + 1)
        switches = plane.stub(SwitchServiceStub, "allocation")
        there, back = await _in_and_out(switches, machines)
    what = "wish in fabric until both leaves have applied and echoed it"
    note = f"tenants 1 to {count} on each leaf"
    return [
        took(f"{what}: a tenant comes", there, "< 1", note),
        took(f"{what}: the last five that came", there[-5:], "", "the most tenants beside"),
        took(f"{what}: a tenant goes", back, "< 1", note),
    ]


async def _cabled(plane: Plane, leaves: Sequence[Leaf], count: int) -> list[str]:
    """Machines on the ports of both leaves."""
    cabling: Any = plane.stub(CablingServiceStub, "inventory")
    machines = [str(uuid4()) for _ in range(count)]
    for number, machine in enumerate(machines):
        request = ConnectMachineRequest(machine=machine, partition=PARTITION)
        for each in leaves:
            mac = f"02:00:00:00:{number:02x}:0{leaves.index(each)}"
            request.neighbours.add(nic_mac=mac, system_name=each.spec.name, port_id=each.spec.ports[number])
        await cabling.ConnectMachine(request)
    return machines


async def _in_and_out(switches: Any, machines: Sequence[str]) -> tuple[list[float], list[float]]:
    there: list[float] = []
    back: list[float] = []
    allocations = [uuid7() for _ in machines]
    for number, machine in enumerate(machines):
        request = AttachMachineRequest(
            machine=machine, allocation=allocations[number], role=PortRole.PORT_ROLE_MACHINE, vrf=FIRST_VNI + number,
            allowed_prefixes=[f"10.{number}.0.0/16", f"2001:db8:{number:x}::/64"],
        )  # fmt: skip
        there.append(await _confirmed(switches, machine, switches.AttachMachine(request)))
    for number, machine in enumerate(machines):
        gone = DetachMachineRequest(machine=machine, allocation=allocations[number])
        back.append(await _confirmed(switches, machine, switches.DetachMachine(gone)))
    # The first one has also waited for both leaves' first states.
    return there[1:], back[1:]


async def _confirmed(switches: Any, machine: str, call: Any) -> float:
    began = time.perf_counter()
    found = await call
    async with asyncio.timeout(60):
        while not found.confirmed:
            await asyncio.sleep(LOOK_SECONDS)
            found = await switches.GetAttachment(GetAttachmentRequest(machine=machine))
    return time.perf_counter() - began
