"""Erasing one disk, and all disks of a machine at once.

Each disk ends with a result; a disk that could not be erased *and* proven erased has an error in it, and the machine
must not be offered to anyone. Nothing is swallowed and nothing is assumed: a method counts only when the samples say
so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from metal_hammer.hardware.base import Disk, Hardware
from metal_hammer.wipe import verify
from metal_hammer.wipe.methods import Command, Method, methods

CHUNK = 4 * 1024 * 1024
"""Bytes of one write of a full overwrite."""

PARALLEL = 16
"""Disks at a time; a storage server has up to a hundred, and each overwrite holds one chunk in memory."""


RELEASE = (
    Command(("lvm", "vgchange", "--activate", "n"), 60.0),
    Command(("mdadm", "--stop", "--scan"), 60.0),
)
"""Lets go of what the kernel has assembled from the last owner's disks: they would be busy. Nothing to let go of is an
error for neither, so their exit codes say nothing; a disk that stays busy refuses its first write."""


@dataclass(frozen=True, slots=True)
class WipeResult:
    """What happened to one disk. `duration` is in seconds; `error` is empty exactly when the disk is clean."""

    serial: str
    device: str
    method: str
    verified: bool
    duration: float
    error: str = ""


async def erase_all(hardware: Hardware, disks: Sequence[Disk]) -> list[WipeResult]:
    """Erase disks, several at a time. One that fails does not keep the others from being erased.

    The caller has checked the grant for every one of `disks`. Raises TimeoutError when letting go of arrays hangs.
    """
    for command in RELEASE:
        await hardware.run(command.argv, deadline=command.deadline)
    limit = asyncio.Semaphore(PARALLEL)

    async def limited(disk: Disk) -> WipeResult:
        async with limit:
            return await erase(hardware, disk)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(limited(disk)) for disk in disks]
    return [task.result() for task in tasks]


async def erase(hardware: Hardware, disk: Disk) -> WipeResult:
    """Erase one disk by the best method that works. Failures of the disk are in the result, never raised."""
    began = time.monotonic()

    def result(method: str, *, verified: bool, error: str = "") -> WipeResult:
        return WipeResult(disk.serial, disk.device, method, verified, time.monotonic() - began, error[:1024])

    if disk.read_only:
        return result("", verified=False, error="the disk is read-only")
    problems: list[str] = []
    for method in methods(kind=disk.kind, device=disk.device):
        try:
            problem = await _try(hardware, disk, method)
        except (OSError, TimeoutError) as error:
            problem = str(error) or type(error).__name__
        if not problem:
            return result(method.name, verified=True)
        problems.append(f"{method.name}: {problem}")
    return result(methods(kind=disk.kind, device=disk.device)[-1].name, verified=False, error="; ".join(problems))


async def _try(hardware: Hardware, disk: Disk, method: Method) -> str:
    """Returns why the method did not erase the disk, or an empty string. Raises OSError and TimeoutError."""
    if method.probe is not None:
        answer = await hardware.run(method.probe.command.argv, deadline=method.probe.command.deadline)
        said = " ".join(answer.stdout.decode(errors="replace").split())
        if answer.returncode != 0 or not method.probe.holds(said):
            return "not supported, or frozen"
    canaries = await verify.plant(hardware, device=disk.device, size_bytes=disk.size_bytes)
    if not method.commands:
        await overwrite(hardware, disk)
    try:
        problem = await _run(hardware, method.commands)
    except TimeoutError:
        await _run(hardware, method.undo)
        raise
    if problem:
        await _run(hardware, method.undo)
        return problem
    return await verify.check(hardware, canaries, method.after)


async def _run(hardware: Hardware, commands: Iterable[Command]) -> str:
    for command in commands:
        done = await hardware.run(command.argv, deadline=command.deadline)
        if done.returncode != 0:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            return f"{command.argv[0]} ended with {done.returncode}{': ' + last[0] if last else ''}"
    return ""


async def overwrite(hardware: Hardware, disk: Disk) -> None:
    """Write zeros over every byte of the disk, the last partial chunk included. Raises OSError."""
    zeros = bytes(CHUNK)
    for offset in range(0, disk.size_bytes, CHUNK):
        hardware.checkpoint()
        await hardware.write_at(disk.device, offset, zeros[: disk.size_bytes - offset])
    await hardware.flush(disk.device)
