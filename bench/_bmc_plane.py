"""The plane for bench/bmc.py: durable Postgres, NATS, metal_bmc as a process, a farm as another, and an inventory that
takes in every report at once."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
from _bmc_farm import PASSWORD
from _switch_plane import directory
from metal_bmc.credentials import KeyRing
from metal_kit.client import Peers
from metal_kit.server import Server, Servicer
from metal_lab.pki import LabPki
from metal_lab.servers import Nats, Postgres
from metalplane.bmc.v1.bmc_pb2_grpc import BmcServiceStub
from metalplane.inventory.v1 import machine_pb2, machine_pb2_grpc

PARTITION = "mini"
USER = "metal"
_KEYS = "k1:" + base64.b64encode(bytes(range(32))).decode()
_TICK = os.sysconf("SC_CLK_TCK")
_END_SECONDS = 60.0
_TRANSACTIONS = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"


class Inventory(machine_pb2_grpc.MachineServiceServicer):
    """Takes in all reports and events."""

    async def ReportBmcs(self, request: Any, context: Any) -> machine_pb2.ReportBmcsResponse:
        return machine_pb2.ReportBmcsResponse()

    async def RecordEvents(self, request: Any, context: Any) -> machine_pb2.RecordEventsResponse:
        accepted = machine_pb2.EventOutcome.EVENT_OUTCOME_ACCEPTED
        return machine_pb2.RecordEventsResponse(outcomes=[accepted] * len(request.events))


class SimulatedBmc(NamedTuple):
    """A BMC of the farm, as it introduces itself."""

    machine: str
    host: str
    port: int


@dataclass
class Farm:
    """The farm's process."""

    bmcs: Sequence[SimulatedBmc]
    process: asyncio.subprocess.Process

    async def ask(self, **request: Any) -> dict[str, Any]:
        """One request of `_bmc_farm.py`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        answer: dict[str, Any] = json.loads(await self.process.stdout.readline())
        return answer


@asynccontextmanager
async def farm(count: int) -> AsyncIterator[Farm]:
    """Simulated BMCs in another process; checks at the end that no session was left open."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).with_name("_bmc_farm.py")), str(count),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 26,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        bmcs = [SimulatedBmc(*each) for each in json.loads(await process.stdout.readline())]
        yield Farm(bmcs, process)
        process.stdin.close()
        left = json.loads(await process.stdout.readline())["active"]
        if left:
            raise RuntimeError(f"{left} sessions were left open")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@dataclass
class Plane:
    """metal_bmc as it runs."""

    pid: int
    stub: Any
    database: asyncpg.Connection
    log: Path

    def memory(self) -> float:
        """MiB that the service and the processes that it has started have resident."""
        return sum(int(_status(pid, "VmRSS")) for pid in self._processes()) / 1024

    def cpu(self) -> float:
        """CPU seconds of the service so far, with the processes that it has started, also those that ended."""
        ticks = 0
        for pid in self._processes():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(each) for each in fields[11 : 15 if pid == self.pid else 13])
        return ticks / _TICK

    async def transactions(self) -> int:
        """Transactions that Postgres has ended so far, one for each statement outside of one; this look among them."""
        return int(await self.database.fetchval(_TRANSACTIONS))

    def _processes(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *(int(each) for each in children)]


def _status(pid: int, field: str) -> str:
    return Path(f"/proc/{pid}/status").read_text().partition(f"{field}:")[2].split()[0]


@asynccontextmanager
async def plane(bmcs: Sequence[SimulatedBmc], **settings: Any) -> AsyncIterator[Plane]:
    """The service with these BMCs registered and known, the first polls spread over one interval."""
    async with AsyncExitStack() as stack:
        where = stack.enter_context(directory())
        postgres, nats = Postgres(where / "postgres", durable=True), Nats(where / "nats")
        for server in (postgres, nats):
            stack.push_async_callback(server.stop)
            await server.start()
        pki = LabPki(where)
        inventory = Server([_inventory()])
        peers = {"inventory": await inventory.start("127.0.0.1:0", pki.service("inventory", PARTITION))}
        stack.push_async_callback(inventory.stop, 0)
        mine = pki.service("bmc", PARTITION)
        values = {
            "database_url": postgres.url, "nats_url": nats.url, "tls_ca": str(mine.ca), "tls_cert": str(mine.cert),
            "tls_key": str(mine.key), "peers": peers, "partition": PARTITION, "credential_keys": _KEYS,
            "drain_seconds": 1.0, **settings,
        }  # fmt: skip
        # Migrates, so that there is something to register in.
        async with _service(where, values):
            database = await asyncpg.connect(postgres.url, server_settings={"search_path": "bmc"})
            stack.push_async_callback(database.close)
        await _register(database, bmcs, settings.get("poll_seconds", 60.0))
        async with _service(where, values) as (pid, address):
            client = Peers({"bmc": address}, pki.service("allocation", PARTITION))
            stack.push_async_callback(client.close)
            yield Plane(pid, client.stub(BmcServiceStub, "bmc"), database, where / "log")


def _inventory() -> Servicer:
    servicer = Inventory()  # type: ignore[abstract]  # the rest is never called
    add = machine_pb2_grpc.add_MachineServiceServicer_to_server
    return Servicer(add, servicer, "metalplane.inventory.v1.MachineService")


@asynccontextmanager
async def _service(where: Path, values: dict[str, Any]) -> AsyncIterator[tuple[int, str]]:
    (where / "settings.json").write_text(json.dumps({"log": str(where / "log"), "bmc": values}))
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).with_name("_bmc_server.py")), str(where / "settings.json"),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.pid, json.loads(await process.stdout.readline())["bmc"]
        process.stdin.close()
        async with asyncio.timeout(_END_SECONDS):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _register(database: asyncpg.Connection, bmcs: Sequence[SimulatedBmc], interval: float) -> None:
    """As calls and a first round of inspections would have left them; the FRU comes every six hours."""
    ring = KeyRing.parse(_KEYS)
    await database.execute(
        """INSERT INTO endpoint (machine, partition, host, port, login, sealed, reported_on, observed_at, firmware,
        inspected_at, poll_at, report_at, version)
        SELECT machine, $1, host, $2, $3, sealed, true, now(), '1.20', now(),
        now() + $4 * number / $5 * interval '1 second', now() + random() * interval '300 seconds',
        nextval('endpoint_version')
        FROM unnest($6::uuid[], $7::text[], $8::bytea[]) WITH ORDINALITY AS t (machine, host, sealed, number)""",
        PARTITION, bmcs[0].port, USER, float(interval), float(len(bmcs)),
        [each.machine for each in bmcs], [each.host for each in bmcs],
        [ring.seal(each.machine, PASSWORD) for each in bmcs],
    )  # fmt: skip
    await database.execute("ANALYZE")
