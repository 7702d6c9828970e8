"""The machine in its Redfish document: power, boot override, light; and what is sent to change them. Pure rules."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass

from metal_bmc.redfish.document import Document
from metal_bmc.redfish.failures import BadAnswer

RESET = "#ComputerSystem.Reset"
_POWER = {"On": True, "PoweringOff": True, "Paused": True, "Off": False, "PoweringOn": False}
# What switches on, off, resets …, the best first. ForceRestart does not stand for On: on a machine that is off it means
# nothing, an error, or a start, by the maker.
ON = ("On", "ForceOn")
OFF = ("ForceOff",)
RESTART = ("ForceRestart",)
SOFT_OFF = ("GracefulShutdown",)
NMI = ("Nmi",)
BUTTON = "PushPowerButton"
"""Does what the power button does: the opposite of what is."""
_USUAL = frozenset({"On", "ForceOff", "ForceRestart", "GracefulShutdown"})
_FACTORY = {uuid.UUID(int=0), uuid.UUID(int=(1 << 128) - 1)}


def powered(system: Document) -> bool:
    """Whether the machine is on. One that is going down still is. Raises BadAnswer."""
    state = system.text("PowerState")
    if state not in _POWER:
        raise BadAnswer("PowerState is none of the standard's")
    return _POWER[state]


def reset_types(action: Document, info: Document | None) -> frozenset[str]:
    """What the reset action takes: by its own list or that of its ActionInfo document.

    A BMC that has neither list is expected to know what all do, and says no otherwise. Raises BadAnswer.
    """
    listed = action.texts("ResetType@Redfish.AllowableValues")
    if listed is None and info is not None:
        for parameter in info.inners("Parameters"):
            if parameter.optional_text("Name") == "ResetType":
                listed = parameter.texts("AllowableValues")
    return _USUAL if listed is None else listed


def choose(wanted: Collection[str], known: Collection[str]) -> str:
    """The first of what is wanted that the BMC knows, empty when it knows none."""
    return next((each for each in wanted if each in known), "")


@dataclass(frozen=True, slots=True)
class Override:
    """The boot override. `source` is the standard's name, empty for none; `uefi` is None when the BMC does not tell."""

    source: str
    persistent: bool
    uefi: bool | None


def override(system: Document) -> Override:
    """The boot override as the BMC shows it. Raises BadAnswer."""
    boot = system.optional_inner("Boot")
    if boot is None:
        return Override("", persistent=False, uefi=None)
    enabled, source = boot.optional_text("BootSourceOverrideEnabled"), boot.optional_text("BootSourceOverrideTarget")
    mode = boot.optional_text("BootSourceOverrideMode")
    return Override(
        source if enabled in ("Once", "Continuous") and source != "None" else "",
        persistent=enabled == "Continuous",
        uefi=mode == "UEFI" if mode else None,
    )


def cannot_boot(system: Document, source: str, *, persistent: bool) -> str:
    """Why the boot override cannot be set, empty when it can as far as the BMC says. Raises BadAnswer."""
    boot = system.optional_inner("Boot")
    if boot is None:
        return "the BMC has no boot override"
    sources = boot.texts("BootSourceOverrideTarget@Redfish.AllowableValues")
    if sources is not None and source not in sources:
        return f"the BMC cannot boot from {source}"
    enabled = boot.texts("BootSourceOverrideEnabled@Redfish.AllowableValues")
    if enabled is not None and _enabled(persistent) not in enabled:
        return f"the BMC has no boot override {'for good' if persistent else 'for one boot'}"
    return ""


def boot_change(system: Document, source: str, *, persistent: bool, uefi: bool) -> dict[str, object]:
    """What to send to set the boot override. Raises BadAnswer."""
    change = {"BootSourceOverrideEnabled": _enabled(persistent), "BootSourceOverrideTarget": source}
    boot = system.optional_inner("Boot")
    if boot is not None and "BootSourceOverrideMode" in boot:
        # BMCs without it refuse the whole change when it is named.
        change["BootSourceOverrideMode"] = "UEFI" if uefi else "Legacy"
    return {"Boot": change}


def light(document: Document) -> bool | None:
    """Whether the identify light is on, None when the document has none. Raises BadAnswer."""
    if "LocationIndicatorActive" in document:
        return document.flag("LocationIndicatorActive")
    state = document.optional_text("IndicatorLED")
    return None if state in ("", "Unknown") else state != "Off"


def light_change(document: Document, *, on: bool) -> dict[str, object]:
    """What to send to switch the identify light. IndicatorLED is what the standard had before 2020."""
    if "LocationIndicatorActive" in document:
        return {"LocationIndicatorActive": on}
    return {"IndicatorLED": "Lit" if on else "Off"}


def machine_uuid(system: Document) -> str:
    """The UUID in canonical form, empty when the BMC has none that says anything. Raises BadAnswer."""
    text = system.optional_text("UUID")
    try:
        found = uuid.UUID(text)
    except ValueError:
        return ""
    return "" if found in _FACTORY else str(found)


def _enabled(persistent: bool) -> str:
    return "Continuous" if persistent else "Once"
