"""Carrying a plan out: the commands in order, then the mounts. Destroys data; the caller has checked the grant."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from metal_hammer.disk.layout import Format, Layout
from metal_hammer.disk.plan import Command, Mount, Plan
from metal_hammer.failure import Code, Step, StepFailed
from metal_hammer.hardware.base import Completed, Hardware

MOUNT_DEADLINE = 60.0
"""Seconds for one mount or unmount."""


async def lay(hardware: Hardware, plan: Plan) -> None:
    """Partition and format. Raises StepFailed with the program and its last words."""
    for command in plan.commands:
        await _run(hardware, Step.PARTITION, command)


async def mount(hardware: Hardware, mounts: Iterable[Mount]) -> None:
    """Mount the file systems below the target directory, parents first. Raises StepFailed."""
    for entry in mounts:
        directory = inside(hardware.target, entry.path)
        await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
        options = ("-o", ",".join(entry.options)) if entry.options else ()
        argv = ("mount", "-t", str(entry.format), *options, entry.device, str(directory))
        await _run(hardware, Step.PARTITION, Command(argv, MOUNT_DEADLINE))


async def unmount(hardware: Hardware, mounts: Iterable[Mount]) -> None:
    """Unmount, children first. Raises StepFailed: a file system that stays busy may lose what was written to it."""
    for entry in reversed(list(mounts)):
        argv = ("umount", str(inside(hardware.target, entry.path)))
        await _run(hardware, Step.BOOTLOADER, Command(argv, MOUNT_DEADLINE))


async def uuids(hardware: Hardware, layout: Layout) -> dict[str, str]:
    """UUIDs of the file systems that fstab names, by device. Raises StepFailed when one has none."""
    found: dict[str, str] = {}
    for entry in layout.filesystems:
        if entry.format in (Format.NONE, Format.TMPFS) or not (entry.path or entry.format is Format.SWAP):
            continue
        done = await _run(hardware, Step.CONFIGURE, Command(("blkid", "-o", "value", "-s", "UUID", entry.device)))
        found[entry.device] = done.stdout.decode(errors="replace").strip()
        if not found[entry.device]:
            raise StepFailed(Step.CONFIGURE, Code.COMMAND_FAILED, f"{entry.device} has no UUID")
    return found


def inside(target: Path, path: str) -> Path:
    """Where an absolute path of the installed system lies while it is being installed."""
    return target / path.lstrip("/")


async def _run(hardware: Hardware, step: Step, command: Command) -> Completed:
    try:
        done = await hardware.run(command.argv, deadline=command.deadline)
    except TimeoutError:
        detail = f"{' '.join(command.argv)} took longer than {command.deadline:.0f} s"
        raise StepFailed(step, Code.COMMAND_TIMEOUT, detail) from None
    if done.returncode != 0 and not command.may_fail:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        detail = f"{' '.join(command.argv)} ended with {done.returncode}{': ' + last[0] if last else ''}"
        raise StepFailed(step, Code.COMMAND_FAILED, detail)
    return done
