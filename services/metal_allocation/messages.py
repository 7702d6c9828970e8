"""Records to messages."""

from __future__ import annotations

from collections.abc import Sequence

from metal_kit.timestamps import to_timestamp
from metalplane.allocation.v1.allocation_pb2 import Allocation, AllocationPhase, AllocationStatus
from metalplane.allocation.v1.installation_pb2 import Installation, InstallationState, InstallSpec
from metalplane.common.v1.condition_pb2 import TimelineEntry

from metal_allocation.phase import InstallationState as Wanted
from metal_allocation.record import Record, TimelineLine


def to_message(record: Record, lines: Sequence[TimelineLine]) -> Allocation:
    """The allocation as clients see it: without user data, which may hold secrets."""
    allocation = Allocation(
        id=record.id,
        project=record.project,
        spec=record.spec,
        status=_status(record, lines),
        creator=record.creator,
        etag=str(record.version),
        create_time=to_timestamp(record.create_time),
        update_time=to_timestamp(record.update_time),
    )
    allocation.spec.ClearField("userdata")
    allocation.spec.description = record.description
    allocation.spec.labels.clear()
    allocation.spec.labels.update(record.labels)
    return allocation


def _status(record: Record, lines: Sequence[TimelineLine]) -> AllocationStatus:
    return AllocationStatus(
        phase=AllocationPhase.Value(f"ALLOCATION_PHASE_{record.phase.name}"),
        phase_time=to_timestamp(record.phase_time),
        phase_deadline=to_timestamp(record.phase_deadline),
        conditions=record.conditions,
        timeline=[
            TimelineEntry(time=to_timestamp(line.time), phase=line.phase, reason=line.reason, message=line.message)
            for line in lines
        ],
        machine=record.machine,
        partition=record.partition,
        rack=record.rack,
        size=record.size,
        image=record.image.id,
        filesystem_layout=record.layout.id,
        networks=record.networks,
        asn=record.asn,
        installer_step=record.installer_step,
        installer_percent=record.installer_percent,
        running_time=to_timestamp(record.running_time),
        free_time=to_timestamp(record.free_time),
    )


def to_installation(record: Record) -> Installation:
    """What is wanted of the machine's installer; the spec goes along only when it is to be used."""
    wanted = record.installation
    if wanted is Wanted.NONE:
        return Installation(machine=record.machine)
    installation = Installation(
        machine=record.machine,
        allocation=record.id,
        state=InstallationState.Value(f"INSTALLATION_STATE_{wanted.name}"),
    )
    if wanted in {Wanted.INSTALL, Wanted.START}:
        installation.spec.CopyFrom(_install_spec(record))
    if record.installed:
        installation.boot_info.CopyFrom(record.boot_info)
    return installation


def _install_spec(record: Record) -> InstallSpec:
    return InstallSpec(
        allocation=record.id,
        machine=record.machine,
        role=record.spec.role,
        hostname=record.spec.hostname or record.name,
        image=record.image.id,
        image_url=record.image.url,
        image_sha256=record.image.sha256,
        image_size_bytes=record.image.size_bytes,
        filesystem_layout=record.layout,
        networks=record.networks,
        asn=record.asn,
        ssh_keys=record.spec.ssh_keys,
        userdata=record.userdata,
        dns_servers=record.dns_servers,
        ntp_servers=record.ntp_servers,
        egress_rules=record.spec.egress_rules,
        ingress_rules=record.spec.ingress_rules,
        disk_serials=record.disk_serials,
    )
