"""Phases of an allocation: their order, their deadlines, and what each means for the machine's installer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum


class Phase(StrEnum):
    """Where an allocation is on its way; the values are stored."""

    BINDING = "binding"
    ADDRESSING = "addressing"
    INSTALLING = "installing"
    ATTACHING = "attaching"
    BOOT_ORDER = "boot_order"
    STARTING = "starting"
    RUNNING = "running"
    FENCING = "fencing"
    RECLAIMING = "reclaiming"
    RELEASING = "releasing"
    UNBINDING = "unbinding"
    RELEASED = "released"


FREEING = frozenset({Phase.FENCING, Phase.RECLAIMING, Phase.RELEASING, Phase.UNBINDING, Phase.RELEASED})
SETTLED = frozenset({Phase.RUNNING, Phase.RELEASED})

# Longer than a healthy machine ever needs, so that an overrun means something. Installing covers a slow image server
# and a spinning disk; starting covers firmware that counts its memory.
DEADLINES: Mapping[str, timedelta] = {
    Phase.BINDING: timedelta(minutes=1),
    Phase.ADDRESSING: timedelta(minutes=2),
    Phase.INSTALLING: timedelta(minutes=30),
    Phase.ATTACHING: timedelta(minutes=5),
    Phase.BOOT_ORDER: timedelta(minutes=5),
    Phase.STARTING: timedelta(minutes=15),
    Phase.FENCING: timedelta(minutes=5),
    Phase.RECLAIMING: timedelta(minutes=15),
    Phase.RELEASING: timedelta(minutes=5),
    Phase.UNBINDING: timedelta(minutes=5),
}


def freeing_begins(phase: Phase) -> Phase:
    """Where giving the machine back begins, for an allocation that is in `phase`.

    Before the installer was told anything there is nothing on the machine's disks and its ports have never left the PXE
    network: only what is held for the allocation has to be let go of, and the machine goes on waiting. From then on the
    fence comes first. An allocation that is being freed goes on where it is.
    """
    if phase in FREEING:
        return phase
    return Phase.RELEASING if phase in {Phase.BINDING, Phase.ADDRESSING} else Phase.FENCING


class InstallationState(StrEnum):
    """What an allocation wants of its machine's installer."""

    NONE = "none"
    PREPARING = "preparing"
    INSTALL = "install"
    INSTALLED = "installed"
    START = "start"
    RUNNING = "running"
    RECLAIMING = "reclaiming"


def installation_state(phase: Phase, *, installed: bool) -> InstallationState:
    """What the installer is wanted to do in a phase.

    `installed` tells the moment between the installer's report and the controller's next step apart: a machine that has
    reported success is never told to install again. While the ports are being fenced an installed machine stays on its
    disk: only the reclaim that follows sends it to the installer.
    """
    if phase in {Phase.BINDING, Phase.ADDRESSING}:
        return InstallationState.PREPARING
    if phase is Phase.INSTALLING:
        return InstallationState.INSTALLED if installed else InstallationState.INSTALL
    if phase in {Phase.ATTACHING, Phase.BOOT_ORDER}:
        return InstallationState.INSTALLED
    if phase is Phase.STARTING:
        return InstallationState.START
    if phase is Phase.RUNNING:
        return InstallationState.RUNNING
    if phase is Phase.FENCING:
        return InstallationState.RUNNING if installed else InstallationState.RECLAIMING
    if phase is Phase.RELEASED:
        return InstallationState.NONE
    return InstallationState.RECLAIMING
