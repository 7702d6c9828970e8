"""The external programs that an installer runs, acted out on simulated disks.

Each takes the arguments of the real one as far as the installer uses them and refuses all others, so that a plan with a
mistake fails here as it would there. Nothing here knows what the installer is for.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

import yaml

from metal_sim.machine.disk import MIB, SimulatedDisk
from metal_sim.machine.facts import Completed

Program = Callable[["Programs", list[str]], Coroutine[None, None, Completed]]

OK = Completed(0)
_OFFSET_OF_VOLUME = MIB


def failed(message: str, code: int = 1) -> Completed:
    """A program that ends with an error."""
    return Completed(code, b"", message.encode() + b"\n")


class Programs:
    """The programs of one machine and the state that its kernel would keep: arrays, volume groups, mounts."""

    def __init__(self, disks: Sequence[SimulatedDisk], target: Path) -> None:
        self.disks = {disk.spec.device: disk for disk in disks}
        self.target = target
        self.mounts: dict[Path, str] = {}
        self._aliases: dict[str, tuple[str, int]] = {}

    async def run(self, argv: Sequence[str]) -> Completed:
        """Run a program; 127 when the machine has no such program."""
        program = PROGRAMS.get(argv[0])
        if program is None:
            return failed(f"{argv[0]}: command not found", 127)
        try:
            return await program(self, list(argv[1:]))
        except _Usage as usage:
            return failed(f"{argv[0]}: {usage}", 2)

    def locate(self, device: str) -> tuple[SimulatedDisk, int]:
        """Disk and offset behind a device node. Raises _Usage when the kernel has no such node."""
        if device in self.disks:
            return self.disks[device], 0
        if device in self._aliases:
            base, offset = self._aliases[device]
            disk, start = self.locate(base)
            return disk, start + offset
        for name, disk in self.disks.items():
            match = re.fullmatch(re.escape(name) + ("p" if name[-1].isdigit() else "") + r"(\d+)", device)
            part = disk.table.get("partitions", {}).get(match.group(1)) if match else None
            if part is not None:
                return disk, part["start_mib"] * MIB
        raise _Usage(f"{device}: No such file or directory")

    def alias(self, device: str, base: str, offset: int) -> None:
        """Make a device node that stands for another one."""
        self._aliases[device] = (base, offset)

    def release(self) -> None:
        """Forget mounts: the machine was reset."""
        self.mounts.clear()
        self.target.unlink(missing_ok=True)


class _Usage(Exception):
    """The program was called in a way that it refuses."""


def _split(
    arguments: list[str], *, flags: Sequence[str] = (), valued: Sequence[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """Positional arguments and options. Options that are not listed are refused."""
    plain: list[str] = []
    options: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            plain.append(argument)
        elif name in flags and not equals:
            options[name] = ""
        elif name in valued:
            options[name] = value if equals else next(rest, "")
        else:
            raise _Usage(f"unrecognized option '{argument}'")
    return plain, options


async def _wipefs(self: Programs, arguments: list[str]) -> Completed:
    plain, _ = _split(arguments, flags=("--all", "--force"))
    for device in plain:
        disk, offset = self.locate(device)
        if offset == 0:
            disk.write_table({})
        else:
            await disk.write(offset, bytes(12))
    return OK


async def _sgdisk(self: Programs, arguments: list[str]) -> Completed:
    valued = ("--new", "--typecode", "--change-name")
    plain = [argument for argument in arguments if not argument.startswith("-")]
    if len(plain) != 1:
        raise _Usage("exactly one device")
    disk, offset = self.locate(plain[0])
    if offset:
        raise _Usage("not a whole disk")
    await disk.write(0, b"")
    if "--zap-all" in arguments:
        disk.write_table({})
        return OK
    partitions = dict(disk.table.get("partitions", {}))
    for argument in arguments:
        name, _, value = argument.partition("=")
        if argument.startswith("-") and name not in valued:
            raise _Usage(f"unrecognized option '{argument}'")
        if name == "--new":
            _new_partition(partitions, value, disk.spec.size_bytes // MIB)
        elif name in valued:
            number, _, text = value.partition(":")
            partitions[number]["type" if name == "--typecode" else "label"] = text
    disk.write_table({"partitions": partitions})
    return OK


def _new_partition(partitions: dict[str, dict[str, int | str]], value: str, disk_mib: int) -> None:
    number, start, size = value.split(":")
    if number in partitions or start != "0":
        raise _Usage(f"cannot make partition {number}")
    begin = max([1, *(int(part["start_mib"]) + int(part["size_mib"]) for part in partitions.values())])
    free = disk_mib - 1 - begin
    wanted = free if size == "0" else int(size.removeprefix("+").removesuffix("M"))
    if not 0 < wanted <= free:
        raise _Usage(f"partition {number} does not fit")
    partitions[number] = {"start_mib": begin, "size_mib": wanted, "type": "8300", "label": ""}


async def _nothing(self: Programs, arguments: list[str]) -> Completed:
    plain, _ = _split(arguments, flags=("--update",))
    for device in plain:
        self.locate(device)
    return OK


def _mkfs(kind: str, label_option: str, flags: Sequence[str], valued: Sequence[str]) -> Program:
    async def program(self: Programs, arguments: list[str]) -> Completed:
        plain, options = _split(arguments, flags=flags, valued=(*valued, label_option))
        if len(plain) != 1:
            raise _Usage("exactly one device")
        disk, offset = self.locate(plain[0])
        await disk.write(offset, bytes(12))
        disk.make_filesystem(offset, kind, options.get(label_option, ""))
        return OK

    return program


async def _blkid(self: Programs, arguments: list[str]) -> Completed:
    plain, _ = _split(arguments, valued=("-o", "-s"))
    disk, offset = self.locate(plain[0])
    superblock = disk.superblock(offset)
    return Completed(0, f"{superblock['uuid']}\n".encode()) if superblock else Completed(2)


async def _mount(self: Programs, arguments: list[str]) -> Completed:
    (device, where), options = _split(arguments, valued=("-t", "-o"))
    disk, offset = self.locate(device)
    superblock = disk.superblock(offset)
    if superblock.get("format") != options.get("-t"):
        return failed(f"mount: {where}: wrong fs type, bad option, bad superblock on {device}", 32)
    place = Path(where)
    if place == self.target:
        await asyncio.to_thread(_mount_root, place, disk, offset)
    elif self.target not in self.mounts:
        return failed(f"mount: {where}: mount point does not exist.", 32)
    self.mounts[place] = device
    return OK


def _mount_root(place: Path, disk: SimulatedDisk, offset: int) -> None:
    disk.mount_root(offset)
    # An empty directory gives way; a link that is left over from a power cut, too.
    if place.is_symlink() or not place.exists():
        place.unlink(missing_ok=True)
    else:
        place.rmdir()
    place.symlink_to(disk.root, target_is_directory=True)


async def _umount(self: Programs, arguments: list[str]) -> Completed:
    place = Path(arguments[0])
    if place not in self.mounts:
        return failed(f"umount: {place}: not mounted.", 32)
    if place == self.target and len(self.mounts) > 1:
        return failed(f"umount: {place}: target is busy.", 32)
    del self.mounts[place]
    return OK


async def _mdadm(self: Programs, arguments: list[str]) -> Completed:
    if arguments == ["--stop", "--scan"]:
        return OK
    mode, array = arguments[0], arguments[1]
    devices = [argument for argument in arguments[2:] if not argument.startswith("-")]
    if mode not in ("--create", "--assemble") or not devices:
        raise _Usage("what to do?")
    for device in devices:
        self.locate(device)
    self.alias(array, devices[0], 0)
    return OK


async def _lvm(self: Programs, arguments: list[str]) -> Completed:
    command, rest = arguments[0], arguments[1:]
    valued = (
        "--activate",
        "--addtag",
        "--wipesignatures",
        "--name",
        "--size",
        "--extents",
        "--type",
        "--stripes",
        "--mirrors",
    )
    plain, options = _split(rest, flags=("--yes", "--force", "--nosync"), valued=valued)
    match command:
        case "vgchange":
            return OK
        case "pvcreate":
            self.locate(plain[0])
        case "vgcreate":
            for device in plain[1:]:
                self.locate(device)
            self.alias(f"/dev/{plain[0]}", plain[1], 0)
        case "lvcreate":
            group = f"/dev/{plain[0]}"
            self.locate(group)
            count = sum(name.startswith(group + "/") for name in self._aliases)
            self.alias(f"{group}/{options['--name']}", group, (count + 1) * _OFFSET_OF_VOLUME)
        case _:
            raise _Usage(f"no such command '{command}'")
    return OK


async def _erase(self: Programs, device: str) -> Completed:
    disk, _ = self.locate(device)
    error = await disk.erase()
    return failed(error) if error else OK


async def _nvme(self: Programs, arguments: list[str]) -> Completed:
    plain, _ = _split(arguments, flags=("--force",), valued=("--ses",))
    disk, _ = self.locate(plain[-1])
    if plain[0] != "format" or disk.spec.kind != "nvme":
        return failed("NVMe status: Invalid Command Opcode(0x1)")
    return await _erase(self, plain[-1])


async def _hdparm(self: Programs, arguments: list[str]) -> Completed:
    disk, _ = self.locate(arguments[-1])
    if disk.spec.kind == "nvme":
        return failed("HDIO_DRIVE_CMD(identify) failed: Inappropriate ioctl for device", 25)
    if arguments[0] == "-I":
        # Spinning disks of the simulation have no security feature set: their only way is the full overwrite.
        security = (
            "Security: \n\tsupported\n\tnot\tenabled\n\tnot\tlocked\n\tnot\tfrozen\n\tsupported: enhanced erase\n"
        )
        return Completed(0, (security if disk.spec.kind == "ssd" else "ATA device\n").encode())
    if "--security-erase" in arguments or "--security-erase-enhanced" in arguments:
        return await _erase(self, arguments[-1])
    return OK


async def _blkdiscard(self: Programs, arguments: list[str]) -> Completed:
    plain, _ = _split(arguments, flags=("--zeroout", "--force"))
    return await _erase(self, plain[0])


async def _chroot(self: Programs, arguments: list[str]) -> Completed:
    """Acts out the image's own installer: foreign programs cannot run here without root."""
    return await asyncio.to_thread(_write_boot_info, Path(arguments[0]), arguments[1])


