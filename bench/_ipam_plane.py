"""What bench/ipam.py runs on: a durable Postgres, ipam in a process of its own, and this process as its client.

In the path of each call: mutual TLS, the kit's interceptor (token, roles, limits set out of reach, validation, metrics,
a log line to a file), the audit log, the service, Postgres over TCP with fsync on. CPU is read from /proc, in ticks of
10 ms, for three: this client, the server process, and Postgres with all of its processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
from _ipam_server import ECHO, OPERATOR, PROJECT
from metal_kit.client import Peers
from metal_lab.pki import LabPki
from metal_lab.servers import Postgres
from metalplane.ipam.v1 import ip_pb2, network_pb2, prefix_pb2
from metalplane.ipam.v1.ip_pb2_grpc import IpServiceStub
from metalplane.ipam.v1.network_pb2_grpc import NetworkServiceStub
from metalplane.ipam.v1.prefix_pb2_grpc import PrefixServiceStub

TICK = os.sysconf("SC_CLK_TCK")
# Out of the way: what is measured is what the service can, not what one caller may.
NO_LIMIT = "rate=1000000,burst=1000000,calls=100000,streams=1000"


@dataclass(frozen=True)
class Cpu:
    """CPU seconds since each one's start."""

    client: float
    server: float
    postgres: float

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(self.client - other.client, self.server - other.server, self.postgres - other.postgres)

    @property
    def total(self) -> float:
        return self.client + self.server + self.postgres

    def a_call(self, count: int) -> str:
        """The shares of one of `count`, for a note."""
        each = [round(share * 1e6 / count) for share in (self.client, self.server, self.postgres)]
        return "CPU µs each: client {}, server {}, Postgres {}".format(*each)


@dataclass
class Load:
    """What a stretch of load came to."""

    operations: int = 0
    seconds: float = 0.0
    cpu: Cpu = field(default_factory=lambda: Cpu(0, 0, 0))
    samples: list[float] = field(default_factory=list)  # milliseconds a call

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds

    @property
    def cpu_each(self) -> float:
        """µs of CPU an operation: server and Postgres; the client's is its own affair."""
        return (self.cpu.server + self.cpu.postgres) * 1e6 / self.operations

    def note(self) -> str:
        """The shares, for people."""
        return self.cpu.a_call(self.operations)


class Doubles:
    """Counts addresses that are given out while somebody has them."""

    def __init__(self) -> None:
        self.held: set[tuple[str, str]] = set()
        self.count = 0

    def took(self, network: str, address: str) -> None:
        key = (network, address)
        self.count += key in self.held
        self.held.add(key)

    def gave(self, network: str, address: str) -> None:
        """To be called before the release is sent: from then on anybody may get it."""
        self.held.discard((network, address))


class BareIps:
    """The two calls of single addresses without the kit's client around them: as little as the echo's caller does."""

    def __init__(self, channel: Any, token: str) -> None:
        more: dict[str, Any] = {"metadata": (("authorization", f"Bearer {token}"),), "timeout": 30.0}
        path = "/metalplane.ipam.v1.IpService/"
        acquire = channel.unary_unary(
            f"{path}AcquireIps", ip_pb2.AcquireIpsRequest.SerializeToString, ip_pb2.AcquireIpsResponse.FromString
        )
        release = channel.unary_unary(f"{path}ReleaseIp", ip_pb2.ReleaseIpRequest.SerializeToString)
        self.AcquireIps = partial(acquire, **more)
        self.ReleaseIp = partial(release, **more)


