"""A simulated disk: a sparse file with its bytes, and beside it the trees of the file systems on it.

`raw` holds what a disk would hold: a partition table and one superblock a file system, in a format of its own. A tree
is valid only together with its superblock, so whatever overwrites the bytes takes the files away, too. Every access is
a coroutine that looks at the power between two chunks.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_sim.machine.facts import Disk
from metal_sim.machine.faults import MachineFaults

MIB = 1024 * 1024
CHUNK = MIB
_TABLE_MAGIC = b"SIMTABLE"
_SUPERBLOCK_MAGIC = b"SIMSUPER"
_RECORD_LIMIT = 64 * 1024


class SimulatedDisk:
    """The medium behind one `Disk`. `checkpoint` raises when the machine has no power."""

    def __init__(self, spec: Disk, directory: Path, faults: MachineFaults, checkpoint: Callable[[], None]) -> None:
        self.spec = spec
        self.directory = directory
        self.raw = directory / "raw"
        self.root = directory / "root"
        self._faults = faults
        self._checkpoint = checkpoint
        directory.mkdir(parents=True, exist_ok=True)
        self.root.mkdir(exist_ok=True)
        if not self.raw.exists():
            with self.raw.open("wb") as file:
                file.truncate(spec.size_bytes)

    async def read(self, offset: int, length: int) -> bytes:
        """Bytes of the disk; fewer at its end."""
        await self._pace()
        with self.raw.open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    async def write(self, offset: int, data: bytes) -> None:
        """Change bytes of the disk. Raises OSError beyond its end, or when the fault is switched on."""
        await self._pace()
        if self.spec.serial in self._faults.wipe_fails:
            raise OSError(5, "Input/output error", str(self.spec.device))
        if offset < 0 or offset + len(data) > self.spec.size_bytes:
            raise OSError(28, "No space left on device", str(self.spec.device))
        if any(data):
            with self.raw.open("r+b") as file:
                os.pwrite(file.fileno(), data, offset)
        elif self.spec.serial not in self._faults.wipe_lies:
            self._write_zeros(offset, len(data))
        self._forget_orphans()

    async def erase(self) -> str:
        """What a drive's own erase command does; returns its error. Overwrites all that was ever written."""
        if self.spec.serial in self._faults.wipe_fails:
            return "Input/output error"
        if self.spec.serial in self._faults.wipe_lies:
            return ""
        with self.raw.open("r+b") as file:
            for offset, length in _extents(file.fileno(), 0, self.spec.size_bytes):
                for at in range(offset, offset + length, CHUNK):
                    await self._pace()
                    part = min(CHUNK, offset + length - at)
                    await asyncio.to_thread(os.pwrite, file.fileno(), bytes(part), at)
            file.truncate(0)
            file.truncate(self.spec.size_bytes)
        await asyncio.to_thread(self._forget_orphans)
        return ""

    def _write_zeros(self, offset: int, length: int) -> None:
        """Zero only what holds data: overwriting a big simulated disk must not fill the disk of the host."""
        with self.raw.open("r+b") as file:
            for begin, size in _extents(file.fileno(), offset, offset + length):
                os.pwrite(file.fileno(), bytes(size), begin)

    @property
    def table(self) -> dict[str, Any]:
        """The partition table: {"partitions": {number: {start_mib, size_mib, type, label}}}; empty without one."""
        return self._record(0, _TABLE_MAGIC)

    def write_table(self, table: dict[str, Any]) -> None:
        """Replace the partition table; an empty one removes it."""
        self._write_record(0, _TABLE_MAGIC, table)

    def superblock(self, offset: int) -> dict[str, Any]:
        """The superblock at an offset: {format, label, uuid}; empty without one."""
        return self._record(offset, _SUPERBLOCK_MAGIC)

    def make_filesystem(self, offset: int, kind: str, label: str) -> None:
        """Write a superblock with a fresh UUID; the file system is empty."""
        self._write_record(offset, _SUPERBLOCK_MAGIC, {"format": kind, "label": label, "uuid": str(uuid.uuid4())})

    @property
    def has_files(self) -> bool:
        """Whether anything is left in the disk's tree."""
        return any(self.root.iterdir())

    def clear_root(self) -> None:
        """Empty the disk's tree."""
        for entry in self.root.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _forget_orphans(self) -> None:
        """A tree without its superblock is not reachable any more: what overwrote the one has lost the other."""
        marker = self.directory / "root-at"
        if marker.exists() and not self.superblock(int(marker.read_text())):
            self.clear_root()
            marker.unlink()

    def mount_root(self, offset: int) -> None:
        """Remember which superblock the tree belongs to; a tree of an earlier file system is emptied."""
        marker = self.directory / "root-at"
        identity = self.directory / "root-uuid"
        found = self.superblock(offset)["uuid"]
        if not identity.exists() or identity.read_text() != found:
            self.clear_root()
        identity.write_text(found)
        marker.write_text(str(offset))

    @property
    def root_is_valid(self) -> bool:
        """Whether the tree still has its superblock."""
        marker, identity = self.directory / "root-at", self.directory / "root-uuid"
        if not (marker.exists() and identity.exists()):
            return False
        return bool(self.superblock(int(marker.read_text())).get("uuid") == identity.read_text())

    def _record(self, offset: int, magic: bytes) -> dict[str, Any]:
        with self.raw.open("rb") as file:
            head = os.pread(file.fileno(), 12, offset)
            if head[:8] != magic:
                return {}
            length = int.from_bytes(head[8:12], "big")
            content = os.pread(file.fileno(), min(length, _RECORD_LIMIT), offset + 12)
        try:
            found = json.loads(content)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _write_record(self, offset: int, magic: bytes, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        record = magic + len(text).to_bytes(4, "big") + text if content else bytes(12)
        with self.raw.open("r+b") as file:
            os.pwrite(file.fileno(), record, offset)

    async def _pace(self) -> None:
        self._checkpoint()
        # Also without a fault: a chunk is a point where the rest of the rack gets its turn.
        await asyncio.sleep(self._faults.slow_disks.get(self.spec.serial, 0.0))
        self._checkpoint()


def _extents(descriptor: int, begin: int, end: int) -> list[tuple[int, int]]:
    """Offset and length of the parts of a sparse file between two offsets that hold data."""
    found = []
    at = begin
    while at < end:
        try:
            data = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole up to the end of the file
            break
        if data >= end:
            break
        hole = min(os.lseek(descriptor, data, os.SEEK_HOLE), end)
        found.append((data, hole - data))
        at = hole
    return found