def _write_boot_info(target: Path, program: str) -> Completed:
    root = target.resolve()
    if not (root / program.lstrip("/")).is_file():
        return failed(f"chroot: failed to run command '{program}': No such file or directory", 127)

    def first(pattern: str) -> str:
        found = sorted((root / "boot").glob(pattern))
        return f"/boot/{found[0].name}" if found else ""

    info = {
        "kernel": first("vmlinuz*"),
        "initrd": first("initrd*"),
        "cmdline": "root=LABEL=root ro console=ttyS0,115200n8",
        "bootloader_id": "metal",
    }
    directory = root / "etc" / "metal"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "boot-info.yaml").write_text(yaml.safe_dump(info))
    return OK


PROGRAMS: dict[str, Program] = {
    "blkdiscard": _blkdiscard,
    "blkid": _blkid,
    "chroot": _chroot,
    "hdparm": _hdparm,
    "lvm": _lvm,
    "mdadm": _mdadm,
    "mkfs.ext3": _mkfs("ext3", "-L", ("-F", "-q"), ("-E", "-O", "-b")),
    "mkfs.ext4": _mkfs("ext4", "-L", ("-F", "-q"), ("-E", "-O", "-b")),
    "mkfs.vfat": _mkfs("vfat", "-n", (), ("-F",)),
    "mkfs.xfs": _mkfs("xfs", "-L", ("-f", "-q"), ()),
    "mkswap": _mkfs("swap", "--label", ("--force",), ()),
    "mount": _mount,
    "nvme": _nvme,
    "partx": _nothing,
    "sgdisk": _sgdisk,
    "umount": _umount,
    "wipefs": _wipefs,
}
