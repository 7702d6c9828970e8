"""How makes of BMCs differ where all of them follow the standard, or say that they do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Etags(StrEnum):
    """What a BMC makes of entity tags."""

    NONE = "none"
    """Sends none and ignores If-Match."""
    OFFERED = "offered"
    """Sends them; a PATCH with one that is out of date is 412."""
    REQUIRED = "required"
    """As OFFERED, and a PATCH without one is 428."""


RESET_TYPES = ("On", "ForceOff", "GracefulShutdown", "GracefulRestart", "ForceRestart", "Nmi", "PowerCycle")
"""What most BMCs take."""


@dataclass(frozen=True)
class Personality:
    """One make. `done_status` is 204 or 200 (with a document) for what was carried out; `reset_types` None leaves the
    list out, and `action_info` puts it into a document of its own; `modes` is whether UEFI and BIOS can be chosen,
    `overrides` what BootSourceOverrideEnabled may be; `sessions` False knows basic authentication only; `newer` has
    PowerSubsystem, ThermalSubsystem and Sensors instead of Power and Thermal."""

    manufacturer: str = "Contoso"
    model: str = "Joo Janta 200"
    system: str = "1"
    manager: str = "1"
    chassis: str = "1"
    done_status: int = 204
    etags: Etags = Etags.OFFERED
    weak_etags: bool = False
    once_reads_continuous: bool = False
    overrides: tuple[str, ...] = ("Disabled", "Once", "Continuous")
    boot_targets: tuple[str, ...] | None = ("None", "Pxe", "Hdd", "Cd", "BiosSetup")
    reset_types: tuple[str, ...] | None = RESET_TYPES
    action_info: bool = False
    modes: bool = True
    location_indicator: bool = True
    light_on_chassis: bool = False
    sessions: bool = True
    newer: bool = False
    log_on_manager: bool = False
    updates: bool = True
    events: bool = True


PLAIN = Personality()
"""What the standard reads like."""

STRICT = Personality(
    manufacturer="Fabrikam",
    model="Strict 9",
    system="System.Embedded.1",
    manager="BMC.Embedded.1",
    chassis="System.Embedded.1",
    done_status=200,
    etags=Etags.REQUIRED,
    action_info=True,
    newer=True,
    log_on_manager=True,
)
"""Wants entity tags, answers with documents, keeps its lists elsewhere."""

WEAK = Personality(etags=Etags.REQUIRED, weak_etags=True, done_status=202)
"""Sends weak entity tags and answers that it has accepted."""

OLD = Personality(
    manufacturer="Wingtip",
    model="Relic 2014",
    etags=Etags.NONE,
    once_reads_continuous=True,
    reset_types=None,
    boot_targets=None,
    modes=False,
    location_indicator=False,
    light_on_chassis=True,
    updates=False,
    events=False,
)
"""An early implementation: no lists, no entity tags, `Once` reads back as `Continuous`, the light on the chassis."""

NO_ON = Personality(reset_types=("ForceOn", "ForceOff", "ForceRestart", "GracefulShutdown"))
"""Has no `On`, but `ForceOn`."""

BUTTON = Personality(reset_types=("PushPowerButton", "ForceOff", "ForceRestart"))
"""Has no way to switch on but the power button."""

BASIC = Personality(sessions=False)
"""Has no sessions."""

PERSONALITIES = {
    "plain": PLAIN,
    "strict": STRICT,
    "weak": WEAK,
    "old": OLD,
    "no-on": NO_ON,
    "button": BUTTON,
    "basic": BASIC,
}
"""All of them by name."""
