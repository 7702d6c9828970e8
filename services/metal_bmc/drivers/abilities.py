"""What a Redfish BMC can do, by what it shows: its documents name what it has. Pure."""

from __future__ import annotations

from collections.abc import Collection

from metal_bmc.drivers.interface import Capability
from metal_bmc.redfish import system
from metal_bmc.redfish.document import Document
from metal_bmc.redfish.identity import Identity

_RESETS: tuple[tuple[Capability, Collection[str]], ...] = (
    (Capability.POWER_ON, (*system.ON, system.BUTTON)),
    (Capability.POWER_OFF, system.OFF),
    (Capability.POWER_CYCLE, ("PowerCycle",)),
    (Capability.POWER_RESET, system.RESTART),
    (Capability.POWER_SOFT_OFF, (*system.SOFT_OFF, system.BUTTON)),
    (Capability.NMI, system.NMI),
)
_OF_CASES = {
    "Thermal": Capability.SENSORS,
    "ThermalSubsystem": Capability.SENSORS,
    "Sensors": Capability.SENSORS,
    "Power": Capability.POWER_METRICS,
    "EnvironmentMetrics": Capability.POWER_METRICS,
}
_OF_MACHINE_OR_MANAGER = {
    "LogServices": Capability.SEL,
    "VirtualMedia": Capability.VIRTUAL_MEDIA,
    "Bios": Capability.BIOS_SETTINGS,
}


def of(
    root: Document,
    machine: Document,
    identity: Identity,
    reset_types: Collection[str],
    updates: Document | None,
    *,
    lit: bool,
) -> frozenset[Capability]:
    """The capabilities. `updates` is the update service, `lit` whether there is an identify light. Raises BadAnswer."""
    able = {capability for capability, types in _RESETS if system.choose(types, reset_types)}
    able |= _boots(machine)
    owners = [each for each in (machine, identity.manager) if each is not None]
    able |= {what for name, what in _OF_MACHINE_OR_MANAGER.items() if any(name in owner for owner in owners)}
    able |= {what for name, what in _OF_CASES.items() if any(name in case for case in identity.chassis)}
    if lit:
        able.add(Capability.IDENTIFY)
    if identity.fru:
        able.add(Capability.FRU)
    if "AccountService" in root:
        able.add(Capability.USERS)
    if updates is not None:
        able |= _of_updates(updates)
    return frozenset(able)


def _boots(machine: Document) -> set[Capability]:
    boot = machine.optional_inner("Boot")
    if boot is None:
        return set()
    # Without a choice of the mode the machine boots as it is set up; nothing speaks against UEFI then.
    able = {Capability.BOOT_UEFI}
    modes = boot.texts("BootSourceOverrideMode@Redfish.AllowableValues")
    if "BootSourceOverrideMode" in boot and (modes is None or "Legacy" in modes):
        able.add(Capability.BOOT_BIOS)
    enabled = boot.texts("BootSourceOverrideEnabled@Redfish.AllowableValues")
    if enabled is None or "Once" in enabled:
        able.add(Capability.BOOT_ONCE)
    if enabled is None or "Continuous" in enabled:
        able.add(Capability.BOOT_PERSISTENT)
    return able


def _of_updates(updates: Document) -> set[Capability]:
    able = {Capability.FIRMWARE_INVENTORY} if "FirmwareInventory" in updates else set()
    actions = updates.optional_inner("Actions")
    if actions is not None and "#UpdateService.SimpleUpdate" in actions:
        able.add(Capability.FIRMWARE_UPDATE)
    return able
