"""A plane for benchmarks: durable Postgres, NATS; real tenancy, ipam, inventory, allocation; fabric and bmc stand in.

The stand-ins answer over real gRPC what the real ones answer for a healthy rack, at once: what leaves and BMCs take is
not asked here. All services and the caller share one process and its event loop.
"""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
from metal_allocation.service import SPEC as ALLOCATION
from metal_inventory.service import SPEC as INVENTORY
from metal_ipam.service import SPEC as IPAM
from metal_kit.client import Peers
from metal_kit.ids import uuid7
from metal_kit.runtime import ServiceSpec, start
from metal_kit.server import Server, Servicer
from metal_lab.pki import LabPki
from metal_lab.servers import Nats, Postgres
from metal_tenancy.bootstrap import operator_token
from metal_tenancy.service import SPEC as TENANCY
from metal_tenancy.service import Settings as TenancySettings
from metalplane.bmc.v1 import bmc_pb2, bmc_pb2_grpc
from metalplane.fabric.v1 import switch_pb2, switch_pb2_grpc
from metalplane.inventory.v1 import hardware_pb2, image_pb2, layout_pb2, machine_pb2, partition_pb2, size_pb2
from metalplane.inventory.v1.image_pb2_grpc import ImageServiceStub
from metalplane.inventory.v1.layout_pb2_grpc import FilesystemLayoutServiceStub
from metalplane.inventory.v1.partition_pb2_grpc import PartitionServiceStub
from metalplane.inventory.v1.size_pb2_grpc import SizeServiceStub
from metalplane.ipam.v1 import network_pb2
from metalplane.ipam.v1.network_pb2_grpc import NetworkServiceStub
from metalplane.tenancy.v1 import project_pb2, tenant_pb2
from metalplane.tenancy.v1.project_pb2_grpc import ProjectServiceStub
from metalplane.tenancy.v1.tenant_pb2_grpc import TenantServiceStub

PARTITION, SIZE, IMAGE, DEVICE = "mini", "c1-medium", "debian-13.0.20260101", "/dev/nvme0n1"
RACK_OF = 40
GIB = 1 << 30
LOOK_SECONDS = 0.05


class Fabric(switch_pb2_grpc.SwitchServiceServicer):
    """Two leaves that confirm at once."""

    async def DetachMachine(self, request: Any, context: Any) -> switch_pb2.Attachment:
        attachment = switch_pb2.Attachment(machine=request.machine, confirmed=True)
        for number in (1, 2):
            attachment.leaves.add(switch_id=f"leaf{number}", port="Ethernet0", confirmed=True, connected=True)
        return attachment


class Bmc(bmc_pb2_grpc.BmcServiceServicer):
    """BMCs that have done what they are told by the time they are asked."""

    async def CreateCommand(self, request: Any, context: Any) -> bmc_pb2.Command:
        return bmc_pb2.Command(
            id=uuid7(), machine=request.machine, action=request.action, allocation=request.allocation,
            state=bmc_pb2.COMMAND_STATE_SUCCEEDED,
        )  # fmt: skip


@dataclass(frozen=True)
class BenchPlane:
    """The running plane, an operator's peers, and what to ask for."""

    peers: Peers
    database: asyncpg.Pool
    project: str
    network: str

    async def rows(self, query: str, *values: Any) -> list[asyncpg.Record]:
        """Rows straight from the database; name the schema."""
        return list(await self.database.fetch(query, *values))

    async def until(self, query: str, *values: Any, seconds: float = 120.0) -> None:
        """Wait until the query's first value is true. Looks now and then: a closer look would measure itself."""
        async with asyncio.timeout(seconds):
            while not (await self.rows(query, *values))[0][0]:  # noqa: ASYNC110 - rows are looked at, not listened to
                await asyncio.sleep(LOOK_SECONDS)


