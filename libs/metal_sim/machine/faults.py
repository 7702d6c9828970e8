"""What can go wrong with a simulated machine, and the ways in which it stops.

The ways to stop are `BaseException`s on purpose: no handler in the installer may take a power cut for an error that it
can report, just as none can on a real machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


class MachineStopped(BaseException):
    """The processor no longer runs what it ran."""


class PowerLost(MachineStopped):
    """Somebody switched the machine off."""


class Rebooted(MachineStopped):
    """The installer asked for a reset."""


@dataclass
class KernelStarted(MachineStopped):
    """The installer started the installed kernel. `root` is the system's root directory."""

    root: Path
    kernel: Path
    initrd: Path | None
    command_line: str

    def __post_init__(self) -> None:
        super().__init__(str(self.kernel))


class SimulatedCrash(Exception):
    """A fault that was switched on: the installer falls over here."""


@dataclass
class MachineFaults:
    """Faults by name, switched on and off while the machine runs.

    `wipe_fails`: disks that answer an erase, and every write, with an I/O error. `wipe_lies`: disks that claim to have
    erased, or to have written zeros, and kept everything. `crash_at`: step of the installer at which it crashes; taken
    off by the crash unless `crash_always`. `slow_disks`: seconds that each chunk takes, by serial. `no_lldp`: MACs of
    NICs that hear nothing.
    """

    wipe_fails: set[str] = field(default_factory=set)
    wipe_lies: set[str] = field(default_factory=set)
    crash_at: str = ""
    crash_always: bool = False
    slow_disks: dict[str, float] = field(default_factory=dict)
    no_lldp: set[str] = field(default_factory=set)

    def entering(self, step: str) -> None:
        """Crash if that is wanted at this step."""
        if step and step == self.crash_at:
            if not self.crash_always:
                self.crash_at = ""
            raise SimulatedCrash(f"switched on for step {step}")
