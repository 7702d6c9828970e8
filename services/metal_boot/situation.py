"""What is known of a machine when boot has to say something to it. Plain values; no protobuf, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum


class Known(StrEnum):
    """How the asking machine was recognised."""

    BY_UUID = "uuid"
    BY_MAC = "mac"
    """The firmware gave no usable UUID, but inventory knows the MAC address."""
    UNKNOWN = "unknown"


class Wanted(Enum):
    """What an allocation wants of the machine's installer."""

    NOTHING = "nobody holds the machine"
    PREPARING = "held; addresses are being prepared"
    INSTALL = "to be installed"
    INSTALLED = "installed, not started yet"
    START = "installed, to be started"
    RUNNING = "installed and started"
    RECLAIMING = "being taken back"


INSTALLED = frozenset({Wanted.INSTALLED, Wanted.START, Wanted.RUNNING})
"""A tenant's system is on the disks."""


@dataclass(frozen=True, slots=True)
class Situation:
    """One machine, as the control plane sees it now.

    `bound_to` is inventory's side of being held, `allocation_id` and `wanted` are allocation's: they are written by two
    services, and one can be behind the other. `clean` says that every disk was wiped, with proof, since the last
    registration; `wipe_failed` that since then one could not be.
    """

    machine_id: str
    known: Known = Known.UNKNOWN
    generation: int = 0
    locked: bool = False
    bound_to: str = ""
    clean: bool = False
    wipe_failed: bool = False
    allocation_id: str = ""
    wanted: Wanted = Wanted.NOTHING

    @property
    def held(self) -> bool:
        """Whether anyone says that the machine belongs to an allocation."""
        return bool(self.bound_to) or bool(self.allocation_id) or self.wanted is not Wanted.NOTHING

    @property
    def agreed(self) -> bool:
        """Whether inventory and allocation name the same allocation."""
        return bool(self.allocation_id) and self.bound_to == self.allocation_id