@asynccontextmanager
async def plane(machines: int) -> AsyncIterator[BenchPlane]:
    """A plane with so many waiting machines, all of which allocation has heard of."""
    directory = _make_directory()
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        postgres, nats = Postgres(directory / "postgres", durable=True), Nats(directory / "nats")
        for server in (postgres, nats):
            stack.push_async_callback(server.stop)
            await server.start()
        pki = LabPki(directory)
        addresses = {"fabric": await _fabric(stack, pki), "bmc": await _bmc(stack, pki)}
        own: dict[str, dict[str, Any]] = {"tenancy": {"token_key": str(pki.token_key)}}
        for spec in (TENANCY, IPAM, INVENTORY):
            values = _values(pki, postgres, nats, addresses, spec) | own.get(spec.name, {})
            addresses[spec.name] = await _start(stack, spec, values)
        tenancy = TenancySettings(**_values(pki, postgres, nats, addresses, TENANCY), **own["tenancy"])
        token = await operator_token(tenancy, user="bench", lifetime=timedelta(hours=2), description="bench")
        # Before allocation starts: its first comparison with inventory finds them all.
        await _describe(Peers(addresses, pki.client("bench"), token=lambda: token), stack)
        await _add_machines(postgres.url, machines)
        addresses["allocation"] = await _start(
            stack, ALLOCATION, _values(pki, postgres, nats, addresses, ALLOCATION) | {"resync_seconds": 600.0}
        )
        peers = Peers(addresses, pki.client("bench"), token=lambda: token)
        stack.push_async_callback(peers.close)
        project, network = await _tenant(peers)
        database = await asyncpg.create_pool(postgres.url, min_size=1, max_size=1)
        stack.push_async_callback(database.close)
        made = BenchPlane(peers, database, project, network)
        await made.until("SELECT count(*) >= $1 FROM allocation.candidate", machines)
        await made.rows("ANALYZE")
        yield made


def _make_directory() -> Path:
    """A short path, as sockets need, that the servers' user can enter when this runs as root."""
    directory = Path(tempfile.mkdtemp(prefix="metalplane-bench-"))
    directory.chmod(0o711)
    return directory


def _values(pki: LabPki, postgres: Postgres, nats: Nats, peers: dict[str, str], spec: ServiceSpec) -> dict[str, Any]:
    mine = pki.service(spec.name, PARTITION)
    return {
        "database_url": postgres.url, "nats_url": nats.url, "tls_ca": str(mine.ca), "tls_cert": str(mine.cert),
        "tls_key": str(mine.key), "peers": dict(peers), "drain_seconds": 2.0,
    }  # fmt: skip


async def _start(stack: AsyncExitStack, spec: ServiceSpec, values: dict[str, Any]) -> str:
    running = await start(spec, spec.settings(**values))
    stack.push_async_callback(running.stop, 1)
    return running.address


async def _fabric(stack: AsyncExitStack, pki: LabPki) -> str:
    servicer = Fabric()  # type: ignore[abstract]  # the rest is never called
    add = switch_pb2_grpc.add_SwitchServiceServicer_to_server
    return await _stand_in(stack, pki, "fabric", add, servicer, "metalplane.fabric.v1.SwitchService")


async def _bmc(stack: AsyncExitStack, pki: LabPki) -> str:
    servicer = Bmc()  # type: ignore[abstract]  # the rest is never called
    add = bmc_pb2_grpc.add_BmcServiceServicer_to_server
    return await _stand_in(stack, pki, "bmc", add, servicer, "metalplane.bmc.v1.BmcService")


async def _stand_in(stack: AsyncExitStack, pki: LabPki, name: str, add: Any, servicer: Any, full_name: str) -> str:
    server = Server([Servicer(add, servicer, full_name)])
    address = await server.start("127.0.0.1:0", pki.service(name, PARTITION))
    stack.push_async_callback(server.stop, 0)
    return address


async def _describe(peers: Peers, stack: AsyncExitStack) -> None:
    """Partition, size, image, layout, as an operator would."""
    stack.push_async_callback(peers.close)
    partition = partition_pb2.Partition(id=PARTITION, dns_servers=["192.0.2.53"])
    await peers.stub(PartitionServiceStub, "inventory").CreatePartition(
        partition_pb2.CreatePartitionRequest(partition=partition)
    )
    size = size_pb2.Size(id=SIZE)
    size.constraints.add(type=size_pb2.CONSTRAINT_TYPE_CORES, min=16, max=16)
    size.constraints.add(type=size_pb2.CONSTRAINT_TYPE_MEMORY, min=GIB, max=1024 * GIB)
    size.constraints.add(type=size_pb2.CONSTRAINT_TYPE_STORAGE, min=0, max=10**15)
    await peers.stub(SizeServiceStub, "inventory").CreateSize(size_pb2.CreateSizeRequest(size=size))
    image = image_pb2.Image(
        id=IMAGE, url="http://images.example/debian.tar.gz", sha256="ab" * 32,
        features=[image_pb2.IMAGE_FEATURE_MACHINE], classification=image_pb2.IMAGE_CLASSIFICATION_SUPPORTED,
    )  # fmt: skip
    await peers.stub(ImageServiceStub, "inventory").CreateImage(image_pb2.CreateImageRequest(image=image))
    layout = layout_pb2.FilesystemLayout(id="plain", size_ids=[SIZE], image_constraints={"debian": "*"})
    layout.disks.add(device=DEVICE).partitions.add(number=1, label="root", size_mib=10_000, gpt_type="8300")
    layout.filesystems.add(path="/", device=f"{DEVICE}p1", format=layout_pb2.FILESYSTEM_FORMAT_EXT4, label="root")
    await peers.stub(FilesystemLayoutServiceStub, "inventory").CreateFilesystemLayout(
        layout_pb2.CreateFilesystemLayoutRequest(filesystem_layout=layout)
    )


