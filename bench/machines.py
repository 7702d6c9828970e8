"""Listing 20,000 machines: in pages, in pages of one filter, and as a stream. Real Postgres, real gRPC over mTLS.

Server and client share one process and its event loop, so the figures hold the client's parsing, too. CPU is that of
this process, without Postgres: on a busy machine it says more than the clock does.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import uvloop
from metal_inventory.service import SPEC, Settings
from metal_kit import identity, logs
from metal_kit.ca import Authority
from metal_kit.client import Peers
from metal_kit.runtime import start
from metal_kit.tls import Identity
from metal_lab.servers import Postgres
from metalplane.inventory.v1 import hardware_pb2, machine_pb2
from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceStub
from report import Answer, arguments, finish, percentile

NICS, DISKS, LABELS = 10, 8, 10


def report(number: int) -> bytes:
    """The stored part of a machine with ten NICs and eight disks, about 2 KB."""
    machine = machine_pb2.Machine(bios=hardware_pb2.Bios(vendor="AMI", version="2.1", date="2026-01-01"))
    hardware = machine.hardware
    hardware.memory_bytes = 256 << 30
    hardware.cpus.add(vendor="AuthenticAMD", model="AMD EPYC 7313P 16-Core Processor", cores=16, threads=32)
    for nic in range(NICS):
        mac = f"02:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}:00:{nic:02x}"
        added = hardware.nics.add(name=f"eth{nic}", mac=mac, pci_address=f"0000:01:00.{nic}", speed_mbps=25000)
        added.neighbours.add(system_name=f"leaf{nic:02d}", chassis_id=mac, port_id=f"Ethernet{4 * nic}")
    for disk in range(DISKS):
        hardware.disks.add(
            name=f"/dev/nvme{disk}n1", serial=f"S{number:08d}{disk}", model="Micron 7450 PRO", size_bytes=960 * 10**9
        )
    return machine.SerializeToString()


async def seed(url: str, count: int) -> None:
    """Machines as a year of operation would leave them, without a year's events."""
    connection = await asyncpg.connect(url, server_settings={"search_path": "inventory"})
    try:
        await connection.execute("INSERT INTO partition (id, body) VALUES ('mini', '')")
        labels = "{" + ", ".join(f'"label-{n}": "value-{n}"' for n in range(LABELS)) + "}"
        ids = [f"{number:08x}-0051-3510-8052-b4c04f4e3132" for number in range(1, count + 1)]
        await connection.execute(
            "INSERT INTO machine (id, partition, rack, cabled, size, labels, generation, disks_clean, report) "
            "SELECT id, 'mini', 'rack-' || n / 40, true, 'c1-medium', $3, 1, true, report "
            "FROM unnest($1::uuid[], $2::bytea[]) WITH ORDINALITY AS t (id, report, n)",
            ids,
            [report(number) for number in range(1, count + 1)],
            labels,
        )
        await connection.execute(
            "INSERT INTO lifecycle (machine, state, sequence, last_event_at, liveliness) "
            "SELECT id, 'WAITING', 4, now(), 'ALIVE' FROM machine"
        )
        await connection.execute(
            "INSERT INTO bmc (machine, address, mac, power, observed_at) "
            "SELECT id, '10.0.0.1:623', '02:00:00:00:00:01', 'ON', now() FROM machine"
        )
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()


def make_directory() -> Path:
    """A short path, as Unix sockets need, that the server's user can enter when the benchmark runs as root."""
    directory = Path(tempfile.mkdtemp(prefix="metalplane-bench-"))
    directory.chmod(0o711)
    return directory


@asynccontextmanager
async def inventory(count: int) -> AsyncIterator[Any]:
    """A running inventory with `count` machines, and a stub of it."""
    directory = make_directory()
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        postgres = Postgres(directory / "postgres", durable=False)
        stack.push_async_callback(postgres.stop)
        await postgres.start()
        authority = Authority.create("bench")
        authority.save(directory)

        def certified(spiffe_id: str, name: str, *dns: str) -> Identity:
            paths = authority.issue(name, spiffe_id, dns=dns).save(directory, name)
            return Identity(directory / "ca.crt", *paths)

        certified(identity.service_id("inventory"), "inventory", "inventory.metalplane")
        running = await start(
            SPEC,
            Settings(
                database_url=postgres.url,
                tls_ca=str(directory / "ca.crt"),
                tls_cert=str(directory / "inventory.crt"),
                tls_key=str(directory / "inventory.key"),
            ),
        )
        stack.push_async_callback(running.stop, 1)
        await seed(postgres.url, count)
        client = certified(identity.service_id("allocation"), "allocation")
        peers = Peers({"inventory": running.address}, client)
        stack.push_async_callback(peers.close)
        yield peers.stub(MachineServiceStub, "inventory")


