"""From a layout and a machine's disks to the list of commands that lays it. Pure: the dry run *is* the plan.

On a reinstall only disks that the layout marks with `wipe_on_reinstall` are written to; file systems on the others are
mounted as they are. An array or volume group that spans both kinds cannot be rebuilt without loss and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metal_hammer.disk.layout import (
    Filesystem,
    Format,
    Layout,
    LayoutDisk,
    LayoutError,
    LogicalVolume,
    Raid,
    VolumeGroup,
    partition_device,
    validate,
)
from metal_hammer.hardware.base import Disk

MIB = 1024 * 1024
GPT_RESERVE_MIB = 2
"""sgdisk aligns to 1 MiB at the front and keeps the backup table at the end."""

SHORT, LONG = 60.0, 900.0
"""Deadlines in seconds: for table changes, and for making a file system on a big slow disk."""

_LABEL_LIMIT = {Format.VFAT: 11, Format.EXT3: 16, Format.EXT4: 16, Format.XFS: 12, Format.SWAP: 15}


@dataclass(frozen=True, slots=True)
class Command:
    """One external program of a plan. `deadline` is in seconds."""

    argv: tuple[str, ...]
    deadline: float = SHORT
    may_fail: bool = False


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount below the target directory; `path` is as the installed system sees it."""

    device: str
    path: str
    format: Format
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done. `serials` are the disks that are written to: the grant has to name them all."""

    serials: frozenset[str]
    commands: tuple[Command, ...]
    mounts: tuple[Mount, ...]


def plan(layout: Layout, disks: Sequence[Disk], *, reinstall: bool) -> Plan:
    """Plan a layout for these disks. Raises LayoutError, naming the rule, when that cannot be done."""
    validate(layout)
    present = {disk.device: disk for disk in disks}
    for wanted in layout.disks:
        _check_fit(wanted, present)
    written = [disk for disk in layout.disks if disk.wipe_on_reinstall or not reinstall]
    kept = _kept_devices(layout, [disk for disk in layout.disks if disk not in written])
    root = next(entry for entry in layout.filesystems if entry.path == "/")
    if root.device in kept:
        raise LayoutError(f"a reinstall would keep {root.device}, which holds /")
    commands: list[Command] = []
    if layout.raids or layout.volume_groups:
        commands += _release()
    for disk in written:
        commands += _partition(disk)
    for raid in layout.raids:
        commands += [_assemble(raid)] if raid.name in kept else [_create_raid(raid)]
    commands += _volumes(layout, kept)
    for entry in layout.filesystems:
        if entry.device not in kept:
            commands += _format(entry)
    serials = frozenset(present[disk.device].serial for disk in written)
    return Plan(serials, tuple(commands), _mounts(layout.filesystems))


def _check_fit(wanted: LayoutDisk, present: dict[str, Disk]) -> None:
    disk = present.get(wanted.device)
    if disk is None:
        raise LayoutError(f"the machine has no disk {wanted.device}")
    if disk.read_only:
        raise LayoutError(f"{wanted.device} is read-only")
    needed = sum(part.size_mib or 1 for part in wanted.partitions) + GPT_RESERVE_MIB
    if disk.size_bytes < needed * MIB:
        raise LayoutError(f"{wanted.device} has {disk.size_bytes // MIB} MiB, the layout needs {needed} MiB")


def _kept_devices(layout: Layout, disks: Sequence[LayoutDisk]) -> frozenset[str]:
    """Devices that stay as they are, from the kept disks upwards."""
    kept = {partition_device(disk.device, part.number) for disk in disks for part in disk.partitions}
    kept |= {disk.device for disk in disks}
    for raid in layout.raids:
        kept |= {raid.name} if _all_or_none(raid.name, raid.devices, kept) else set()
    for group in layout.volume_groups:
        if _all_or_none(group.name, group.devices, kept):
            kept.add(group.name)
            kept |= {f"/dev/{group.name}/{v.name}" for v in layout.logical_volumes if v.volume_group == group.name}
    return frozenset(kept)


def _all_or_none(what: str, devices: Sequence[str], kept: set[str]) -> bool:
    count = sum(device in kept for device in devices)
    if 0 < count < len(devices):
        raise LayoutError(f"a reinstall would wipe some of the devices of {what} and keep others")
    return count > 0


def _release() -> list[Command]:
    """Let go of arrays and groups that the kernel has found by itself: their disks are busy as long as they run."""
    return [
        Command(("lvm", "vgchange", "--activate", "n"), may_fail=True),
        Command(("mdadm", "--stop", "--scan"), may_fail=True),
    ]


def _partition(disk: LayoutDisk) -> list[Command]:
    commands = [
        Command(("wipefs", "--all", "--force", disk.device)),
        Command(("sgdisk", "--zap-all", disk.device)),
    ]
    if disk.partitions:
        arguments: list[str] = []
        for part in disk.partitions:
            size = f"+{part.size_mib}M" if part.size_mib else "0"
            arguments.append(f"--new={part.number}:0:{size}")
            arguments.append(f"--typecode={part.number}:{part.gpt_type}")
            if part.label:
                arguments.append(f"--change-name={part.number}:{part.label}")
        commands.append(Command(("sgdisk", *arguments, disk.device)))
        commands.append(Command(("partx", "--update", disk.device)))
    return commands


def _create_raid(raid: Raid) -> Command:
    return Command(
        (
            "mdadm", "--create", raid.name, "--run", "--force", "--homehost=any", f"--level={raid.level}",
            f"--raid-devices={len(raid.devices) - raid.spares}",
            *((f"--spare-devices={raid.spares}",) if raid.spares else ()),
            *(("--assume-clean",) if raid.level == 1 else ()),
            *raid.create_options, *raid.devices,
        )
    )  # fmt: skip


def _assemble(raid: Raid) -> Command:
    return Command(("mdadm", "--assemble", raid.name, "--run", *raid.devices))


def _volumes(layout: Layout, kept: frozenset[str]) -> list[Command]:
    commands: list[Command] = []
    for group in layout.volume_groups:
        if group.name in kept:
            commands.append(Command(("lvm", "vgchange", "--activate", "y", group.name)))
            continue
        commands += [Command(("lvm", "pvcreate", "--yes", "--force", device)) for device in group.devices]
        tags = tuple(argument for tag in group.tags for argument in ("--addtag", tag))
        commands.append(Command(("lvm", "vgcreate", "--yes", *tags, group.name, *group.devices)))
        commands += [_create_volume(v, group) for v in layout.logical_volumes if v.volume_group == group.name]
    return commands


def _create_volume(volume: LogicalVolume, group: VolumeGroup) -> Command:
    size = ("--size", f"{volume.size_mib}m") if volume.size_mib else ("--extents", "100%FREE")
    kind = {
        "linear": (),
        "striped": ("--type", "striped", "--stripes", str(len(group.devices))),
        "raid1": ("--type", "raid1", "--mirrors", "1", "--nosync"),
    }[volume.kind]
    return Command(
        ("lvm", "lvcreate", "--yes", "--wipesignatures", "y", "--name", volume.name, *size, *kind, group.name)
    )


def _format(entry: Filesystem) -> list[Command]:
    label = entry.label[: _LABEL_LIMIT.get(entry.format, 0)]
    match entry.format:
        case Format.VFAT:
            argv = ("mkfs.vfat", "-F", "32", *(("-n", label.upper()) if label else ()))
        case Format.EXT3 | Format.EXT4:
            argv = (f"mkfs.{entry.format}", "-F", "-q", *(("-L", label) if label else ()))
        case Format.XFS:
            argv = ("mkfs.xfs", "-f", "-q", *(("-L", label) if label else ()))
        case Format.SWAP:
            argv = ("mkswap", "--force", *(("--label", label) if label else ()))
        case _:
            return []
    return [Command((*argv, *entry.create_options, entry.device), LONG)]


def _mounts(filesystems: Sequence[Filesystem]) -> tuple[Mount, ...]:
    """Mounts during the installation, parents before children. Swap and memory file systems only go into fstab."""
    mountable = [
        entry for entry in filesystems if entry.path and entry.format not in (Format.SWAP, Format.TMPFS, Format.NONE)
    ]
    mountable.sort(key=lambda entry: (entry.path.rstrip("/").count("/"), entry.path))
    return tuple(Mount(entry.device, entry.path, entry.format, entry.mount_options) for entry in mountable)


def fstab(layout: Layout, uuids: dict[str, str]) -> str:
    """The installed system's /etc/fstab. `uuids` maps devices to file system UUIDs. KeyError for a missing one."""
    lines = []
    entries = [entry for entry in layout.filesystems if entry.path or entry.format is Format.SWAP]
    for entry in sorted(entries, key=lambda entry: (entry.path.rstrip("/").count("/"), entry.path)):
        if entry.format is Format.NONE:
            continue
        options = ",".join(entry.mount_options) or "defaults"
        match entry.format:
            case Format.SWAP:
                lines.append(f"UUID={uuids[entry.device]} none swap {options} 0 0")
            case Format.TMPFS:
                lines.append(f"tmpfs {entry.path} tmpfs {options} 0 0")
            case _:
                passes = {True: "1", False: "2"}[entry.path == "/"]
                lines.append(f"UUID={uuids[entry.device]} {_escape(entry.path)} {entry.format} {options} 0 {passes}")
    return "".join(line + "\n" for line in lines)


def _escape(path: str) -> str:
    """White space in fstab is written in octal (fstab(5))."""
    return path.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")