async def _tenant(peers: Peers) -> tuple[str, str]:
    """A project without a quota, and its network."""
    tenant = await peers.stub(TenantServiceStub, "tenancy").CreateTenant(
        tenant_pb2.CreateTenantRequest(tenant=tenant_pb2.Tenant(name="bench"))
    )
    project = await peers.stub(ProjectServiceStub, "tenancy").CreateProject(
        project_pb2.CreateProjectRequest(project=project_pb2.Project(tenant=tenant.id, name="bench"))
    )
    networks = peers.stub(NetworkServiceStub, "ipam")
    lengths = network_pb2.PrefixLengths(ipv4=20)
    await networks.CreateNetwork(
        network_pb2.CreateNetworkRequest(
            network=network_pb2.Network(
                id="tenant-super", type=network_pb2.NETWORK_TYPE_SUPER, partition=PARTITION,
                prefixes=["10.128.0.0/14"], default_child_prefix_length=lengths,
            )
        )
    )  # fmt: skip
    child = await networks.CreateNetwork(
        network_pb2.CreateNetworkRequest(
            network=network_pb2.Network(type=network_pb2.NETWORK_TYPE_CHILD, project=project.id, parent="tenant-super")
        )
    )
    return project.id, child.id


async def _add_machines(url: str, count: int) -> None:
    """Waiting machines, straight into inventory's tables, with a lease that outlasts the benchmark."""
    connection = await asyncpg.connect(url, server_settings={"search_path": "inventory"})
    try:
        ids = [f"{number:08x}-0051-3510-8052-b4c04f4e3132" for number in range(1, count + 1)]
        await connection.execute(
            "INSERT INTO machine (id, partition, rack, cabled, size, generation, disks_clean, waiting, report) "
            "SELECT id, $3, 'rack-' || n / $4::int, true, $5, 1, true, true, report "
            "FROM unnest($1::uuid[], $2::bytea[]) WITH ORDINALITY AS t (id, report, n)",
            ids, [_report(number) for number in range(1, count + 1)], PARTITION, RACK_OF, SIZE,
        )  # fmt: skip
        await connection.execute(
            "INSERT INTO lifecycle (machine, state, sequence, last_event_at, liveliness) "
            "SELECT id, 'WAITING', 4, now() + interval '2 hours', 'ALIVE' FROM machine"
        )
        await connection.execute(
            "INSERT INTO waiting_lease (machine, holder, generation, expires_at) "
            "SELECT id, gen_random_uuid(), 1, now() + interval '2 hours' FROM machine"
        )
    finally:
        await connection.close()


def _report(number: int) -> bytes:
    """Hardware of two NICs and two disks, cabled to two leaves."""
    machine = machine_pb2.Machine(bios=hardware_pb2.Bios(vendor="AMI", version="2.1", date="2026-01-01"))
    machine.hardware.memory_bytes = 64 * GIB
    machine.hardware.cpus.add(vendor="AuthenticAMD", model="AMD EPYC 7313P 16-Core Processor", cores=16, threads=32)
    for nic in range(2):
        mac = f"02:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}:00:{nic:02x}"
        machine.hardware.nics.add(name=f"eth{nic}", mac=mac, speed_mbps=25000)
        machine.links.add(nic_mac=mac, switch_id=f"leaf{nic + 1}", port=f"Ethernet{4 * (number % 32)}")
    for disk in range(2):
        machine.hardware.disks.add(
            name=f"/dev/nvme{disk}n1", serial=f"S{number:08d}{disk}", model="Micron 7450 PRO", size_bytes=960 * 10**9
        )
    return machine.SerializeToString()


def ssh_key() -> str:
    """A key that is as long as a real one, and nobody's."""
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + os.urandom(32)
    return f"ssh-ed25519 {base64.b64encode(blob).decode()} bench"
