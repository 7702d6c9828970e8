"""The driver interface: what the service wants from a BMC, whatever protocol or library answers it.

Every method ends within `deadline` seconds and raises a `BmcError`. A driver may keep sessions between two calls; it
gives them up when the login changes, when nobody asks for a while, and when it is closed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class BootTarget(StrEnum):
    """Where a machine is told to boot from."""

    PXE = "pxe"
    DISK = "disk"
    BIOS = "bios"


@dataclass(frozen=True, slots=True)
class Target:
    """A BMC and how to log in. Never logged: the password is kept out of repr as the last line of defence."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class BootSetting:
    """The boot override as read back. `target` is None when there is none, or one that we have no name for."""

    target: BootTarget | None
    persistent: bool
    uefi: bool


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """Who the BMC says it is. `machine` is the canonical SMBIOS UUID or empty, `fru` the strings of FRU 0 by name."""

    machine: str
    firmware: str
    manufacturer_id: int
    product_id: int
    powered: bool
    fru: dict[str, str]


class BmcDriver(Protocol):
    """Operations on one BMC."""

    async def powered(self, target: Target, *, deadline: float) -> bool:
        """Read whether the machine is on."""
        ...

    async def set_power(self, target: Target, *, on: bool, deadline: float) -> None:
        """Order power on or off (hard). Idempotent, so it is re-sent when an answer is lost; read back separately."""
        ...

    async def reset(self, target: Target, *, deadline: float) -> None:
        """Order a hard reset. Sent exactly once; a lost answer raises BmcTimeout and leaves the outcome unknown."""
        ...

    async def set_boot(self, target: Target, boot: BootTarget, *, disk_selector: int, deadline: float) -> BootSetting:
        """Set the boot override and return what the BMC reads back. `disk_selector` is the IPMI device byte of disk."""
        ...

    async def boot(self, target: Target, *, deadline: float) -> BootSetting:
        """Read the boot override."""
        ...

    async def set_identify(self, target: Target, *, on: bool, deadline: float) -> bool | None:
        """Switch the identify light; returns its state as read back, None when the BMC does not tell."""
        ...

    async def inspect(self, target: Target, *, deadline: float) -> DeviceInfo:
        """Read device id, machine UUID, FRU and power."""
        ...
