"""MachineService: what the agents of a partition report, boot's about installers and bmc's about BMCs."""

from __future__ import annotations

from collections.abc import Sequence

from metal_kit.db import Connection
from metal_kit.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Problem, Violation
from metal_kit.ids import parse_uuid
from metal_kit.logs import get_logger
from metal_kit.timestamps import parse_timestamp
from metalplane.fabric.v1.cabling_pb2 import ConnectMachineRequest, ObservedNeighbour
from metalplane.inventory.v1 import machine_pb2 as pb
from metalplane.inventory.v1.hardware_pb2 import BmcInfo, Hardware

from metal_inventory import contract, sizes, snapshot
from metal_inventory.api.tools import Tools
from metal_inventory.store.catalog import SIZES
from metal_inventory.store.leases import Claim
from metal_inventory.store.machines import require_partition
from metal_inventory.store.registration import Cabling, Registration, require_generation

log = get_logger(__name__)

# Answers of fabric that say something about the cables; all others say something about fabric.
_CABLING_REFUSALS = (FailedPrecondition, InvalidArgument, NotFound, AlreadyExists)


class Agents:
    """Registration, wipes, waiting, BMC reports."""

    tools: Tools

    async def RegisterMachine(self, request: pb.RegisterMachineRequest, context: object) -> pb.Machine:
        _check_hardware(request.hardware)
        # A machine of another partition is refused before fabric records its cables.
        async with self.tools.db.connection() as conn:
            row = await self.tools.machines.get(conn, request.machine)
        if row is not None and row["partition"] is not None:
            require_partition(row, request.partition)
        cabling = await self._connect(request)
        async with self.tools.db.transaction(purpose="register machine") as conn:
            row = await self.tools.machines.lock_or_create(conn, request.machine, request.partition)
            found = Registration(
                session=parse_uuid(request.session, field="session"),
                hardware=request.hardware,
                bios=request.bios,
                bmc=request.bmc,
                installer_version=request.installer_version,
                cabling=cabling,
                matching_sizes=await _matching(conn, request.hardware),
            )
            machine = await self.tools.registrations.register(conn, row, found)
        log.info(
            "machine.registered",
            machine=machine.id,
            generation=machine.generation,
            size=machine.size,
            rack=machine.rack,
            cabling_error=machine.cabling_error,
        )
        return machine

    async def RecordWipe(self, request: pb.RecordWipeRequest, context: object) -> pb.Machine:
        async with self.tools.db.transaction(purpose="record wipe") as conn:
            row = await self.tools.machines.lock(conn, request.machine)
            require_partition(row, request.partition)
            machine = await self.tools.registrations.record_wipe(conn, row, request.generation, request.results)
        if not machine.disks_clean:
            log.warning("machine.not_clean", machine=machine.id, generation=machine.generation)
        return machine

    async def SetWaiting(self, request: pb.SetWaitingRequest, context: object) -> pb.SetWaitingResponse:
        if request.waiting and not request.HasField("ttl"):
            raise InvalidArgument("FIELD_REQUIRED", "ttl: must say how long the lease holds", field="ttl")
        holder = parse_uuid(request.holder, field="holder")
        claim = Claim(holder, request.generation, request.ttl.ToTimedelta())
        leases = self.tools.leases
        if request.waiting:
            async with self.tools.db.connection() as conn:
                if await leases.renew(conn, request.machine, request.partition, claim):
                    return pb.SetWaitingResponse(waiting=True)
        async with self.tools.db.transaction(purpose="set waiting") as conn:
            row = await self.tools.machines.lock(conn, request.machine)
            require_partition(row, request.partition)
            if request.waiting:
                require_generation(row, request.generation)
                waiting = await leases.take(conn, row, claim)
            else:
                waiting = row["waiting"]
                # An old stream's end must not take the lease from a newer one.
                if str(row["lease_holder"]) == holder:
                    await leases.end(conn, row)
                    waiting = False
        return pb.SetWaitingResponse(waiting=waiting, binding=snapshot.binding(row))

    async def ReportBmcs(self, request: pb.ReportBmcsRequest, context: object) -> pb.ReportBmcsResponse:
        reports: dict[str, BmcInfo] = {
            parse_uuid(report.machine, field=f"reports[{at}].machine"): report.bmc
            for at, report in enumerate(request.reports)
        }
        for at, report in enumerate(request.reports):
            parse_timestamp(report.bmc.observed_time, field=f"reports[{at}].bmc.observed_time")
            parse_timestamp(report.bmc.fault.since, field=f"reports[{at}].bmc.fault.since")
        if len(reports) < len(request.reports):
            raise InvalidArgument("DUPLICATE_MACHINE", "reports: each machine may appear once", field="reports")
        async with self.tools.db.transaction(purpose="report bmcs") as conn:
            created, refused = await self.tools.bmcs.report(conn, request.partition, reports)
        if refused:
            log.warning("bmc.refused", partition=request.partition, machines=list(refused))
        return pb.ReportBmcsResponse(created=created, refused=refused)

    async def _connect(self, request: pb.RegisterMachineRequest) -> Cabling:
        """Fabric's word on the machine's cables.

        A refusal is a fact about the machine: it registers all the same, visibly and not to be given away, since an
        installer that fails here would only reboot for ever. When fabric cannot answer, the call fails and is retried.
        """
        neighbours = [
            ObservedNeighbour(nic_mac=nic.mac, system_name=each.system_name, port_id=each.port_id)
            for nic in request.hardware.nics
            for each in nic.neighbours
        ]
        question = ConnectMachineRequest(machine=request.machine, partition=request.partition, neighbours=neighbours)
        try:
            answer = await self.tools.cabling.ConnectMachine(question)
        except _CABLING_REFUSALS as refusal:
            if refusal.reason.startswith(("TRANSPORT_", "PEER_")):
                raise
            return Cabling(error=_text(refusal))
        links = [pb.Link(nic_mac=each.nic_mac, switch_id=each.switch_id, port=each.port) for each in answer.cables]
        return Cabling(rack=answer.rack, links=links)


def _text(refusal: Problem) -> str:
    return f"{refusal.reason}: {refusal.message}"


async def _matching(conn: Connection, hardware: Hardware) -> Sequence[str]:
    """The sizes that match, and that stay until the transaction ends."""
    known = [contract.size(message) for message in await SIZES.everything(conn)]
    found = sizes.match(known, contract.hardware(hardware))
    return [size.id for size in found if await SIZES.hold(conn, size.id)]


def _check_hardware(hardware: Hardware) -> None:
    """Raise InvalidArgument unless serials and MAC addresses tell the machine's parts apart."""
    violations: list[Violation] = []
    for path, values in (
        ("disks", [disk.serial for disk in hardware.disks]),
        ("nics", [nic.mac for nic in hardware.nics]),
    ):
        name = "serial" if path == "disks" else "mac"
        violations.extend(
            Violation(f"hardware.{path}[{at}].{name}", f"{value} appears twice", "DUPLICATE")
            for at, value in enumerate(values)
            if value in values[:at]
        )
    if violations:
        first = violations[0]
        raise InvalidArgument("INVALID_FIELD", f"{first.field}: {first.description}", violations=violations)