async def paged(stub: Any, size: int, **filter_: Any) -> tuple[float, list[float], int]:
    """Seconds for all pages, seconds a page, and how many machines came."""
    request = machine_pb2.ListMachinesRequest(page_size=size, filter=machine_pb2.MachineFilter(**filter_))
    pages, count, began = [], 0, time.perf_counter()
    while True:
        asked = time.perf_counter()
        answer = await stub.ListMachines(request)
        pages.append(time.perf_counter() - asked)
        count += len(answer.machines)
        if not answer.next_page_token:
            return time.perf_counter() - began, pages, count
        request.page_token = answer.next_page_token


async def streamed(stub: Any) -> tuple[float, int]:
    """Seconds for the whole export, and how many machines came."""
    count, began = 0, time.perf_counter()
    async for batch in stub.StreamMachines(machine_pb2.StreamMachinesRequest(), timeout=120):
        count += len(batch.machines)
    return time.perf_counter() - began, count


async def measure(*, quick: bool) -> list[Answer]:
    """All questions on one inventory."""
    count, runs = (2_000, 2) if quick else (20_000, 5)
    answers = []
    async with inventory(count) as stub:
        await paged(stub, 500)
        for size, goal in ((500, "<= 4"), (50, "")):
            answers.append(await whole_list(stub, count, size, runs, goal))
        answers.append(await whole_stream(stub, count, runs))
        single = [(await paged(stub, 50, rack=f"rack-{n}"))[0] * 1000 for n in range(1, min(40, count // 40))]
        answers.append(
            Answer(
                f"list one rack of {count} machines", percentile(single, 0.5), "ms", "<= 20",
                percentile(single, 0.5), percentile(single, 0.99), "40 machines, one page",
            )
        )  # fmt: skip
    return answers


async def whole_list(stub: Any, count: int, size: int, runs: int, goal: str) -> Answer:
    """Seconds for all pages of a size, the median of the runs; percentiles are of the pages, in ms."""
    totals, pages, began = [], [], time.process_time()
    for _ in range(runs):
        took, each, got = await paged(stub, size)
        assert got == count, f"{got} of {count} machines"
        totals.append(took)
        pages += [1000 * seconds for seconds in each]
    note = f"median of {runs} runs; p50 and p99 in ms a page; {cpu_note(began, count * runs)}"
    return Answer(
        f"list {count} machines in pages of {size}", percentile(totals, 0.5), "s", goal,
        percentile(pages, 0.5), percentile(pages, 0.99), note,
    )  # fmt: skip


async def whole_stream(stub: Any, count: int, runs: int) -> Answer:
    """Seconds for the export, the median of the runs."""
    totals, began = [], time.process_time()
    for _ in range(runs):
        took, got = await streamed(stub)
        assert got == count, f"{got} of {count} machines"
        totals.append(took)
    middle = percentile(totals, 0.5)
    note = f"batches of 100, {count / middle:,.0f} machines/s, {runs} runs; {cpu_note(began, count * runs)}"
    return Answer(f"stream {count} machines", middle, "s", "<= 4", middle, percentile(totals, 0.99), note)


def cpu_note(began: float, machines: int) -> str:
    """What a machine has cost since `began` on the process's clock."""
    return f"{(time.process_time() - began) / machines * 1e6:.0f} µs of CPU a machine"


def main() -> int:
    """The console's entry."""
    options = arguments(__doc__.splitlines()[0])
    logs.configure("error", json=True)
    # On the loop that services run on.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return finish(runner.run(measure(quick=options.quick)), options)


if __name__ == "__main__":
    sys.exit(main())
