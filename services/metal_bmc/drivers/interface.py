"""The driver interface: what the service wants from a BMC, whatever protocol or library answers it.

Every method ends within `deadline` seconds and raises a `BmcError`. A driver may keep sessions between two calls; it
gives them up when the login changes, when nobody asks for a while, and when it is closed. What a BMC cannot do raises
`BmcUnsupported`; nothing is passed off as done.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from metal_bmc.drivers.quirks import PLAIN, Quirks


class DriverKind(StrEnum):
    """Who carries out what a machine's BMC is told. MANUAL: there is no BMC, a person does it."""

    IPMI = "ipmi"
    REDFISH = "redfish"
    MANUAL = "manual"


class Capability(StrEnum):
    """One thing that the BMC of a machine can do, or that nothing speaks against."""

    POWER_ON = "power_on"
    POWER_OFF = "power_off"
    # The BMC's own off-and-on in one order; our CYCLE is made of POWER_OFF and POWER_ON.
    POWER_CYCLE = "power_cycle"
    POWER_RESET = "power_reset"
    # Asks the operating system to shut down (ACPI power button).
    POWER_SOFT_OFF = "power_soft_off"
    # Non-maskable interrupt: a running system writes its crash dump.
    NMI = "nmi"
    BOOT_ONCE = "boot_once"
    BOOT_PERSISTENT = "boot_persistent"
    BOOT_UEFI = "boot_uefi"
    BOOT_BIOS = "boot_bios"
    IDENTIFY = "identify"
    SENSORS = "sensors"
    FRU = "fru"
    SEL = "sel"
    POWER_METRICS = "power_metrics"
    USERS = "users"
    CONSOLE = "console"
    VIRTUAL_MEDIA = "virtual_media"
    FIRMWARE_INVENTORY = "firmware_inventory"
    FIRMWARE_UPDATE = "firmware_update"
    BIOS_SETTINGS = "bios_settings"


class BootTarget(StrEnum):
    """Where a machine is told to boot from. BIOS is the firmware's setup."""

    PXE = "pxe"
    DISK = "disk"
    BIOS = "bios"


class BootMode(StrEnum):
    """How the firmware boots: by UEFI, or as a PC BIOS did ("legacy")."""

    UEFI = "uefi"
    BIOS = "bios"


@dataclass(frozen=True, slots=True)
class BootWish:
    """A boot override that is wanted: for the next boot only, or until it is changed. `mode` None: UEFI is asked for,
    and a BMC that keeps the mode to itself is no failure."""

    target: BootTarget
    persistent: bool = True
    mode: BootMode | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A BMC and how to log in. Never logged: the password is kept out of repr as the last line of defence."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    driver: DriverKind = DriverKind.IPMI
    quirks: Quirks = PLAIN
    # SHA-256 of the TLS certificate that the BMC has to show (Redfish); empty: any is taken.
    fingerprint: bytes = b""


@dataclass(frozen=True, slots=True)
class BootSetting:
    """The boot override as read back. `target` is None when there is none, or one that we have no name for; `mode` is
    None when the BMC keeps it to itself."""

    target: BootTarget | None
    persistent: bool
    mode: BootMode | None


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """Who the BMC says it is, and what it can do.

    `guid` is the system GUID, 16 bytes as the BMC sent them, or empty; `machine` its reading as an SMBIOS UUID, or
    empty. `fru` holds the strings of FRU 0 by the names of pyghmi's parser ("Manufacturer", "Model", "Board serial
    number", …), which a driver without FRU uses too. `mac` is the BMC's own address where it tells, `fingerprint` the
    SHA-256 of the TLS certificate that it showed, empty where there is none.
    """

    machine: str
    firmware: str
    manufacturer_id: int
    product_id: int
    powered: bool
    fru: dict[str, str]
    guid: bytes = b""
    mac: str = ""
    capabilities: frozenset[Capability] = frozenset()
    fingerprint: bytes = b""


class BmcDriver(Protocol):
    """Operations on one BMC."""

    async def powered(self, target: Target, *, deadline: float) -> bool:
        """Read whether the machine is on."""
        ...

    async def set_power(self, target: Target, *, on: bool, deadline: float) -> None:
        """Order power on or off (hard). Idempotent, so it is re-sent when an answer is lost; read back separately."""
        ...

    async def soft_off(self, target: Target, *, deadline: float) -> None:
        """Ask the operating system to shut down. Idempotent; whether it does is seen by reading the power."""
        ...

    async def reset(self, target: Target, *, deadline: float) -> None:
        """Order a hard reset. Sent exactly once; a lost answer raises BmcTimeout and leaves the outcome unknown."""
        ...

    async def interrupt(self, target: Target, *, deadline: float) -> None:
        """Order a non-maskable interrupt. Sent exactly once, as `reset` is."""
        ...

    async def set_boot(self, target: Target, wish: BootWish, *, deadline: float) -> BootSetting:
        """Set the boot override and return what the BMC reads back."""
        ...

    async def boot(self, target: Target, *, deadline: float) -> BootSetting:
        """Read the boot override."""
        ...

    async def set_identify(self, target: Target, *, on: bool, deadline: float) -> bool | None:
        """Switch the identify light; returns its state as read back, None when the BMC does not tell."""
        ...

    async def inspect(self, target: Target, *, deadline: float) -> DeviceInfo:
        """Read identity, capabilities, FRU and power."""
        ...

    async def close(self) -> None:
        """Log out everywhere and give up what the driver holds."""
        ...
