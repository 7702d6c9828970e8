"""A filesystem layout as plain values, and the rules that make one sound. Pure.

The layout comes from the control plane, which checks the same rules when an operator writes it. They are checked again
here because the installer is the one that destroys data if they do not hold.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum


class Format(StrEnum):
    """What a device is formatted with."""

    NONE = "none"
    VFAT = "vfat"
    EXT3 = "ext3"
    EXT4 = "ext4"
    XFS = "xfs"
    SWAP = "swap"
    TMPFS = "tmpfs"


@dataclass(frozen=True, slots=True)
class Filesystem:
    """A file system and where it is mounted; no path: made but not mounted."""

    device: str
    format: Format
    path: str = ""
    label: str = ""
    mount_options: tuple[str, ...] = ()
    create_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Partition:
    """One GPT partition. `size_mib` 0 takes the rest of the disk."""

    number: int
    size_mib: int
    label: str = ""
    gpt_type: str = "8300"


@dataclass(frozen=True, slots=True)
class LayoutDisk:
    """A disk that the layout uses."""

    device: str
    partitions: tuple[Partition, ...] = ()
    wipe_on_reinstall: bool = False


@dataclass(frozen=True, slots=True)
class Raid:
    """An MD array; level 0 or 1."""

    name: str
    devices: tuple[str, ...]
    level: int = 1
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
    """An LVM logical volume of kind `linear`, `striped` or `raid1`. `size_mib` 0 takes the rest of the group."""

    name: str
    volume_group: str
    size_mib: int
    kind: str = "linear"


@dataclass(frozen=True, slots=True)
class Layout:
    """How an installation uses the disks."""

    filesystems: tuple[Filesystem, ...]
    disks: tuple[LayoutDisk, ...]
    raids: tuple[Raid, ...] = ()
    volume_groups: tuple[VolumeGroup, ...] = ()
    logical_volumes: tuple[LogicalVolume, ...] = ()


class LayoutError(ValueError):
    """The layout contradicts itself or cannot be laid on these disks."""


_NAME = re.compile(r"[A-Za-z0-9_.+][A-Za-z0-9_.+-]*")
_DEVICE = re.compile(r"/dev/[A-Za-z0-9_.+][A-Za-z0-9_.+/:-]*")
_OPTION = re.compile(r"\S+")
_TYPES = frozenset({"ef00", "8300", "fd00", "8e00"})


def partition_device(disk: str, number: int) -> str:
    """The kernel's name of a partition: a `p` goes between when the disk's name ends in a digit."""
    return f"{disk}p{number}" if disk[-1].isdigit() else f"{disk}{number}"


def validate(layout: Layout) -> None:
    """Raise LayoutError when the layout cannot be carried out whatever the disks are."""
    provided: list[str] = []
    for disk in layout.disks:
        _check_disk(disk)
        parts = [partition_device(disk.device, part.number) for part in disk.partitions]
        provided += parts or [disk.device]
    for raid in layout.raids:
        _check_raid(raid, provided)
        provided.append(raid.name)
    groups = {group.name: group for group in layout.volume_groups}
    for group in layout.volume_groups:
        _check_group(group, provided)
    provided += _check_volumes(layout.logical_volumes, groups)
    _refuse_repeats("device", [*provided, *(disk.device for disk in layout.disks if disk.partitions)])
    _check_filesystems(layout, provided)


def _check_disk(disk: LayoutDisk) -> None:
    _need(_DEVICE.fullmatch(disk.device) is not None and ".." not in disk.device, f"disk device {disk.device!r}")
    numbers = [part.number for part in disk.partitions]
    _need(numbers == sorted(set(numbers)), f"partition numbers of {disk.device} must ascend")
    for part in disk.partitions:
        _need(1 <= part.number <= 128, f"partition number {part.number} of {disk.device} must be 1..128")
        _need(part.gpt_type in _TYPES, f"GPT type {part.gpt_type!r} on {disk.device}")
        _need(part.size_mib >= 0, f"size of partition {part.number} of {disk.device}")
        _need(len(part.label) <= 36 and part.label.isprintable(), f"label of partition {part.number}")
    _need(
        all(part.size_mib for part in disk.partitions[:-1]), f"only the last partition of {disk.device} takes the rest"
    )


def _check_raid(raid: Raid, provided: list[str]) -> None:
    _need(_DEVICE.fullmatch(raid.name) is not None and ".." not in raid.name, f"array name {raid.name!r}")
    _need(raid.level in (0, 1), f"{raid.name}: level must be 0 or 1")
    _need(raid.spares >= 0 and len(raid.devices) - raid.spares >= 2, f"{raid.name}: at least two active devices")
    _need(not (raid.level == 0 and raid.spares), f"{raid.name}: a striped array has no spares")
    _need(all(_OPTION.fullmatch(option) for option in raid.create_options), f"{raid.name}: white space in an option")
    _need_devices(raid.name, raid.devices, provided)


def _check_group(group: VolumeGroup, provided: list[str]) -> None:
    _need(_NAME.fullmatch(group.name) is not None, f"volume group name {group.name!r}")
    _need(all(_NAME.fullmatch(tag) for tag in group.tags), f"tags of volume group {group.name}")
    _need_devices(group.name, group.devices, provided)


def _check_volumes(volumes: tuple[LogicalVolume, ...], groups: dict[str, VolumeGroup]) -> list[str]:
    last = {volume.volume_group: volume for volume in volumes}
    for volume in volumes:
        _need(_NAME.fullmatch(volume.name) is not None, f"logical volume name {volume.name!r}")
        _need(volume.volume_group in groups, f"{volume.name}: no volume group {volume.volume_group!r}")
        _need(volume.kind in ("linear", "striped", "raid1"), f"{volume.name}: type {volume.kind!r}")
        _need(volume.size_mib >= 0, f"{volume.name}: size")
        _need(
            volume.size_mib > 0 or last[volume.volume_group] is volume,
            f"{volume.name}: only the last volume of a group takes the rest",
        )
        _need(
            volume.kind == "linear" or len(groups[volume.volume_group].devices) >= 2,
            f"{volume.name}: {volume.kind} needs at least two devices",
        )
    return [f"/dev/{volume.volume_group}/{volume.name}" for volume in volumes]


def _check_filesystems(layout: Layout, provided: list[str]) -> None:
    used = [device for raid in layout.raids for device in raid.devices]
    used += [device for group in layout.volume_groups for device in group.devices]
    for entry in layout.filesystems:
        where = entry.path or entry.device
        _need(not entry.path or _is_mount_point(entry.path), f"mount point {entry.path!r}")
        _need(entry.path != "" or entry.format is not Format.TMPFS, "a tmpfs needs a mount point")
        options = (*entry.mount_options, *entry.create_options)
        _need(all(_OPTION.fullmatch(option) for option in options), f"{where}: white space in an option")
        _need(len(entry.label) <= 36 and entry.label.isprintable(), f"{where}: label")
        _need(not entry.label.startswith("-"), f"{where}: label")
        if entry.format is not Format.TMPFS:
            _need(entry.device in provided, f"{where}: nothing provides {entry.device!r}")
            used.append(entry.device)
    _refuse_repeats("use of device", used)
    _refuse_repeats("mount point", [entry.path for entry in layout.filesystems if entry.path])
    roots = [entry for entry in layout.filesystems if entry.path == "/"]
    _need(len(roots) == 1, "exactly one file system is mounted at /")
    _need(roots[0].format not in (Format.SWAP, Format.TMPFS), f"/ cannot be {roots[0].format}")


def _is_mount_point(path: str) -> bool:
    parts = path.split("/")[1:]
    return path == "/" or (path.startswith("/") and path.isprintable() and not ({"", ".", ".."} & set(parts)))


def _need_devices(what: str, devices: tuple[str, ...], provided: list[str]) -> None:
    _need(bool(devices), f"{what}: no devices")
    for device in devices:
        _need(device in provided, f"{what}: nothing provides {device!r}")


def _refuse_repeats(what: str, names: list[str]) -> None:
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    _need(not repeated, f"repeated {what}: {', '.join(repeated)}")


def _need(holds: bool, message: str) -> None:
    if not holds:
        raise LayoutError(message)
