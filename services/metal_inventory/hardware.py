"""What a machine consists of, as far as rules look at it.

The full report of the installer is kept as it came; these are the facts that sizes and layouts are matched against.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cpu:
    """One processor package."""

    model: str
    cores: int


@dataclass(frozen=True, slots=True)
class Disk:
    """One block device; ``name`` as the installer's kernel calls it, with or without ``/dev/``."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """One graphics processor or accelerator."""

    model: str


@dataclass(frozen=True, slots=True)
class Hardware:
    """The countable parts of a machine."""

    memory_bytes: int = 0
    cpus: tuple[Cpu, ...] = ()
    disks: tuple[Disk, ...] = ()
    gpus: tuple[Gpu, ...] = ()
