"""The control plane as boot sees it: inventory and allocation, asked over gRPC. Messages to plain values and back.

Every call has a deadline and raises the kit's problems. Nothing is cached here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from metal_kit.client import Peers
from metal_kit.errors import NotFound
from metalplane.allocation.v1 import installation_pb2
from metalplane.allocation.v1.installation_pb2_grpc import InstallationServiceStub
from metalplane.boot.v1 import boot_pb2
from metalplane.inventory.v1 import machine_pb2, partition_pb2
from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceStub
from metalplane.inventory.v1.partition_pb2_grpc import PartitionServiceStub

from metal_boot.situation import Known, Situation, Wanted

if TYPE_CHECKING:
    from metalplane.allocation.v1.installation_pb2_grpc import InstallationServiceAsyncStub
    from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceAsyncStub
    from metalplane.inventory.v1.partition_pb2_grpc import PartitionServiceAsyncStub

ASK_DEADLINE = 2.5
"""Seconds for a question in the answer path of a boot: firmware gives up on a slow HTTP server."""

CALL_DEADLINE = 10.0
REGISTER_DEADLINE = 25.0
"""Seconds: inventory in turn waits for the cabling."""

_WANTED = {
    installation_pb2.INSTALLATION_STATE_UNSPECIFIED: Wanted.NOTHING,
    installation_pb2.INSTALLATION_STATE_PREPARING: Wanted.PREPARING,
    installation_pb2.INSTALLATION_STATE_INSTALL: Wanted.INSTALL,
    installation_pb2.INSTALLATION_STATE_INSTALLED: Wanted.INSTALLED,
    installation_pb2.INSTALLATION_STATE_START: Wanted.START,
    installation_pb2.INSTALLATION_STATE_RUNNING: Wanted.RUNNING,
    installation_pb2.INSTALLATION_STATE_RECLAIMING: Wanted.RECLAIMING,
}


@dataclass(frozen=True, slots=True)
class View:
    """A situation together with what an order needs on top of it: the disks, and what to install."""

    situation: Situation
    disk_serials: tuple[str, ...] = ()
    installation: installation_pb2.Installation | None = None


class Plane:
    """Inventory and allocation, for the machines of one partition."""

    def __init__(self, peers: Peers, partition: str) -> None:
        self.partition = partition
        self._machines: MachineServiceAsyncStub = peers.stub(MachineServiceStub, "inventory")
        self._partitions: PartitionServiceAsyncStub = peers.stub(PartitionServiceStub, "inventory")
        self._installations: InstallationServiceAsyncStub = peers.stub(InstallationServiceStub, "allocation")

    async def view(self, machine_id: str, *, deadline: float = CALL_DEADLINE) -> View:
        """What both services say of one machine; a machine that inventory does not know is a situation, not an error.

        Allocation is asked first: it claims a machine before inventory binds it, so a claim that comes between the two
        answers is seen by the second, or finds a machine that is not clean and is refused.
        """
        request = installation_pb2.GetInstallationRequest(partition=self.partition, machine=machine_id)
        installation = await self._installations.GetInstallation(request, timeout=deadline)
        machine = await self._machine(machine_id, deadline)
        return make_view(machine_id, machine, installation)

    async def find_by_mac(self, mac: str, *, deadline: float = CALL_DEADLINE) -> str:
        """UUID of the one machine that has a NIC with this MAC; empty when there is none, or more than one."""
        request = machine_pb2.ListMachinesRequest(filter=machine_pb2.MachineFilter(mac=mac), page_size=2)
        answer = await self._machines.ListMachines(request, timeout=deadline)
        return answer.machines[0].id if len(answer.machines) == 1 else ""

    async def boot_config(self) -> partition_pb2.BootConfig:
        """What machines of the partition boot."""
        request = partition_pb2.GetPartitionRequest(id=self.partition)
        answer = await self._partitions.GetPartition(request, timeout=CALL_DEADLINE)
        return answer.boot

    async def record_events(self, machine_id: str, events: list[machine_pb2.ReportedEvent]) -> None:
        """Record provisioning events."""
        request = machine_pb2.RecordEventsRequest(partition=self.partition, machine=machine_id, events=events)
        await self._machines.RecordEvents(request, timeout=CALL_DEADLINE)

    async def register(self, request: boot_pb2.RegisterRequest) -> machine_pb2.Machine:
        """Register a machine with what its installer found."""
        passed = machine_pb2.RegisterMachineRequest(
            partition=self.partition,
            machine=request.machine,
            hardware=request.hardware,
            bios=request.bios,
            bmc=request.bmc,
            installer_version=request.installer_version,
            session=request.session,
        )
        return await self._machines.RegisterMachine(passed, timeout=REGISTER_DEADLINE)

    async def record_wipe(self, request: boot_pb2.ReportWipeRequest) -> None:
        """Record what a wipe did to each disk."""
        passed = machine_pb2.RecordWipeRequest(
            partition=self.partition, machine=request.machine, generation=request.generation, results=request.results
        )
        await self._machines.RecordWipe(passed, timeout=CALL_DEADLINE)

    async def set_waiting(
        self,
        machine_id: str,
        *,
        holder: str,
        generation: int,
        waiting: bool,
        ttl: float,
        deadline: float = CALL_DEADLINE,
    ) -> bool:
        """Renew or end the waiting lease; says whether the machine is bound. Raises Aborted for an old generation."""
        request = machine_pb2.SetWaitingRequest(
            partition=self.partition,
            machine=machine_id,
            holder=holder,
            waiting=waiting,
            ttl=Duration(seconds=int(ttl)),
            generation=generation,
        )
        answer = await self._machines.SetWaiting(request, timeout=deadline)
        return answer.HasField("binding")

    async def record_progress(self, request: boot_pb2.ReportProgressRequest) -> None:
        """Record what an installation is doing."""
        passed = installation_pb2.RecordProgressRequest(
            partition=self.partition,
            machine=request.machine,
            allocation=request.allocation,
            step=request.step,
            percent=request.percent,
            message=request.message,
        )
        await self._installations.RecordProgress(passed, timeout=CALL_DEADLINE)

    async def record_result(self, request: boot_pb2.ReportResultRequest) -> None:
        """Record how an installation ended."""
        passed = installation_pb2.RecordResultRequest(
            partition=self.partition,
            machine=request.machine,
            allocation=request.allocation,
            succeeded=request.succeeded,
            step=request.step,
            reason=request.reason,
            message=request.message,
            boot_info=request.boot_info,
            touched_disks=request.touched_disks,
        )
        await self._installations.RecordResult(passed, timeout=CALL_DEADLINE)

    async def _machine(self, machine_id: str, deadline: float) -> machine_pb2.Machine | None:
        try:
            return await self._machines.GetMachine(machine_pb2.GetMachineRequest(id=machine_id), timeout=deadline)
        except NotFound:
            return None


def make_view(
    machine_id: str, machine: machine_pb2.Machine | None, installation: installation_pb2.Installation
) -> View:
    """Put together what inventory and allocation say.

    A state that this version does not know counts as being prepared: held, and nothing may be done.
    """
    wanted = _WANTED.get(installation.state, Wanted.PREPARING)
    if machine is None:
        unknown = Situation(machine_id, wanted=wanted, allocation_id=installation.allocation)
        return View(unknown, (), installation)
    situation = Situation(
        machine_id=machine_id,
        known=Known.BY_UUID,
        generation=machine.generation,
        locked=machine.state == machine_pb2.MACHINE_STATE_LOCKED,
        bound_to=machine.binding.allocation,
        clean=machine.disks_clean,
        wipe_failed=not machine.disks_clean and any(each.error for each in machine.wipe_results),
        allocation_id=installation.allocation,
        wanted=wanted,
    )
    return View(situation, tuple(disk.serial for disk in machine.hardware.disks), installation)
