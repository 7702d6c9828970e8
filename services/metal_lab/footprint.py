"""How much memory the lab takes: the resident sets of its processes, shared pages counted once as far as is known."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory in MiB and the number of processes."""

    rss_mib: float
    processes: int


def measure(pid: int) -> Footprint:
    """Sum over a process and its descendants. Proportional set size where the kernel tells it: Postgres' backends share
    their buffers, and each of them would count them again."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return Footprint(0, 0)
    total = 0
    count = 0
    for process in family:
        try:
            total += _resident(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        count += 1
    return Footprint(total / MIB, count)


def _resident(process: psutil.Process) -> int:
    try:
        full = process.memory_full_info()
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
    return int(getattr(full, "pss", full.rss))