@dataclass
class Bench:
    """The running service, its clients, and the database beneath it."""

    ips: list[Any]
    bare: list[BareIps]
    networks: Any
    prefixes: Any
    ips_as_operator: Any
    echo: list[Any]
    database: asyncpg.Pool
    server_pids: list[int]
    postgres_pid: int
    directory: Path
    url: str

    def cpu(self) -> Cpu:
        """CPU so far of the three."""
        return Cpu(time.process_time(), sum(_ticks(pid) for pid in self.server_pids), _tree(self.postgres_pid))

    def memory(self) -> int:
        """Resident memory of the server processes, bytes."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.server_pids)
        return pages * os.sysconf("SC_PAGE_SIZE")

    async def external(self, name: str, *cidrs: str, vrf: int) -> str:
        """A network whose prefixes give addresses to everybody."""
        await self.networks.CreateNetwork(
            network_pb2.CreateNetworkRequest(
                network=network_pb2.Network(
                    id=name, type=network_pb2.NETWORK_TYPE_EXTERNAL, prefixes=cidrs, vrf=vrf, project=PROJECT
                )
            )
        )
        return name

    async def verify(self) -> int:
        """Findings of VerifyPrefixes over everything."""
        answer = await self.prefixes.VerifyPrefixes(prefix_pb2.VerifyPrefixesRequest(), timeout=600)
        return len(answer.findings)

    async def load(
        self, workers: int, seconds: float, make: Callable[[int], Callable[[], Awaitable[int]]], *, warm: float = 0.3
    ) -> Load:
        """Run `workers` loops of what `make(number)` gives; each round answers how many operations it was."""
        result = Load()
        measuring = False
        until = time.perf_counter() + warm + seconds

        async def work(number: int) -> None:
            step = make(number)
            while (began := time.perf_counter()) < until:
                done = await step()
                if measuring:
                    result.operations += done
                    result.samples.append((time.perf_counter() - began) * 1000)

        tasks = [asyncio.create_task(work(number)) for number in range(workers)]
        await asyncio.sleep(warm)
        before, began = self.cpu(), time.perf_counter()
        measuring = True
        await asyncio.wait(tasks, timeout=seconds)
        measuring = False
        result.cpu, result.seconds = self.cpu() - before, time.perf_counter() - began
        await asyncio.gather(*tasks)
        return result


@asynccontextmanager
async def ipam(
    *, profile: Path | None = None, without_audit: bool = False, processes: int = 1, channels: int = 2
) -> AsyncIterator[Bench]:
    """The service, running in so many processes on one port; each client's channel is a connection to one of them."""
    directory = _make_directory()
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        postgres = Postgres(directory / "postgres", durable=True)
        stack.push_async_callback(postgres.stop)
        await postgres.start()
        pki = LabPki(directory)
        tls = {name: pki.service(name, "mini") for name in ("ipam", "tenancy")}
        settings = {
            "tls": {name: [str(each.ca), str(each.cert), str(each.key)] for name, each in tls.items()},
            "log": str(directory / "log"),
            "profile": str(profile) if profile else "",
            "without_audit": without_audit,
            "ipam": {"database_url": postgres.url, "limit_users": NO_LIMIT},
        }
        (directory / "settings.json").write_text(json.dumps(settings))
        addresses: dict[str, str] = {}
        pids: list[int] = []
        for _ in range(processes):
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(Path(__file__).parent / "_ipam_server.py"), str(directory / "settings.json"),
                json.dumps(addresses), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            stack.push_async_callback(_end, process)
            assert process.stdout is not None
            addresses = json.loads(await process.stdout.readline())
            pids.append(process.pid)
        client = pki.client("bench")
        pool = [Peers(addresses, client, token=lambda: "bench") for _ in range(channels)]
        operator = Peers(addresses, client, token=lambda: OPERATOR)
        for peers in (*pool, operator):
            stack.push_async_callback(peers.close)
        # The echo's certificate is ipam's, its name too.
        plain = [Peers({"ipam": addresses["echo"]}, client) for _ in range(channels)]
        for peers in plain:
            stack.push_async_callback(peers.close)
        database = await asyncpg.create_pool(postgres.url, min_size=1, max_size=4)
        stack.push_async_callback(database.close)
        pid_line = (directory / "postgres" / "data" / "postmaster.pid").read_text().splitlines()[0]
        yield Bench(
            ips=[peers.stub(IpServiceStub, "ipam") for peers in pool],
            bare=[BareIps(peers.channel("ipam"), "bench") for peers in pool],
            networks=operator.stub(NetworkServiceStub, "ipam"),
            prefixes=operator.stub(PrefixServiceStub, "ipam"),
            ips_as_operator=operator.stub(IpServiceStub, "ipam"),
            echo=[peers.channel("ipam").unary_unary(ECHO) for peers in plain],
            database=database,
            server_pids=pids,
            postgres_pid=int(pid_line),
            directory=directory,
            url=postgres.url,
        )


def _make_directory() -> Path:
    """A short path, as sockets need, that the servers' user can enter when this runs as root."""
    directory = Path(tempfile.mkdtemp(prefix="metalplane-bench-"))
    directory.chmod(0o711)
    return directory


async def _end(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), 20)
    except TimeoutError:
        process.kill()
        await process.wait()


def _ticks(pid: int, *, reaped: bool = False) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(each) for each in fields[11 : 15 if reaped else 13]) / TICK


def _tree(pid: int) -> float:
    """The postmaster, its processes, and those of them that have ended."""
    total = _ticks(pid, reaped=True)
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            try:
                total += _ticks(int(child))
            except FileNotFoundError:  # just ended; it is counted with the postmaster the next time
                continue
    return total


def wish(network: str, count: int = 0, family: int = 0) -> ip_pb2.AcquireIpsRequest:
    """A request for the next free addresses."""
    return ip_pb2.AcquireIpsRequest(
        project=PROJECT,
        wishes=[ip_pb2.IpWish(network=network, count=count, family=family)],  # type: ignore[arg-type]
    )
