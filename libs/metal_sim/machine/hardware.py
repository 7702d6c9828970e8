"""A simulated machine as its installer sees it: the same shape as the backend for real Linux machines.

Disks are files below one directory and survive power cuts; everything else is in memory. Power is a question that is
asked in every chunk of work (`checkpoint`), so that switching a machine off stops its installer in the middle of a
step, as it does in a rack.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from metal_sim.machine.disk import SimulatedDisk
from metal_sim.machine.facts import Completed, MachineFacts, Neighbour
from metal_sim.machine.faults import KernelStarted, MachineFaults, MachineStopped, PowerLost, Rebooted
from metal_sim.machine.programs import Programs

Wiring = Callable[[str], Sequence[Neighbour]]
"""Neighbours on the cable of the NIC with this MAC."""


@dataclass(frozen=True, slots=True)
class InstalledSystem:
    """An operating system that the firmware would find on a disk."""

    root: Path
    kernel: str
    command_line: str
    hostname: str
    install: Mapping[str, Any] = field(repr=False)


class SimulatedHardware:
    """One machine. `powered` says whether it has power; `wiring` knows the other ends of its cables."""

    def __init__(
        self,
        facts: MachineFacts,
        directory: Path,
        *,
        powered: Callable[[], bool] = lambda: True,
        wiring: Wiring = lambda mac: (),
        faults: MachineFaults | None = None,
    ) -> None:
        self.machine = facts
        self.faults = faults or MachineFaults()
        self._powered = powered
        self._wiring = wiring
        self._target = directory / "target"
        self._loaded: tuple[Path, Path | None, str] | None = None
        self.disks = {
            disk.serial: SimulatedDisk(disk, directory / "disks" / disk.serial, self.faults, self._check_power)
            for disk in facts.disks
        }
        self._programs = Programs(tuple(self.disks.values()), self._target)
        self.history: list[tuple[str, ...]] = []
        """Programs that ran, in order."""

    @property
    def target(self) -> Path:
        """Where the installed system's file systems are mounted."""
        return self._target

    def reset(self) -> None:
        """What a reset takes away: mounts and a loaded kernel. Called by the firmware before it boots anything."""
        self._programs.release()
        self._loaded = None
        self.history.clear()

    def checkpoint(self, step: str = "") -> None:
        """Raises PowerLost without power, and SimulatedCrash where that fault is switched on for `step`."""
        self._check_power()
        self.faults.entering(step)

    async def facts(self) -> MachineFacts:
        """What the machine is made of."""
        await self._yield()
        return self.machine

    async def neighbours(self, *, within: float, enough: int) -> Mapping[str, Sequence[Neighbour]]:
        """LLDP neighbours by interface name; waits like a real machine until enough are heard or the time is over."""
        end = asyncio.get_running_loop().time() + within
        while True:
            await self._yield()
            heard = {
                nic.name: list(self._wiring(nic.mac)) if nic.mac not in self.faults.no_lldp else []
                for nic in self.machine.nics
            }
            left = end - asyncio.get_running_loop().time()
            if sum(bool(found) for found in heard.values()) >= enough or left <= 0:
                return heard
            await asyncio.sleep(min(0.1, left))

    async def run(self, argv: Sequence[str], *, deadline: float, stdin: bytes = b"") -> Completed:
        """Act a program out. Raises TimeoutError after `deadline` seconds."""
        await self._yield()
        self.history.append(tuple(argv))
        async with asyncio.timeout(deadline):
            done = await self._programs.run(argv)
        self._check_power()
        return done

    async def read_at(self, device: str, offset: int, length: int) -> bytes:
        """Bytes of a whole disk."""
        return await self._disk(device).read(offset, length)

    async def write_at(self, device: str, offset: int, data: bytes) -> None:
        """Change bytes of a whole disk. Raises OSError."""
        await self._disk(device).write(offset, data)

    async def flush(self, device: str) -> None:
        """Nothing is held back here."""
        self._disk(device)
        await self._yield()

    async def kexec_load(self, kernel: Path, initrd: Path | None, command_line: str) -> None:
        """Load a kernel. Raises OSError when a file is missing."""
        await self._yield()
        self._loaded = (_file(kernel), None if initrd is None else _file(initrd), command_line)

    async def kexec(self) -> None:
        """Start the loaded kernel: raises KernelStarted."""
        await self._yield()
        if self._loaded is None:
            raise OSError(22, "Nothing has been loaded")
        kernel, initrd, command_line = self._loaded
        raise KernelStarted(self._target.resolve(), kernel, initrd, command_line)

    async def reboot(self) -> None:
        """Reset the machine: raises Rebooted."""
        await self._yield()
        raise Rebooted

    def installed_system(self) -> InstalledSystem | None:
        """What booting from the local disks finds: a system whose partition table, superblock and kernel are there."""
        for disk in self.disks.values():
            info_file = disk.root / "etc" / "metal" / "boot-info.yaml"
            if not (disk.table and disk.root_is_valid and info_file.is_file()):
                continue
            info = yaml.safe_load(info_file.read_text())
            kernel = str(info.get("kernel", ""))
            if not (disk.root / kernel.lstrip("/")).is_file():
                continue
            install_file = disk.root / "etc" / "metal" / "install.yaml"
            install = yaml.safe_load(install_file.read_text()) if install_file.is_file() else {}
            return InstalledSystem(
                disk.root, kernel, str(info.get("cmdline", "")), str(install.get("hostname", "")), install
            )
        return None

    def _disk(self, device: str) -> SimulatedDisk:
        for disk in self.disks.values():
            if disk.spec.device == device:
                return disk
        raise FileNotFoundError(2, "No such file or directory", device)

    def _check_power(self) -> None:
        if not self._powered():
            raise PowerLost

    async def _yield(self) -> None:
        self._check_power()
        await asyncio.sleep(0)
        self._check_power()


def _file(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return path.resolve()


async def run_until_stopped(installer: Coroutine[Any, Any, object]) -> MachineStopped:
    """Run an installer until its machine stops, and say how. Raises RuntimeError when it returns instead.

    Other exceptions pass. Where several parts of an installer met the stop at once, the first one counts.
    """
    try:
        await installer
    except MachineStopped as stopped:
        return stopped
    except BaseExceptionGroup as group:
        stops, rest = group.split(MachineStopped)
        if rest is not None or stops is None:
            raise
        found: BaseException = stops
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        if isinstance(found, MachineStopped):
            return found
        raise
    raise RuntimeError("the installer returned, and a processor cannot")
