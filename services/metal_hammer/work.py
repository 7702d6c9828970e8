"""What the control plane can tell the installer, and what the installer tells back. Plain values; no protobuf, no I/O.

`Plane` is the installer's view of the control plane; `client.py` is the one that speaks gRPC.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from metal_hammer.disk.layout import Layout
from metal_hammer.failure import StepFailed
from metal_hammer.grant import Grant
from metal_hammer.hardware.base import Disk, Facts, Neighbour
from metal_hammer.image.fetch import Source
from metal_hammer.wipe.erase import WipeResult


class Event(StrEnum):
    """Provisioning events that the installer sends."""

    ALIVE = "Alive"
    CRASHED = "Crashed"
    PLANNED_REBOOT = "Planned Reboot"
    PREPARING = "Preparing"
    REGISTERING = "Registering"
    WAITING = "Waiting"
    INSTALLING = "Installing"
    BOOTING_NEW_KERNEL = "Booting New Kernel"


class Verdict(StrEnum):
    """What a registering machine is in for. It permits nothing."""

    CLEAN = "clean"
    INSTALL = "install"
    BOOT_EXISTING = "boot existing"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class BootInfo:
    """How an installed system is started. Paths are absolute within its root file system."""

    kernel: str
    initrd: str
    command_line: str
    bootloader_id: str = ""


@dataclass(frozen=True, slots=True)
class InstallSpec:
    """Everything that is needed to install. `facts` goes into install.yaml as it is."""

    allocation_id: str
    role: str
    hostname: str
    image_id: str
    source: Source
    layout: Layout
    disk_serials: frozenset[str]
    reinstall: bool = False
    networks: Sequence[Mapping[str, Any]] = ()
    asn: int = 0
    ssh_keys: tuple[str, ...] = ()
    userdata: bytes = field(default=b"", repr=False)
    dns_servers: tuple[str, ...] = ()
    ntp_servers: tuple[str, ...] = ()
    firewall_rules: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Wipe:
    """Wipe the granted disks, then report."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class Install:
    """Install, then report."""

    grant: Grant
    spec: InstallSpec


@dataclass(frozen=True, slots=True)
class Start:
    """Start the installed kernel."""

    allocation_id: str
    boot_info: BootInfo


@dataclass(frozen=True, slots=True)
class BootExisting:
    """Leave the installer and boot the local disk."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Reboot:
    """Begin anew."""

    reason: str = ""


Item = Wait | Wipe | Install | Start | BootExisting | Reboot


@dataclass(frozen=True, slots=True)
class Registration:
    """The control plane's answer to a registration."""

    generation: int
    verdict: Verdict
    size: str = ""
    partition: str = ""
    rack: str = ""


class PlaneError(Exception):
    """The control plane did not take a call. `retry` says whether the same call may succeed later, `after` how many
    seconds the plane wants to be left alone; 0 if it has not said."""

    def __init__(self, reason: str, message: str, *, retry: bool, after: float = 0.0) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.retry = retry
        self.after = after


class Plane(Protocol):
    """The control plane. Every method has its own deadline and raises PlaneError."""

    async def register(self, facts: Facts, neighbours: Mapping[str, Sequence[Neighbour]]) -> Registration:
        """Register this start of the installer. Repeating it is the same registration."""

    async def report_event(self, event: Event, event_id: str, message: str) -> None:
        """Report a provisioning event. `event_id` is a UUID: a repetition counts once."""

    def work(self, generation: int) -> AsyncIterator[Item]:
        """Follow what is to be done. Ends or raises when the connection does; open it again."""

    async def report_wipe(self, generation: int, results: Sequence[WipeResult]) -> None:
        """Report what a wipe did to each disk."""

    async def report_progress(self, allocation_id: str, step: str, percent: int, message: str) -> None:
        """Report how far an installation is."""

    async def report_installed(self, allocation_id: str, boot_info: BootInfo, touched: Sequence[Disk]) -> None:
        """Report that the installation succeeded."""

    async def report_failed(self, allocation_id: str, failure: StepFailed, touched: Sequence[Disk]) -> None:
        """Report that the installation failed."""
