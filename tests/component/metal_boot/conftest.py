"""Boot as it runs, an inventory and an allocation that follow their contracts, and simulated machines with the real
installer on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from aiohttp import web
from google.protobuf.empty_pb2 import Empty
from metal_boot.service import SPEC, Settings
from metal_hammer.contact import Rules
from metal_hammer.run import run_installer
from metal_kit import identity
from metal_kit.ca import Authority
from metal_kit.errors import Aborted, NotFound, Problem
from metal_kit.identity import current_caller
from metal_kit.runtime import RunningService, start
from metal_kit.server import Server, Servicer
from metal_kit.tls import Identity
from metal_lab.servers.ports import free_ports
from metal_sim.machine import (
    Disk,
    MachineFacts,
    MachineStopped,
    Neighbour,
    Nic,
    OsImage,
    SimulatedHardware,
    build,
    run_until_stopped,
)
from metal_sim.machine.firmware import Firmware, read_script
from metalplane.allocation.v1 import allocation_pb2, installation_pb2
from metalplane.allocation.v1.installation_pb2_grpc import (
    InstallationServiceServicer,
    add_InstallationServiceServicer_to_server,
)
from metalplane.audit.v1.audit_pb2 import AppendAuditEntriesRequest, AuditEntry
from metalplane.audit.v1.audit_pb2_grpc import AuditServiceServicer, add_AuditServiceServicer_to_server
from metalplane.inventory.v1 import layout_pb2, machine_pb2, partition_pb2
from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceServicer, add_MachineServiceServicer_to_server
from metalplane.inventory.v1.partition_pb2_grpc import PartitionServiceServicer, add_PartitionServiceServicer_to_server

PARTITION = "mini"
TOKEN_KEY = "a token key that replicas share"
MIB = 1024 * 1024
FAST = Rules(
    neighbours_within=0.3,
    retry_first=0.02,
    retry_most=0.1,
    report_patience=5.0,
    event_patience=1.0,
    crash_pause=0.01,
)


@dataclass
class Inventory(MachineServiceServicer, PartitionServiceServicer, AuditServiceServicer):
    """Machines as inventory keeps them, as far as boot and the installer can tell the difference."""

    machines: dict[str, machine_pb2.Machine] = field(default_factory=dict)
    events: dict[str, list[str]] = field(default_factory=dict)
    messages: dict[str, list[str]] = field(default_factory=dict)
    leases: dict[str, str] = field(default_factory=dict)
    renewals: int = 0
    sessions: dict[str, str] = field(default_factory=dict)
    boot: partition_pb2.BootConfig = field(
        default_factory=lambda: partition_pb2.BootConfig(
            kernel_url="http://images.example/vmlinuz",
            initrd_url="http://images.example/initrd.gz",
            cmdline="console=ttyS1,115200n8 quiet",
        )
    )
    audit: list[AuditEntry] = field(default_factory=list)
    problem: Problem | None = None
    stalled: asyncio.Event | None = None

    async def AppendAuditEntries(self, request: AppendAuditEntriesRequest, context: Any) -> Empty:
        await self._answer()
        self.audit += request.entries
        return Empty()

    async def _answer(self) -> None:
        if self.stalled is not None:
            await self.stalled.wait()
        if self.problem is not None:
            raise self.problem

    def machine(self, uuid: str) -> machine_pb2.Machine:
        return self.machines.setdefault(
            uuid, machine_pb2.Machine(id=uuid, partition=PARTITION, state=machine_pb2.MACHINE_STATE_AVAILABLE)
        )

    async def GetPartition(self, request: partition_pb2.GetPartitionRequest, context: Any) -> partition_pb2.Partition:
        await self._answer()
        return partition_pb2.Partition(id=request.id, boot=self.boot)

    async def GetMachine(self, request: machine_pb2.GetMachineRequest, context: Any) -> machine_pb2.Machine:
        await self._answer()
        if request.id not in self.machines:
            raise NotFound("MACHINE_NOT_FOUND", "no such machine")
        machine = self.machines[request.id]
        current_caller().require_partition(machine.partition, what=f"machine {request.id}")
        return machine

    async def ListMachines(self, request: machine_pb2.ListMachinesRequest, context: Any) -> Any:
        await self._answer()
        found = [
            machine
            for machine in self.machines.values()
            if any(nic.mac == request.filter.mac for nic in machine.hardware.nics)
        ]
        return machine_pb2.ListMachinesResponse(machines=found)

    async def RecordEvents(self, request: machine_pb2.RecordEventsRequest, context: Any) -> Any:
        await self._answer()
        self.machine(request.machine)
        for event in request.events:
            name = machine_pb2.ProvisioningEventType.Name(event.type).removeprefix("PROVISIONING_EVENT_TYPE_")
            self.events.setdefault(request.machine, []).append(name)
            self.messages.setdefault(request.machine, []).append(event.message)
        return machine_pb2.RecordEventsResponse()

    async def RegisterMachine(self, request: machine_pb2.RegisterMachineRequest, context: Any) -> machine_pb2.Machine:
        await self._answer()
        machine = self.machine(request.machine)
        machine.hardware.CopyFrom(request.hardware)
        if self.sessions.get(request.machine) != request.session:
            self.sessions[request.machine] = request.session
            machine.generation += 1
            machine.disks_clean = False
            machine.ClearField("wipe_results")
            self.leases.pop(request.machine, None)
        machine.size, machine.rack = "c1-small", "rack-1"
        return machine

    async def RecordWipe(self, request: machine_pb2.RecordWipeRequest, context: Any) -> machine_pb2.Machine:
        await self._answer()
        machine = self.machine(request.machine)
        if machine.generation != request.generation:
            raise Aborted("GENERATION_MISMATCH", "registered again")
        machine.ClearField("wipe_results")
        machine.wipe_results.extend(request.results)
        wiped = {result.serial for result in request.results if result.verified and not result.error}
        machine.disks_clean = all(disk.serial in wiped for disk in machine.hardware.disks) and len(wiped) == len(
            request.results
        )
        return machine

    async def SetWaiting(self, request: machine_pb2.SetWaitingRequest, context: Any) -> machine_pb2.SetWaitingResponse:
        await self._answer()
        machine = self.machine(request.machine)
        if machine.generation != request.generation:
            raise Aborted("GENERATION_MISMATCH", "registered again")
        if request.waiting:
            self.leases[request.machine] = request.holder
            self.renewals += 1
        elif self.leases.get(request.machine) == request.holder:
            del self.leases[request.machine]
        binding = machine.binding if machine.HasField("binding") else None
        return machine_pb2.SetWaitingResponse(waiting=request.machine in self.leases, binding=binding)


@dataclass
class Allocation(InstallationServiceServicer):
    """The installer's half of allocation."""

    installations: dict[str, installation_pb2.Installation] = field(default_factory=dict)
    progress: list[tuple[str, int, str]] = field(default_factory=list)
    results: list[installation_pb2.RecordResultRequest] = field(default_factory=list)
    problem: Problem | None = None

    async def GetInstallation(self, request: installation_pb2.GetInstallationRequest, context: Any) -> Any:
        if self.problem is not None:
            raise self.problem
        return self.installations.get(request.machine) or installation_pb2.Installation(machine=request.machine)

    async def RecordProgress(self, request: installation_pb2.RecordProgressRequest, context: Any) -> Empty:
        self.progress.append((request.step, request.percent, request.message))
        return Empty()

    async def RecordResult(self, request: installation_pb2.RecordResultRequest, context: Any) -> Empty:
        self.results.append(request)
        if request.succeeded:
            installation = self.installations[request.machine]
            installation.state = installation_pb2.INSTALLATION_STATE_INSTALLED
            installation.boot_info.CopyFrom(request.boot_info)
        return Empty()


