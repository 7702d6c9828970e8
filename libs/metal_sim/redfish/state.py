"""What a simulated Redfish BMC keeps: its machine, its sensors, its log, and the update that is under way."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Any

from metal_sim.bmc.chassis import BootDevice, Chassis
from metal_sim.redfish.faults import DUPLICATE, RedfishFault, RedfishFaults
from metal_sim.redfish.personality import Personality
from metal_sim.redfish.sessions import SessionTable

Document = dict[str, Any]

_VALID, _PERSISTENT, _UEFI = 0x80, 0x40, 0x20
_DEVICES = {
    "Pxe": BootDevice.PXE,
    "Hdd": BootDevice.DISK,
    "Cd": BootDevice.CD,
    "BiosSetup": BootDevice.SETUP,
}
_SOURCES = {device: source for source, device in _DEVICES.items()}


@dataclass
class LogEntry:
    """One of the event log. `severity` is OK, Warning or Critical."""

    id: int
    created: datetime.datetime
    severity: str
    message_id: str
    message: str


@dataclass
class Update:
    """A firmware update. It goes on at each look at its task: `left` looks until it is done."""

    id: str
    image: str
    component: str
    version: str
    left: int
    state: str = "Running"


@dataclass
class Sensors:
    """What the sensors read: degrees Celsius, rpm, W, V."""

    temperatures: dict[str, float] = field(default_factory=lambda: {"Inlet": 22.5, "CPU 1": 48.0})
    fans: dict[str, float] = field(default_factory=lambda: {"Fan 1": 5400.0, "Fan 2": 5520.0})
    supplies: dict[str, float] = field(default_factory=lambda: {"PSU 1": 118.0, "PSU 2": 121.5})
    voltages: dict[str, float] = field(default_factory=lambda: {"12V": 12.1})
    broken: set[str] = field(default_factory=set)

    @property
    def watts(self) -> float:
        """What the machine draws."""
        return sum(self.supplies.values())

    def health(self, name: str) -> str:
        """OK, or Critical for what is broken."""
        return "Critical" if name in self.broken else "OK"


@dataclass
class RedfishState:
    """All of it. `machine` is the SMBIOS UUID."""

    machine: str
    chassis: Chassis
    personality: Personality
    faults: RedfishFaults
    sessions: SessionTable
    firmware: dict[str, str]
    serial: str
    sensors: Sensors = field(default_factory=Sensors)
    log: list[LogEntry] = field(default_factory=list)
    updates: dict[str, Update] = field(default_factory=dict)
    next_entry: int = 1

    @property
    def uuid(self) -> str:
        """What it says the machine's UUID is."""
        return DUPLICATE if self.faults.has(RedfishFault.DUPLICATE_UUID) else self.machine

    @property
    def power(self) -> str:
        """What it says of the power."""
        on = self.chassis.powered != self.faults.has(RedfishFault.LIES_ABOUT_POWER)
        return "On" if on else "Off"

    def record(self, message_id: str, message: str, severity: str = "OK") -> LogEntry:
        """Write into the event log."""
        entry = LogEntry(self.next_entry, datetime.datetime.now(datetime.UTC), severity, message_id, message)
        self.next_entry += 1
        self.log.append(entry)
        return entry

    def boot(self) -> Document:
        """The boot override as the standard writes it."""
        override, make = self.chassis.boot_override(), self.personality
        source = "None" if override is None else _SOURCES.get(BootDevice(override.device), "None")
        enabled = "Disabled"
        if override is not None and source != "None":
            enabled = "Continuous" if override.persistent or make.once_reads_continuous else "Once"
        found: Document = {"BootSourceOverrideEnabled": enabled, "BootSourceOverrideTarget": source}
        if make.boot_targets is not None:
            found["BootSourceOverrideTarget@Redfish.AllowableValues"] = list(make.boot_targets)
        if make.modes:
            found["BootSourceOverrideMode"] = "Legacy" if override is not None and not override.uefi else "UEFI"
        return found

    def set_boot(self, wanted: Document) -> str:
        """Change the override. The name of the property that cannot be, empty when all could."""
        make, now = self.personality, self.boot()
        source = wanted.get("BootSourceOverrideTarget", now["BootSourceOverrideTarget"])
        enabled = wanted.get("BootSourceOverrideEnabled", now["BootSourceOverrideEnabled"])
        mode = wanted.get("BootSourceOverrideMode", now.get("BootSourceOverrideMode", "UEFI"))
        if source not in (make.boot_targets or ("None", *_DEVICES)):
            return "BootSourceOverrideTarget"
        if enabled not in make.overrides:
            return "BootSourceOverrideEnabled"
        if mode not in ("UEFI", "Legacy") or ("BootSourceOverrideMode" in wanted and not make.modes):
            return "BootSourceOverrideMode"
        if source == "None" or enabled == "Disabled":
            self.chassis.flags = bytes(5)
            return ""
        flags = _VALID | (_PERSISTENT if enabled == "Continuous" else 0) | (_UEFI if mode == "UEFI" else 0)
        self.chassis.flags = bytes((flags, _DEVICES[source] << 2, 0, 0, 0))
        return ""
