from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from metal_hammer.hardware import process
from metal_hammer.hardware.facts import Disk
from metal_hammer.hardware.linux import LinuxHardware
from metal_hammer.wipe.erase import erase

MIB = 1024 * 1024


async def test_a_program_gives_its_code_and_its_output() -> None:
    done = await process.run(("sh", "-c", "cat; echo err >&2; exit 3"), deadline=10, stdin=b"in")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"in", b"err\n")


async def test_a_missing_program_is_127() -> None:
    assert (await process.run(("no-such-program",), deadline=10)).returncode == 127


async def test_only_the_end_of_long_output_is_kept() -> None:
    done = await process.run((sys.executable, "-c", "print('x' * 500_000 + 'end')"), deadline=20)
    assert len(done.stdout) == process.KEPT
    assert done.stdout.endswith(b"xend\n")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def child_of(file: Path) -> int:
    limit = time.monotonic() + 10
    while not (file.exists() and file.read_text().strip()):  # noqa: ASYNC240 - a file of another process
        assert time.monotonic() < limit
        await asyncio.sleep(0.01)
    return int(file.read_text())  # noqa: ASYNC240


async def test_a_program_that_takes_too_long_is_killed_with_its_children(tmp_path: Path, eventually: Any) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(TimeoutError):
        await process.run(("sh", "-c", script), deadline=1.0)
    pid = await child_of(tmp_path / "pid")
    await eventually(lambda: not alive(pid))


async def test_a_cancelled_caller_leaves_no_program_behind(tmp_path: Path, eventually: Any) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/pid; wait"
    task = asyncio.create_task(process.run(("sh", "-c", script), deadline=60))
    pid = await child_of(tmp_path / "pid")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: not alive(pid))


async def test_a_disk_is_read_and_written_at_any_offset(tmp_path: Path) -> None:
    device = tmp_path / "disk"
    device.write_bytes(os.urandom(64 * 1024))
    hardware = LinuxHardware()
    await hardware.write_at(str(device), 4096, b"a" * 4096)
    await hardware.write_at(str(device), 10_001, b"odd")
    await hardware.flush(str(device))
    assert await hardware.read_at(str(device), 4096, 4096) == b"a" * 4096
    assert await hardware.read_at(str(device), 10_001, 3) == b"odd"
    assert device.stat().st_size == 64 * 1024


async def test_a_real_file_is_overwritten_to_its_last_byte(tmp_path: Path) -> None:
    """The last method of every disk, through the reads and writes of the backend for real machines."""
    size = 9 * MIB + 512
    device = tmp_path / "disk"
    device.write_bytes(b"secret!\n" * (size // 8))
    disk = Disk(str(device), "S1", "hdd", size)
    result = await erase(LinuxHardware(), disk)
    assert (result.method, result.error) == ("overwrite", "")
    assert not any(device.read_bytes())
    assert device.stat().st_size == size
