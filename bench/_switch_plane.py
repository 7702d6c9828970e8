"""The plane for bench/switch_config.py: a durable Postgres, NATS, fabric as a process, and leaves at will."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
from metal_kit.client import Peers
from metal_kit.db import Connection
from metal_kit.ids import uuid7
from metal_kit.tls import Identity
from metal_lab.pki import LabPki
from metal_lab.servers import Nats, Postgres
from metalplane.fabric.v1 import switch_pb2
from metalplane.fabric.v1.agent_pb2 import ApplyReport, ConnectRequest, Heartbeat, Hello
from metalplane.fabric.v1.agent_pb2_grpc import SwitchAgentServiceStub

PARTITION = "mini"
TICK = os.sysconf("SC_CLK_TCK")
# Seconds between two signs of life of a leaf, as the contract says.
_HEARTBEAT = 5.0
_END_SECONDS = 30.0
_PORTS = 48
_TRANSACTIONS = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"


@dataclass
class Plane:
    """Fabric as it runs, and its clients."""

    address: str
    pid: int
    pki: LabPki
    stack: AsyncExitStack
    directory: Path
    database_url: str

    def stub(self, stub: Any, service: str) -> Any:
        """A stub of fabric for another service."""
        peers = Peers({"fabric": self.address}, self.pki.service(service, PARTITION))
        self.stack.push_async_callback(peers.close)
        return peers.stub(stub, "fabric")

    def memory(self, field: str = "VmRSS") -> float:
        """MiB that the process of fabric has resident (VmRSS), or had at most (VmHWM)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition(f"{field}:")[2].split()[0]) / 1024

    def cpu(self) -> float:
        """CPU seconds of fabric's process so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(each) for each in fields[11:13]) / TICK

    async def transactions(self) -> int:
        """Transactions that Postgres has ended so far, one for each statement outside of one; this look among them."""
        connection = await asyncpg.connect(self.database_url)
        try:
            # Processes tell once a second how many they had.
            return int(await connection.fetchval(_TRANSACTIONS))
        finally:
            await connection.close()


@contextmanager
def directory() -> Iterator[Path]:
    """A short path, as sockets need, that the servers' user can enter when this runs as root."""
    path = Path(tempfile.mkdtemp(prefix="metalplane-bench-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@asynccontextmanager
async def postgres(where: Path) -> AsyncIterator[Postgres]:
    """A Postgres that keeps what it was told."""
    server = Postgres(where / "postgres", durable=True)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def fabric(where: Path) -> AsyncIterator[Plane]:
    """Fabric with an empty database."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(postgres(where))
        nats = Nats(where / "nats")
        stack.push_async_callback(nats.stop)
        await nats.start()
        pki = LabPki(where)
        mine = pki.service("fabric", PARTITION)
        settings = {
            "log": str(where / "log"),
            "fabric": {
                "database_url": database.url, "nats_url": nats.url, "tls_ca": str(mine.ca), "tls_cert": str(mine.cert),
                "tls_key": str(mine.key), "drain_seconds": 1.0,
            },
        }  # fmt: skip
        (where / "settings.json").write_text(json.dumps(settings))
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(Path(__file__).parent / "_switch_server.py"), str(where / "settings.json"),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        stack.push_async_callback(_end, process)
        assert process.stdout is not None
        address = json.loads(await process.stdout.readline())["fabric"]
        yield Plane(address, process.pid, pki, stack, where, database.url)


async def _end(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(_END_SECONDS):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class FakeLeaf:
    """A leaf that does everything at once: it says hello, reports each state as applied, and stays."""

    def __init__(self, number: int, identity: Identity, address: str) -> None:
        self._name = f"leaf{number:04d}"
        self._number, self._identity, self._address = number, identity, address
        self.acknowledged = asyncio.Event()

    async def run(self) -> None:
        """Be connected until cancelled. Raises AioRpcError when fabric ends the stream."""
        peers = Peers({"fabric": self._address}, self._identity)
        stub: Any = SwitchAgentServiceStub(peers.channel("fabric"))
        call = stub.Connect()
        signs: asyncio.Task[None] | None = None
        try:
            await call.write(ConnectRequest(hello=self._hello()))
            signs = asyncio.create_task(self._signs_of_life(call))
            while (message := await call.read()) is not grpc.aio.EOF:
                if message.HasField("desired_state"):
                    state = message.desired_state
                    report = ApplyReport(id=uuid7(), generation=state.generation, hash=state.hash, applied=True)
                    await call.write(ConnectRequest(apply_report=report))
                elif message.HasField("ack"):
                    self.acknowledged.set()
        finally:
            if signs is not None:
                signs.cancel()
            call.cancel()
            await peers.close()

    def _hello(self) -> Hello:
        hello = Hello(
            switch_id=self._name, partition=PARTITION, rack=f"rack{self._number // 2}",
            os=switch_pb2.SWITCH_OS_SONIC, loopback=f"10.{self._number // 250}.{self._number % 250}.1",
            asn=4_200_000_000 + self._number, pxe_vlan=4000, chassis_id=self._name,
        )  # fmt: skip
        for port in range(_PORTS):
            hello.ports.add(name=f"Ethernet{4 * port}", alias=f"Eth{port + 1}", uplink=port >= _PORTS - 2)
        return hello

    async def _signs_of_life(self, call: Any) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT)
            await call.write(ConnectRequest(heartbeat=Heartbeat()))


async def write_switches(conn: Connection, switches: int, tenants: int) -> list[UUID]:
    """Pairs of leaves of 48 ports, of which the first `tenants` of each pair have a machine of a tenant, as real calls
    would have left them, but without any generation. Gives the machines."""
    await conn.execute(
        "INSERT INTO switch (id, host_key, partition, rack, os, os_version, core_version, management_address, "
        "loopback, asn, pxe_vlan) SELECT 'leaf' || lpad(n::text, 4, '0'), 'leaf' || lpad(n::text, 4, '0'), $2, "
        "'rack' || n / 2, 'sonic', '', '', '', '10.' || n / 250 || '.' || n % 250 || '.1', 4200000000 + n, 4000 "
        "FROM generate_series(0, $1::int - 1) AS n",
        *(switches, PARTITION),
    )
    await conn.execute(
        "INSERT INTO port (switch_id, name, alias, uplink, reported) SELECT id, 'Ethernet' || 4 * p, 'Eth' || p + 1, "
        "p >= $1::int - 2, 'up' FROM switch, generate_series(0, $1::int - 1) AS p",
        _PORTS,
    )
    await conn.execute("INSERT INTO leaf_sync (switch_id) SELECT id FROM switch")
    machines = [(uuid4(), pair, port) for pair in range(switches // 2) for port in range(tenants)]
    columns = [list(each) for each in zip(*machines, strict=True)]
    await conn.execute(
        "INSERT INTO cable (switch_id, port, machine, nic_mac) SELECT 'leaf' || lpad((2 * pair + leaf)::text, 4, '0'), "
        "'Ethernet' || 4 * port, machine, '02:00:00:00:0' || leaf || ':00' "
        "FROM unnest($1::uuid[], $2::int[], $3::int[]) AS m (machine, pair, port), generate_series(0, 1) AS leaf",
        *columns,
    )
    await conn.execute(
        "INSERT INTO attachment (machine, owner, role, vrf, allowed_prefixes, vnis, leaving, announced) "
        "SELECT machine, gen_random_uuid(), 'machine', 100000 + port, "
        "ARRAY['10.' || port || '.0.0/16', '2001:db8:' || port || '::/64'], '{}', false, true "
        "FROM unnest($1::uuid[], $2::int[], $3::int[]) AS m (machine, pair, port)",
        *columns,
    )
    await conn.execute(
        "INSERT INTO attachment_leaf (machine, switch_id, wanted_generation) "
        "SELECT machine, switch_id, 1 FROM cable JOIN attachment USING (machine)"
    )
    await conn.execute("ANALYZE")
    return columns[0]