@dataclass
class World:
    """One partition: boot with its peers, an image server, and machines."""

    inventory: Inventory
    allocation: Allocation
    boot: RunningService
    url: str
    image: OsImage
    image_url: str
    directory: Path
    session: aiohttp.ClientSession
    new_identity: Callable[..., Identity]
    peers: dict[str, str]
    grpc: str

    async def script(self, machine: str, query: str = "") -> str:
        async with self.session.get(f"{self.url}/v1/boot/{machine}{query}") as response:
            assert response.status == 200, await response.text()
            return await response.text()

    def allocate(self, uuid: str, **changes: Any) -> str:
        """Give a machine to an allocation that wants it installed."""
        allocation = str(uuid4())
        machine = self.inventory.machine(uuid)
        machine.binding.allocation = allocation
        spec = installation_pb2.InstallSpec(
            allocation=allocation,
            machine=uuid,
            role=allocation_pb2.ALLOCATION_ROLE_MACHINE,
            hostname="web-1",
            image="debian-13.0.20261101",
            image_url=self.image_url,
            image_sha256=self.image.sha256,
            image_size_bytes=self.image.size_bytes,
            filesystem_layout=LAYOUT,
            asn=4200000001,
            ssh_keys=["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB somebody"],
            userdata=b"#cloud-config\n",
            dns_servers=["192.0.2.53"],
            disk_serials=[disk.serial for disk in machine.hardware.disks],
        )
        for name, value in changes.items():
            if isinstance(value, list):
                spec.ClearField(name)  # type: ignore[arg-type]
                getattr(spec, name).extend(value)
            else:
                setattr(spec, name, value)
        self.allocation.installations[uuid] = installation_pb2.Installation(
            machine=uuid, allocation=allocation, state=installation_pb2.INSTALLATION_STATE_INSTALL, spec=spec
        )
        return allocation

    def want(self, uuid: str, state: Any) -> None:
        self.allocation.installations[uuid].state = state


