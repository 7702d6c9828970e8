"""Filesystem layouts: what a valid one looks like, which one applies, and whether it fits the disks.

A layout is a stack: disks carry partitions, partitions carry RAID arrays, those carry volume groups, those logical
volumes, and filesystems lie on top. Every device that a layer names must be provided by a lower one. Creating any of
this is the installer's work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from metal_inventory.hardware import Hardware
from metal_inventory.images import ImageName
from metal_inventory.versions import parse_constraint

Problem = tuple[str, str]
"""Field path and what is wrong with it, with the fix."""

MIB = 1024 * 1024
GPT_RESERVE_MIB = 2
"""The partition table at the front and its copy at the end of a disk, with the alignment."""
RAID_LEVELS = (0, 1)


class Format(Enum):
    """Formats of filesystems; NONE mounts what is there."""

    VFAT = "vfat"
    EXT3 = "ext3"
    EXT4 = "ext4"
    XFS = "xfs"
    SWAP = "swap"
    TMPFS = "tmpfs"
    NONE = "none"


class GptType(Enum):
    """Partition types as sgdisk abbreviates them."""

    EFI = "ef00"
    LINUX = "8300"
    RAID = "fd00"
    LVM = "8e00"


class VolumeType(Enum):
    """How a logical volume lies on its physical volumes."""

    LINEAR = "linear"
    STRIPED = "striped"
    RAID1 = "raid1"


@dataclass(frozen=True, slots=True)
class Filesystem:
    """A filesystem on a device, mounted at ``path`` unless that is empty."""

    device: str
    format: Format
    path: str = ""
    label: str = ""
    mount_options: tuple[str, ...] = ()
    create_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Partition:
    """A GPT partition; size 0 takes the rest of the disk."""

    number: int
    size_mib: int
    gpt_type: GptType
    label: str = ""


@dataclass(frozen=True, slots=True)
class LayoutDisk:
    """A disk and its partitions; only disks marked so are wiped by a reinstallation."""

    device: str
    partitions: tuple[Partition, ...] = ()
    wipe_on_reinstall: bool = False


@dataclass(frozen=True, slots=True)
class Raid:
    """A software RAID array."""

    name: str
    devices: tuple[str, ...]
    level: int
    create_options: tuple[str, ...] = ()
    spares: int = 0


@dataclass(frozen=True, slots=True)
class VolumeGroup:
    """An LVM volume group."""

    name: str
    devices: tuple[str, ...]
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LogicalVolume:
    """An LVM logical volume; size 0 takes the rest of the group."""

    name: str
    volume_group: str
    size_mib: int
    type: VolumeType = VolumeType.LINEAR


@dataclass(frozen=True, slots=True)
class ImageConstraint:
    """Versions of an operating system that a layout suits."""

    os: str
    versions: str


@dataclass(frozen=True, slots=True)
class Layout:
    """A filesystem layout. Without sizes and images it is never picked, only named."""

    id: str
    disks: tuple[LayoutDisk, ...] = ()
    raids: tuple[Raid, ...] = ()
    volume_groups: tuple[VolumeGroup, ...] = ()
    logical_volumes: tuple[LogicalVolume, ...] = ()
    filesystems: tuple[Filesystem, ...] = ()
    sizes: tuple[str, ...] = ()
    images: tuple[ImageConstraint, ...] = ()


def partition_device(device: str, number: int) -> str:
    """The kernel's name of a partition: names that end in a digit (NVMe, eMMC) get a ``p`` before the number."""
    return f"{device}p{number}" if device[-1:].isdigit() else f"{device}{number}"


def validate(layout: Layout) -> list[Problem]:
    """What is wrong with the layout; empty when all is well."""
    return [
        *_disk_problems(layout),
        *_stack_problems(layout),
        *_filesystem_problems(layout),
        *_option_problems(layout),
        *_constraint_problems(layout),
    ]


def overlapping(layout: Layout, others: Iterable[Layout]) -> list[Layout]:
    """Other layouts that would be as good for some size and image; the pick would depend on their order."""
    return [other for other in others if other.id != layout.id and overlap(layout, other)]


def overlap(left: Layout, right: Layout) -> bool:
    """Whether both layouts accept some version of one OS on one size; layouts without constraints never do."""
    if not set(left.sizes) & set(right.sizes):
        return False
    return any(
        a.os == b.os and not parse_constraint(a.versions).intersection(parse_constraint(b.versions)).empty
        for a in left.images
        for b in right.images
    )


