"""The ways in which a simulated BMC can misbehave, by name, switchable while it runs.

Each fault is one that BMCs show in the field. A fault changes what the BMC answers, never what the test may see:
counters and the true power state stay honest.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import StrEnum


class BmcFault(StrEnum):
    """Names of the faults. The value in brackets is what `Faults.switch_on` takes as `value`."""

    HANG = "hang"
    """No answer to anything."""
    DROP = "drop"
    """Loses packets in either direction [percent, 0-100]."""
    SLOW = "slow"
    """Delays each answer [seconds]."""
    WRONG_PASSWORD = "wrong-password"  # noqa: S105 - the name of a fault
    """Its password is no longer the one that was configured."""
    LOCKOUT = "lockout"
    """Refuses every login once that many have failed [count]; cleared only by switching the fault off."""
    SLOTS_FULL = "slots-full"
    """All session slots are taken by someone else."""
    DOES_NOTHING = "does-nothing"
    """Accepts power, boot option and identify commands with success and does none of them."""
    LIES_ABOUT_POWER = "lies-about-power"
    """Reports the opposite power state."""
    SOL_DROP = "sol-drop"
    """Loses packets of the serial console in either direction [percent, 0-100]; commands get through."""
    SOL_SILENT = "sol-silent"
    """The serial console neither says nor takes anything; commands are answered."""
    SOL_TAKES_HALF = "sol-takes-half"
    """Takes half of the characters of each packet of the serial console and refuses the rest."""


_DEFAULTS: dict[BmcFault, float] = {
    BmcFault.DROP: 20.0,
    BmcFault.SLOW: 1.0,
    BmcFault.LOCKOUT: 3.0,
    BmcFault.SOL_DROP: 20.0,
}


@dataclass
class Faults:
    """The faults of one BMC. `seed` makes packet loss repeatable."""

    seed: int = 0
    _active: dict[BmcFault, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._passing, self._lost = 0, 0

    def switch_on(self, name: str, value: float | None = None) -> None:
        """Begin to misbehave. Raises ValueError for an unknown name or a value out of range."""
        fault = _fault(name)
        chosen = _DEFAULTS.get(fault, 1.0) if value is None else value
        if chosen < 0 or (fault in (BmcFault.DROP, BmcFault.SOL_DROP) and chosen > 100):
            raise ValueError(f"fault {fault}: value {chosen} is out of range")
        self._active[fault] = chosen

    def switch_off(self, name: str) -> None:
        """Behave again. Raises ValueError for an unknown name; an inactive fault is no error."""
        self._active.pop(_fault(name), None)

    def lose_packets(self, count: int, *, after: int = 0) -> None:
        """Lose exactly that many packets in a row, in whichever direction, once `after` more have passed."""
        self._passing, self._lost = after, count

    @property
    def losses_left(self) -> int:
        """How many of the packets that `lose_packets` ordered were not lost yet."""
        return self._lost

    def clear(self) -> None:
        """Switch all faults off."""
        self._active.clear()
        self._passing, self._lost = 0, 0

    def has(self, fault: BmcFault) -> bool:
        """Whether the fault is on."""
        return fault in self._active

    def value(self, fault: BmcFault) -> float:
        """The value of an active fault, 0 when it is off."""
        return self._active.get(fault, 0.0)

    def active(self) -> dict[str, float]:
        """All active faults with their values, for status displays."""
        return {str(fault): value for fault, value in self._active.items()}

    def loses_sol_packet(self) -> bool:
        """Whether the packet of the serial console that comes or goes now is lost; each packet asks once."""
        percent = self.value(BmcFault.SOL_DROP)
        return percent > 0 and self._random.random() * 100 < percent

    def loses_packet(self) -> bool:
        """Whether the packet that comes or goes now is lost; each packet asks once."""
        if self.has(BmcFault.HANG):
            return True
        if self._passing:
            self._passing -= 1
        elif self._lost:
            self._lost -= 1
            return True
        percent = self.value(BmcFault.DROP)
        return percent > 0 and self._random.random() * 100 < percent


def _fault(name: str) -> BmcFault:
    try:
        return BmcFault(name)
    except ValueError:
        known = ", ".join(sorted(BmcFault))
        raise ValueError(f"unknown BMC fault {name!r}; known are {known}") from None