LAYOUT = layout_pb2.FilesystemLayout(
    id="default",
    disks=[
        layout_pb2.Disk(
            device="/dev/nvme0n1",
            partitions=[
                layout_pb2.DiskPartition(number=1, label="efi", size_mib=16, gpt_type="ef00"),
                layout_pb2.DiskPartition(number=2, label="root", size_mib=0, gpt_type="8300"),
            ],
            wipe_on_reinstall=True,
        )
    ],
    filesystems=[
        layout_pb2.Filesystem(
            path="/boot/efi", device="/dev/nvme0n1p1", format=layout_pb2.FILESYSTEM_FORMAT_VFAT, label="efi"
        ),
        layout_pb2.Filesystem(
            path="/", device="/dev/nvme0n1p2", format=layout_pb2.FILESYSTEM_FORMAT_EXT4, label="root"
        ),
        layout_pb2.Filesystem(path="/tmp", format=layout_pb2.FILESYSTEM_FORMAT_TMPFS),
    ],
)


@dataclass
class Machine:
    """A simulated machine, its power button, and the firmware that starts the real installer on it."""

    world: World
    uuid: str
    hardware: SimulatedHardware
    rules: Rules = FAST
    powered: bool = True
    _task: asyncio.Task[MachineStopped] | None = None

    @property
    def serials(self) -> list[str]:
        return [disk.serial for disk in self.hardware.machine.disks]

    @property
    def record(self) -> machine_pb2.Machine:
        return self.world.inventory.machine(self.uuid)

    @property
    def events(self) -> list[str]:
        return self.world.inventory.events.get(self.uuid, [])

    async def _boot(self) -> MachineStopped:
        self.hardware.reset()
        firmware = Firmware(self.uuid, self.world.url)
        # A boot service that has just started may not know yet what to boot, and says: ask again. No need to wait so
        # long as firmware would.
        found = await firmware.ask()
        while found.again_after:
            await asyncio.sleep(min(found.again_after, 0.05))
            found = await firmware.ask()
        assert found.command_line, found.script
        directory = self.world.directory / self.uuid / "ramdisk"
        return await run_until_stopped(run_installer(self.hardware, found.command_line, directory, rules=self.rules))

    async def run_script(self, script: str) -> MachineStopped:
        """Run the installer of a script that the firmware got earlier."""
        found = read_script(script)
        directory = self.world.directory / self.uuid / "ramdisk"
        return await run_until_stopped(run_installer(self.hardware, found.command_line, directory, rules=self.rules))

    def power_on(self) -> asyncio.Task[MachineStopped]:
        """Boot by PXE and run the installer; the task tells how the machine stopped."""
        self.powered = True
        self._task = asyncio.create_task(self._boot())
        return self._task

    async def power_off(self) -> None:
        """Cut the power: whatever runs ends where it is."""
        self.powered = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


NewWorld = Callable[..., Awaitable[World]]
NewMachine = Callable[..., Machine]


