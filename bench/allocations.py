"""100 concurrent CreateAllocation over 1,000 waiting machines: does each get a machine of its own, and how fast?

Real tenancy, ipam, inventory and allocation over mTLS, a Postgres with fsync on, NATS with file storage; fabric and bmc
answer at once (see `_plane.py`). Several runs, each followed by freeing everything at once. Double bindings are counted
from inventory's rows and its log of changes, and addresses from ipam's rows: not from what allocation believes.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import uvloop
from _plane import IMAGE, PARTITION, SIZE, BenchPlane, plane, ssh_key
from metal_kit import logs
from metalplane.allocation.v1 import allocation_pb2 as pb
from metalplane.allocation.v1.allocation_pb2_grpc import AllocationServiceStub
from metalplane.inventory.v1.events_pb2 import MachineChanged
from report import Answer, arguments, finish, percentile

PATIENCE = 120.0


@dataclass
class Figures:
    """What the runs took, in seconds; `cpu` of services and caller together, a create or a free."""

    creates: list[float] = field(default_factory=list)
    bound: list[float] = field(default_factory=list)
    addressed: list[float] = field(default_factory=list)
    released: list[float] = field(default_factory=list)
    create_cpu: list[float] = field(default_factory=list)
    provision_cpu: list[float] = field(default_factory=list)
    free_cpu: list[float] = field(default_factory=list)
    doubles: int = 0


async def create(bench: BenchPlane, name: str, key: str) -> tuple[pb.Allocation, float]:
    """One allocation, and the seconds until the answer."""
    spec = pb.AllocationSpec(
        name=name, role=pb.ALLOCATION_ROLE_MACHINE, partition=PARTITION, size=SIZE, image=IMAGE, ssh_keys=[key],
        networks=[pb.AllocationNetwork(network=bench.network)],
    )  # fmt: skip
    request = pb.CreateAllocationRequest(project=bench.project, spec=spec)
    began = time.perf_counter()
    made = await bench.peers.stub(AllocationServiceStub, "allocation").CreateAllocation(request, timeout=PATIENCE)
    return made, time.perf_counter() - began


async def free(bench: BenchPlane, id_: str) -> None:
    request = pb.FreeAllocationRequest(id=id_)
    await bench.peers.stub(AllocationServiceStub, "allocation").FreeAllocation(request, timeout=PATIENCE)


async def until(bench: BenchPlane, ids: Sequence[str], *phases: str) -> None:
    """Wait until all of the allocations are in one of the phases."""
    query = "SELECT count(*) >= $3 FROM allocation.allocation WHERE id = ANY ($1::uuid[]) AND phase = ANY ($2)"
    await bench.until(query, list(ids), list(phases), len(ids), seconds=PATIENCE)


async def double_bindings(bench: BenchPlane, made: Sequence[pb.Allocation]) -> int:
    """How many allocations of a run lack a machine or an address that is theirs alone, and how many machines passed
    from one allocation to another without having been let go of."""
    wanted = {each.id: each.status.machine for each in made}
    rows = await bench.rows(
        "SELECT id::text, allocation_id::text FROM inventory.machine WHERE allocation_id IS NOT NULL"
    )
    holders = {row["id"]: row["allocation_id"] for row in rows}
    wrong: int = sum(holders.get(machine) != id_ for id_, machine in wanted.items())
    wrong += len(holders) - len(set(holders.values()))
    wrong += len(wanted) - len(set(wanted.values()))
    addresses = await bench.rows(
        "SELECT count(DISTINCT addr) AS given, count(DISTINCT owner_id) AS owners FROM ipam.ip "
        "WHERE owner_id = ANY ($1)",
        list(wanted),
    )
    wrong += 2 * len(wanted) - int(addresses[0]["given"]) - int(addresses[0]["owners"])
    return wrong + await handovers(bench)


async def handovers(bench: BenchPlane) -> int:
    """How many times a machine was bound to one allocation and, with the next change, to another."""
    rows = await bench.rows("SELECT entity_id, payload FROM inventory.change WHERE entity = 'machine' ORDER BY id")
    last: dict[str, str] = {}
    wrong = 0
    for row in rows:
        holder = MachineChanged.FromString(row["payload"]).machine.binding.allocation
        before = last.get(row["entity_id"], "")
        wrong += int(bool(before and holder and before != holder))
        last[row["entity_id"]] = holder
    return wrong


async def run_once(bench: BenchPlane, figures: Figures, run: int, count: int) -> None:
    """A wave of creates, all at once, and then of frees."""
    key = ssh_key()
    cpu, began = time.process_time(), time.perf_counter()
    answers = await asyncio.gather(*(create(bench, f"bench-{run}-{number}", key) for number in range(count)))
    figures.bound.append(time.perf_counter() - began)
    figures.create_cpu.append((time.process_time() - cpu) / count)
    made = [allocation for allocation, _ in answers]
    ids = [each.id for each in made]
    figures.creates += [seconds for _, seconds in answers]
    await until(bench, ids, "installing")
    figures.addressed.append(time.perf_counter() - began)
    figures.provision_cpu.append((time.process_time() - cpu) / count)
    figures.doubles += await double_bindings(bench, made)
    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(free(bench, id_) for id_ in ids))
    await until(bench, ids, "released")
    figures.released.append(time.perf_counter() - began)
    figures.free_cpu.append((time.process_time() - cpu) / count)
    figures.doubles += await handovers(bench)


async def measure(*, quick: bool) -> list[Answer]:
    """All questions on one plane."""
    count, machines, runs = (20, 100, 2) if quick else (100, 1_000, 5)
    figures = Figures()
    # A freed machine does not wait again by itself here: each run finds at least so many waiting ones.
    async with plane(machines + count * (runs + 1)) as bench:
        await run_once(bench, Figures(), 0, max(5, count // 4))
        for run in range(1, runs + 1):
            await run_once(bench, figures, run, count)
    return answers_of(figures, count=count, machines=machines, runs=runs)


def answers_of(figures: Figures, *, count: int, machines: int, runs: int) -> list[Answer]:
    """The figures as answers; seconds become milliseconds."""
    what = f"{count} at once over {machines:,} waiting machines"
    note = f"{runs} runs; fsync on; all services and the caller in one process"

    def answer(question: str, samples: Sequence[float], unit: str, share: float, text: str, goal: str = "") -> Answer:
        scaled = [each * 1000 if unit == "ms" else each for each in samples]
        middle, high = percentile(scaled, 0.5), percentile(scaled, 0.99)
        return Answer(question, percentile(scaled, share), unit, goal, middle, high, text)

    return [
        Answer(
            f"allocations: double bindings, {what}", figures.doubles, "bindings", "= 0",
            note=f"{runs * count} creates and frees; from inventory's and ipam's rows",
        ),
        answer(f"allocations: create, {what}, p99", figures.creates, "ms", 0.99, note),
        answer("allocations: until all are claimed and bound", figures.bound, "s", 0.5, note),
        answer("allocations: until all have their addresses", figures.addressed, "s", 0.5, note),
        answer("allocations: until all are freed again", figures.released, "s", 0.5, note),
        answer("allocations: CPU a create", figures.create_cpu, "ms", 0.5, f"{note}; without Postgres and NATS"),
        answer("allocations: CPU until addressed", figures.provision_cpu, "ms", 0.5, f"{note}; the create included"),
        answer("allocations: CPU a free", figures.free_cpu, "ms", 0.5, f"{note}; until released"),
    ]  # fmt: skip


def main() -> int:
    """The console's entry."""
    options = arguments("100 concurrent CreateAllocation over 1,000 waiting machines.")
    logs.configure("error", json=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return finish(runner.run(measure(quick=options.quick)), options)


if __name__ == "__main__":
    sys.exit(main())
