"""The faults that the simulated rack can have: their names and what each does. Light to import."""

from __future__ import annotations

from dataclasses import dataclass


class UnknownFault(Exception):
    """No fault of that name, or nothing of that name to have it; the text lists what there is."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: what it does, and whether a machine or a leaf has it."""

    name: str
    target: str
    text: str


FAULTS = (
    Fault("bmc-hangs", "machine", "the BMC no longer answers"),
    Fault("bmc-does-nothing", "machine", "the BMC accepts power commands and does nothing"),
    Fault("wipe-fails", "machine", "every disk answers an erase with an I/O error"),
    Fault("crash-during-install", "machine", "the installer crashes once while it unpacks the image"),
    Fault("no-lldp", "machine", "neither installer nor system speak or hear LLDP"),
    Fault("leaf-dead", "leaf", "the leaf has no power"),
)