@pytest.fixture
async def new_world(authority: Authority, new_identity: Any, tmp_path: Path) -> AsyncIterator[NewWorld]:
    """`await new_world(nats_url=…)` starts a boot service with its peers; everything is stopped after the test."""
    async with AsyncExitStack() as stack:

        async def peer(name: str, *servicers: Servicer) -> str:
            server = Server(list(servicers))
            mine = new_identity(identity.service_id(name), dns=[f"{name}.metalplane"])
            address = await server.start("127.0.0.1:0", mine)
            stack.push_async_callback(server.stop, 0)
            return address

        async def make(**settings: Any) -> World:
            inventory, allocation = Inventory(), Allocation()  # type: ignore[abstract] # what boot does not call is left out
            machines = Servicer(
                add_MachineServiceServicer_to_server, inventory, "metalplane.inventory.v1.MachineService"
            )
            partitions = Servicer(
                add_PartitionServiceServicer_to_server, inventory, "metalplane.inventory.v1.PartitionService"
            )
            audit = Servicer(add_AuditServiceServicer_to_server, inventory, "metalplane.audit.v1.AuditService")
            installations = Servicer(
                add_InstallationServiceServicer_to_server, allocation, "metalplane.allocation.v1.InstallationService"
            )
            peers = {
                "inventory": await peer("inventory", machines, partitions, audit),
                "allocation": await peer("allocation", installations),
            }
            mine = new_identity(identity.partition_agent_id(PARTITION, "boot"), dns=["boot.metalplane"])
            authority.machine_intermediate("boot mini").save(tmp_path, "machines")
            http, grpc = free_ports(2)
            defaults: dict[str, Any] = {
                "listen": f"127.0.0.1:{grpc}",
                "http_listen": f"127.0.0.1:{http}",
                "partition": PARTITION,
                "machine_ca": str(tmp_path),
                "machine_ca_name": "machines",
                "token_key": TOKEN_KEY,
                "peers": peers,
                "tls_ca": str(mine.ca),
                "tls_cert": str(mine.cert),
                "tls_key": str(mine.key),
                "poll_seconds": 0.1,
                "drain_seconds": 3,
            }
            running = await start(SPEC, Settings(**(defaults | settings)))
            stack.push_async_callback(running.stop)
            image = await asyncio.to_thread(build, tmp_path / "image.tar.gz")
            image_url = await _serve_image(stack, image.path)
            session = await stack.enter_async_context(aiohttp.ClientSession())
            return World(
                inventory, allocation, running, f"http://127.0.0.1:{http}", image, image_url, tmp_path, session,
                new_identity, peers, f"127.0.0.1:{grpc}",
            )  # fmt: skip

        yield make


@pytest.fixture
async def world(new_world: NewWorld) -> World:
    """A partition without a bus: everything has to work by polling."""
    return await new_world()


@pytest.fixture
def new_machine(world: World, tmp_path: Path) -> NewMachine:
    """`new_machine(disks=…)` puts a simulated machine into the world's rack."""
    return machine_maker(world, tmp_path)


def machine_maker(world: World, tmp_path: Path) -> NewMachine:
    """What `new_machine` does, for a world of the test's own."""
    made: list[Machine] = []

    def make(*, disks: tuple[Disk, ...] | None = None, **changes: Any) -> Machine:
        number = len(made) + 1
        uuid = str(uuid4())
        if disks is None:
            disks = (
                Disk("/dev/nvme0n1", f"NVME{number}", "nvme", 64 * MIB),
                Disk("/dev/sda", f"HDD{number}", "hdd", 16 * MIB),
            )
        nics = tuple(Nic(f"eth{port}", f"02:00:00:00:{number:02x}:{port:02x}") for port in range(2))
        leaves = {
            nic.mac: Neighbour(f"02:00:00:aa:00:0{port}", f"Ethernet{number}", "", f"leaf0{port + 1}")
            for port, nic in enumerate(nics)
        }
        machine: Machine
        hardware = SimulatedHardware(
            MachineFacts(uuid, nics, disks),
            tmp_path / uuid,
            powered=lambda: machine.powered,
            wiring=lambda mac: [leaves[mac]],
        )
        machine = Machine(world, uuid, hardware, **changes)
        made.append(machine)
        return machine

    return make


async def _serve_image(stack: AsyncExitStack, path: Path) -> str:
    async def handle(request: web.Request) -> web.FileResponse:
        return web.FileResponse(path)

    application = web.Application()
    application.router.add_get("/image.tar.gz", handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}/image.tar.gz"