def pick(layouts: Iterable[Layout], size_id: str, image: ImageName) -> Layout | None:
    """The layout for a size and an image; the stored ones do not overlap, so there is at most one."""
    return next((layout for layout in layouts if suits(layout, size_id, image)), None)


def suits(layout: Layout, size_id: str, image: ImageName) -> bool:
    """Whether the layout's constraints accept the size and the image."""
    return size_id in layout.sizes and any(
        constraint.os == image.os and image.version in parse_constraint(constraint.versions)
        for constraint in layout.images
    )


def misfits(layout: Layout, hardware: Hardware) -> list[str]:
    """Why the layout does not fit the machine's disks, a sentence a disk; empty when it fits. As the installer reckons:
    a partition that takes the rest gets a MiB at least, and the partition table needs its place."""
    present = {_bare(disk.name): disk.size_bytes for disk in hardware.disks}
    sentences = []
    for disk in layout.disks:
        size = present.get(_bare(disk.device))
        needed = (sum(partition.size_mib or 1 for partition in disk.partitions) + GPT_RESERVE_MIB) * MIB
        if size is None:
            sentences.append(f"the machine has no disk {disk.device}")
        elif size < needed:
            sentences.append(f"disk {disk.device} has {size // MIB} MiB, its partitions need {needed // MIB} MiB")
    return sentences


def _bare(device: str) -> str:
    return device.removeprefix("/dev/")


def _disk_problems(layout: Layout) -> Iterator[Problem]:
    for at, disk in enumerate(layout.disks):
        where = f"disks[{at}]"
        if not disk.device.startswith("/dev/"):
            yield f"{where}.device", "must be a device path, for example /dev/sda"
        numbers = Counter(partition.number for partition in disk.partitions)
        for nth, partition in enumerate(disk.partitions):
            part = f"{where}.partitions[{nth}]"
            if not 1 <= partition.number <= 128:
                yield f"{part}.number", "must be between 1 and 128"
            if numbers[partition.number] > 1:
                yield f"{part}.number", f"number {partition.number} is used twice on {disk.device}"
            if nth and partition.number < disk.partitions[nth - 1].number:
                yield f"{part}.number", "must be higher than the number before it: partitions are made in this order"
            yield from _size_problems(part, partition.size_mib, last=nth == len(disk.partitions) - 1)


def _filesystem_problems(layout: Layout) -> Iterator[Problem]:
    """The installer refuses what breaks these rules too: better here than at every machine that was given away."""
    for at, filesystem in enumerate(layout.filesystems):
        where, path = f"filesystems[{at}]", filesystem.path
        if path and not _is_mount_point(path):
            yield f"{where}.path", "must be an absolute path without `.`, `..` or empty parts, for example /var/lib"
        if filesystem.format is Format.TMPFS and not path:
            yield f"{where}.path", "must say where the tmpfs is mounted"
        if path == "/" and filesystem.format in (Format.SWAP, Format.TMPFS):
            yield f"{where}.format", f"/ cannot be {filesystem.format.value}"
        if filesystem.label.startswith("-") or not filesystem.label.isprintable():
            yield f"{where}.label", "must be printable and not begin with a dash"
    if all(filesystem.path != "/" for filesystem in layout.filesystems):
        yield "filesystems", "must hold one that is mounted at /"


def _is_mount_point(path: str) -> bool:
    parts = path.split("/")[1:]
    return path == "/" or (path.startswith("/") and path.isprintable() and not {"", ".", ".."} & set(parts))


def _size_problems(where: str, size_mib: int, *, last: bool) -> Iterator[Problem]:
    if size_mib < 0:
        yield f"{where}.size_mib", "must not be negative"
    if size_mib == 0 and not last:
        yield f"{where}.size_mib", "0 (the rest) is only possible for the last one"


@dataclass(slots=True)
class _Stack:
    """The devices that the layers so far provide, and who has taken which."""

    provided: set[str] = field(default_factory=set)
    taken: dict[str, str] = field(default_factory=dict)

    def provide(self, where: str, device: str) -> Iterator[Problem]:
        if device in self.provided or device in self.taken:
            yield where, f"{device} is defined twice"
        self.provided.add(device)

    def take(self, where: str, device: str) -> Iterator[Problem]:
        if device in self.taken:
            yield where, f"{device} is already used by {self.taken[device]}"
        elif device not in self.provided:
            yield where, f"{device} is not provided by a disk, partition, RAID array or logical volume below"
        self.taken.setdefault(device, where)


