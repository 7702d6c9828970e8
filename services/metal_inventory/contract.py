"""Between the contract's enums and messages and the domain's: translation only, no rules, no I/O."""

from __future__ import annotations

from datetime import UTC

from metalplane.inventory.v1 import hardware_pb2, image_pb2, layout_pb2, machine_pb2, size_pb2

from metal_inventory import images, layouts, sizes
from metal_inventory.hardware import Cpu, Disk, Gpu, Hardware
from metal_inventory.issues import Severity
from metal_inventory.lifecycle import EventType, State, Verdict
from metal_inventory.liveliness import Liveliness
from metal_inventory.state import AdminState

EVENT_TYPE_NUMBERS = {
    each: machine_pb2.ProvisioningEventType.Value(f"PROVISIONING_EVENT_TYPE_{each.name}") for each in EventType
}
EVENT_TYPES = {number: each for each, number in EVENT_TYPE_NUMBERS.items()}

_STATE_NAMES = {State.INITIAL: "UNSPECIFIED", State.CRASHING: "CRASHED"}
STATE_NUMBERS = {
    each: machine_pb2.LifecycleState.Value(f"LIFECYCLE_STATE_{_STATE_NAMES.get(each, each.name)}") for each in State
}
STATES = {number: each for each, number in STATE_NUMBERS.items()}

LIVELINESS_NUMBERS = {
    Liveliness.NOT_AVAILABLE: machine_pb2.LIVELINESS_UNSPECIFIED,
    Liveliness.ALIVE: machine_pb2.LIVELINESS_ALIVE,
    Liveliness.UNKNOWN: machine_pb2.LIVELINESS_UNKNOWN,
    Liveliness.DEAD: machine_pb2.LIVELINESS_DEAD,
}
VERDICT_NUMBERS = {each: machine_pb2.EventOutcome.Value(f"EVENT_OUTCOME_{each.name}") for each in Verdict}
ADMIN_STATE_NUMBERS = {each: machine_pb2.MachineState.Value(f"MACHINE_STATE_{each.name}") for each in AdminState}
ADMIN_STATES = {number: each for each, number in ADMIN_STATE_NUMBERS.items()}
SEVERITY_NUMBERS = {each: machine_pb2.IssueSeverity.Value(f"ISSUE_SEVERITY_{each.name}") for each in Severity}
SEVERITIES = {number: each for each, number in SEVERITY_NUMBERS.items()}

_CLASSIFICATIONS = {
    image_pb2.ImageClassification.Value(f"IMAGE_CLASSIFICATION_{each.name}"): each for each in images.Classification
}
_CONSTRAINT_TYPES = {
    size_pb2.ConstraintType.Value(f"CONSTRAINT_TYPE_{each.name}"): each for each in sizes.ConstraintType
}
_FORMATS = {layout_pb2.FilesystemFormat.Value(f"FILESYSTEM_FORMAT_{each.name}"): each for each in layouts.Format}
_VOLUME_TYPES = {layout_pb2.VolumeType.Value(f"VOLUME_TYPE_{each.name}"): each for each in layouts.VolumeType}


def hardware(message: hardware_pb2.Hardware) -> Hardware:
    """The countable parts of a report."""
    return Hardware(
        memory_bytes=message.memory_bytes,
        cpus=tuple(Cpu(each.model, each.cores) for each in message.cpus),
        disks=tuple(Disk(each.name, each.size_bytes) for each in message.disks),
        gpus=tuple(Gpu(each.model) for each in message.gpus),
    )


def size(message: size_pb2.Size) -> sizes.Size:
    """A size with its constraints."""
    return sizes.Size(
        message.id,
        tuple(
            sizes.Constraint(_CONSTRAINT_TYPES[each.type], each.min, each.max, each.identifier)
            for each in message.constraints
        ),
    )


def image(message: image_pb2.Image) -> images.Image:
    """What resolution looks at; an unset classification is preview."""
    return images.Image(
        message.id,
        _CLASSIFICATIONS.get(message.classification, images.Classification.PREVIEW),
        message.expire_time.ToDatetime(tzinfo=UTC),
    )


def layout(message: layout_pb2.FilesystemLayout) -> layouts.Layout:
    """A layout as its rules see it; unset RAID levels are mirrored and unset volume types linear."""
    return layouts.Layout(
        id=message.id,
        disks=tuple(_layout_disk(disk) for disk in message.disks),
        raids=tuple(_raid(raid) for raid in message.raids),
        volume_groups=tuple(
            layouts.VolumeGroup(group.name, tuple(group.devices), tuple(group.tags)) for group in message.volume_groups
        ),
        logical_volumes=tuple(
            layouts.LogicalVolume(
                volume.name,
                volume.volume_group,
                volume.size_mib,
                _VOLUME_TYPES.get(volume.type, layouts.VolumeType.LINEAR),
            )
            for volume in message.logical_volumes
        ),
        filesystems=tuple(_filesystem(filesystem) for filesystem in message.filesystems),
        sizes=tuple(message.size_ids),
        images=tuple(
            layouts.ImageConstraint(os, versions) for os, versions in sorted(message.image_constraints.items())
        ),
    )


def _layout_disk(disk: layout_pb2.Disk) -> layouts.LayoutDisk:
    partitions = tuple(
        layouts.Partition(each.number, each.size_mib, layouts.GptType(each.gpt_type), each.label)
        for each in disk.partitions
    )
    return layouts.LayoutDisk(disk.device, partitions, disk.wipe_on_reinstall)


def _raid(raid: layout_pb2.Raid) -> layouts.Raid:
    level = 0 if raid.level == layout_pb2.RAID_LEVEL_STRIPED else 1
    return layouts.Raid(raid.name, tuple(raid.devices), level, tuple(raid.create_options), raid.spares)


def _filesystem(filesystem: layout_pb2.Filesystem) -> layouts.Filesystem:
    return layouts.Filesystem(
        filesystem.device,
        _FORMATS[filesystem.format],
        filesystem.path,
        filesystem.label,
        tuple(filesystem.mount_options),
        tuple(filesystem.create_options),
    )
