"""The commands of a plan, given to the real programs: they must take every option that the planner writes.

Files stand for the disks, so no root is needed; what needs the kernel (partx, mdadm, lvm, mount) is left to real
machines.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from metal_hammer.disk.layout import Filesystem, Format, Layout, LayoutDisk, Partition
from metal_hammer.disk.plan import Command, plan
from metal_hammer.hardware.facts import Disk
from metal_hammer.hardware.linux import LinuxHardware

pytestmark = pytest.mark.peer

MIB = 1024 * 1024
DISK = Disk("/dev/sda", "S1", "hdd", 2048 * MIB)
FORMATS = (Format.VFAT, Format.EXT3, Format.EXT4, Format.XFS, Format.SWAP)
LAYOUT = Layout(
    disks=(
        LayoutDisk(
            "/dev/sda",
            tuple(Partition(number, 320, f"part {number}") for number in range(1, len(FORMATS) + 1)),
        ),
    ),
    filesystems=tuple(
        Filesystem(f"/dev/sda{number}", format_, "/" if format_ is Format.EXT4 else "", f"label{number}")
        for number, format_ in enumerate(FORMATS, 1)
    ),
)
COMMANDS = [command for command in plan(LAYOUT, [DISK], reinstall=False).commands if command.argv[0] != "partx"]


def need(program: str) -> None:
    """Skip without the program, unless the run says that none may be missing."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    if shutil.which(program, path=path) is None and os.environ.get("METALPLANE_REQUIRE_PEERS") != "1":
        pytest.skip(f"{program} is not installed")


def on_files(command: Command, directory: Path) -> list[str]:
    """The command with files of the right size instead of devices."""
    words = []
    for word in command.argv:
        if word.startswith("/dev/"):
            file = directory / Path(word).name
            if not file.exists():
                file.touch()
                os.truncate(file, DISK.size_bytes if word == DISK.device else 320 * MIB)
            words.append(str(file))
        else:
            words.append(word)
    return words


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.argv[:2]))
async def test_a_real_program_takes_the_command_of_the_plan(command: Command, tmp_path: Path) -> None:
    need(command.argv[0])
    done = await LinuxHardware().run(on_files(command, tmp_path), deadline=command.deadline)
    assert done.returncode == 0, done.stderr.decode()


async def test_blkid_finds_what_the_formats_made(tmp_path: Path) -> None:
    need("blkid")
    need("mkfs.ext4")
    make = next(command for command in COMMANDS if command.argv[0] == "mkfs.ext4")
    words = on_files(make, tmp_path)
    hardware = LinuxHardware()
    assert (await hardware.run(words, deadline=60)).returncode == 0
    found = await hardware.run(("blkid", "-o", "value", "-s", "UUID", words[-1]), deadline=10)
    assert len(found.stdout.decode().strip()) == 36