def _stack_problems(layout: Layout) -> Iterator[Problem]:
    stack = _Stack()
    for at, disk in enumerate(layout.disks):
        yield from stack.provide(f"disks[{at}].device", disk.device)
        if disk.partitions:
            stack.taken[disk.device] = "its partitions"
        for nth, partition in enumerate(disk.partitions):
            device = partition_device(disk.device, partition.number)
            yield from stack.provide(f"disks[{at}].partitions[{nth}].number", device)
    for at, raid in enumerate(layout.raids):
        yield from _raid_problems(f"raids[{at}]", raid, stack)
    for at, group in enumerate(layout.volume_groups):
        if not group.devices:
            yield f"volume_groups[{at}].devices", "must name at least one device"
        for nth, device in enumerate(group.devices):
            yield from stack.take(f"volume_groups[{at}].devices[{nth}]", device)
    yield from _volume_problems(layout, stack)
    paths = Counter(filesystem.path for filesystem in layout.filesystems if filesystem.path)
    for at, filesystem in enumerate(layout.filesystems):
        if filesystem.format is not Format.TMPFS:
            yield from stack.take(f"filesystems[{at}].device", filesystem.device)
        if paths[filesystem.path] > 1:
            yield f"filesystems[{at}].path", f"{filesystem.path} is mounted twice"


def _raid_problems(where: str, raid: Raid, stack: _Stack) -> Iterator[Problem]:
    if raid.level not in RAID_LEVELS:
        yield f"{where}.level", "must be 0 or 1"
    if raid.spares < 0 or (raid.level == 0 and raid.spares):
        yield f"{where}.spares", "must be 0 for level 0 and not negative for level 1"
    if len(raid.devices) - raid.spares < 2:
        yield f"{where}.devices", "must name at least two devices besides the spares"
    for nth, device in enumerate(raid.devices):
        yield from stack.take(f"{where}.devices[{nth}]", device)
    yield from stack.provide(f"{where}.name", raid.name)


def _volume_problems(layout: Layout, stack: _Stack) -> Iterator[Problem]:
    groups = {group.name: group for group in layout.volume_groups}
    names = Counter(group.name for group in layout.volume_groups)
    for at, group in enumerate(layout.volume_groups):
        if names[group.name] > 1:
            yield f"volume_groups[{at}].name", f"{group.name} is defined twice"
    last = {volume.volume_group: at for at, volume in enumerate(layout.logical_volumes)}
    for at, volume in enumerate(layout.logical_volumes):
        where = f"logical_volumes[{at}]"
        found = groups.get(volume.volume_group)
        if found is None:
            yield f"{where}.volume_group", f"there is no volume group {volume.volume_group}"
        elif volume.type is not VolumeType.LINEAR and len(found.devices) < 2:
            yield f"{where}.type", f"{volume.type.value} needs a volume group of at least two devices"
        yield from _size_problems(where, volume.size_mib, last=last[volume.volume_group] == at)
        yield from stack.provide(f"{where}.name", f"/dev/{volume.volume_group}/{volume.name}")


def _option_problems(layout: Layout) -> Iterator[Problem]:
    options: list[tuple[str, Sequence[str]]] = []
    for at, filesystem in enumerate(layout.filesystems):
        options.append((f"filesystems[{at}].mount_options", filesystem.mount_options))
        options.append((f"filesystems[{at}].create_options", filesystem.create_options))
    options.extend((f"raids[{at}].create_options", raid.create_options) for at, raid in enumerate(layout.raids))
    for where, given in options:
        for nth, option in enumerate(given):
            if not option or any(char.isspace() for char in option):
                yield f"{where}[{nth}]", "must be one word: give each option as an entry of its own"


def _constraint_problems(layout: Layout) -> Iterator[Problem]:
    if bool(layout.sizes) != bool(layout.images):
        yield (
            "size_ids" if layout.images else "image_constraints",
            "must name sizes and images, or neither of them (then the layout is only used by name)",
        )
    sizes = Counter(layout.sizes)
    for at, size in enumerate(layout.sizes):
        if "*" in size or "?" in size:
            yield f"size_ids[{at}]", "must be the id of one size; wildcards are not possible"
        if sizes[size] > 1:
            yield f"size_ids[{at}]", f"{size} is named twice"
    for constraint in layout.images:
        where = f"image_constraints.{constraint.os}"
        if constraint.os in ("", "*"):
            yield where, "must name one operating system; `*` is only possible as version"
        try:
            parse_constraint(constraint.versions)
        except ValueError as error:
            yield where, str(error)
