"""Whether a filesystem layout fits a machine's disks. Pure."""

from __future__ import annotations

from metal_kit.errors import FailedPrecondition
from metalplane.inventory.v1.hardware_pb2 import Hardware
from metalplane.inventory.v1.layout_pb2 import FilesystemLayout

MIB = 1024 * 1024
# GPT header, its backup and the alignment of the first partition.
GPT_OVERHEAD_MIB = 2


def disk_serials(layout: FilesystemLayout, hardware: Hardware) -> list[str]:
    """Serials of the disks that the layout names, in its order.

    Raises FailedPrecondition when the machine lacks one, has it smaller than the sum of its partitions, or has it
    without a serial of its own: permission to touch a disk is given by serial, and names may change with the next boot.
    """
    by_name = {disk.name: disk for disk in hardware.disks}
    serials = []
    for wanted in layout.disks:
        disk = by_name.get(wanted.device)
        if disk is None:
            have = ", ".join(sorted(by_name)) or "none"
            raise FailedPrecondition(
                "LAYOUT_DISK_MISSING",
                f"layout {layout.id} needs {wanted.device}; the machine has {have}",
                field="spec.filesystem_layout",
            )
        needed = sum(partition.size_mib for partition in wanted.partitions) + GPT_OVERHEAD_MIB
        if disk.size_bytes < needed * MIB:
            raise FailedPrecondition(
                "LAYOUT_DISK_SMALL",
                f"layout {layout.id} needs {needed} MiB on {wanted.device}; it has {disk.size_bytes // MIB} MiB",
                field="spec.filesystem_layout",
            )
        if not disk.serial or [each.serial for each in hardware.disks].count(disk.serial) > 1:
            raise FailedPrecondition(
                "LAYOUT_DISK_UNNAMED",
                f"layout {layout.id} needs {wanted.device}; it has no serial of its own",
                field="spec.filesystem_layout",
            )
        serials.append(disk.serial)
    return serials
