"""The ways in which a simulated BMC can misbehave, by name, switchable while it runs.

Each fault is one that BMCs show in the field. A fault changes what the BMC answers, never what the test may see:
counters and the true power state stay honest.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property


class BmcFault(StrEnum):
    """Names of the faults; `KINDS` explains them."""

    HANG = "hang"
    DROP = "drop"
    SLOW = "slow"
    WRONG_PASSWORD = "wrong-password"  # noqa: S105 - the name of a fault
    LOCKOUT = "lockout"
    SLOTS_FULL = "slots-full"
    DOES_NOTHING = "does-nothing"
    LIES_ABOUT_POWER = "lies-about-power"
    SOL_DROP = "sol-drop"
    SOL_SILENT = "sol-silent"
    SOL_TAKES_HALF = "sol-takes-half"
    RESETS = "resets"
    SHARED_UUID = "shared-uuid"
    GARBAGE = "garbage"


@dataclass(frozen=True)
class FaultKind:
    """What a fault does, and its value: the unit, the usual value and the highest one. No unit: it takes no value."""

    explanation: str
    unit: str = ""
    usual: float = 1.0
    most: float = math.inf


KINDS: dict[BmcFault, FaultKind] = {
    BmcFault.HANG: FaultKind("answers nothing"),
    BmcFault.DROP: FaultKind("loses packets in either direction", "percent", 20.0, 100.0),
    BmcFault.SLOW: FaultKind("answers late", "seconds"),
    BmcFault.WRONG_PASSWORD: FaultKind("its password is no longer the one that was configured"),
    BmcFault.LOCKOUT: FaultKind("refuses every login once so many have failed, until the fault is off", "logins", 3.0),
    BmcFault.SLOTS_FULL: FaultKind("has no session slot left: somebody else took all"),
    BmcFault.DOES_NOTHING: FaultKind("accepts power, boot device and identify light, and does none of it"),
    BmcFault.LIES_ABOUT_POWER: FaultKind("reports the opposite of the machine's power"),
    BmcFault.SOL_DROP: FaultKind(
        "loses packets of the serial console in either direction; commands get through", "percent", 20.0, 100.0
    ),
    BmcFault.SOL_SILENT: FaultKind("its serial console neither says nor takes anything; commands are answered"),
    BmcFault.SOL_TAKES_HALF: FaultKind("takes half of the characters of each packet of the serial console"),
    BmcFault.RESETS: FaultKind("restarts after so many answers: silent for a moment, all sessions lost", "answers", 20),
    BmcFault.SHARED_UUID: FaultKind("reports the UUID that its maker forgot to replace, as thousands of others do"),
    BmcFault.GARBAGE: FaultKind("sends random, cut or damaged packets in place of answers", "percent", 100.0, 100.0),
}
_AUTHENTICATED = 0x40
RESTART_SECONDS = 0.3
"""How long a restart of a simulated BMC takes; a real one's takes a minute or more."""
FORGOTTEN_UUID = "03000200-0400-0500-0006-000700080009"
"""What boards report whose maker left the firmware's placeholder in place."""


@dataclass
class Faults:
    """The faults of one BMC. `seed` makes packet loss and garbage repeatable."""

    seed: int = 0
    _active: dict[BmcFault, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._passing, self._lost, self._answers = 0, 0, 0

    @cached_property
    def _random(self) -> random.Random:
        # 2.5 KB, which a farm of thousands without such a fault does not need.
        return random.Random(self.seed)

    def switch_on(self, name: str, value: float | None = None) -> None:
        """Begin to misbehave. Raises ValueError for an unknown name or a value out of range."""
        fault = _fault(name)
        kind = KINDS[fault]
        chosen = kind.usual if value is None else value
        if not 0 <= chosen <= kind.most:
            raise ValueError(f"fault {fault}: value {chosen} is out of range")
        self._active[fault] = chosen
        self._answers = 0

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

    def restarts(self) -> bool:
        """Whether the BMC restarts instead of giving the answer that is due now."""
        if not self.has(BmcFault.RESETS):
            return False
        self._answers += 1
        if self._answers <= self.value(BmcFault.RESETS):
            return False
        self._answers = 0
        return True

    def garbled(self, answer: bytes) -> bytes:
        """What is sent in place of `answer`: mostly itself."""
        if not self.has(BmcFault.GARBAGE) or self._random.random() * 100 >= self.value(BmcFault.GARBAGE):
            return answer
        # One wrong bit in a proof of RAKP is what a wrong password looks like, and that is another fault.
        kind = self._random.randrange(4 if answer[5] & _AUTHENTICATED else 3)
        if kind == 0:
            return self._random.randbytes(self._random.randrange(1, 80))
        if kind == 1:
            return answer[: self._random.randrange(1, len(answer))]
        if kind == 2:
            return answer[:16] + self._random.randbytes(len(answer) - 16)
        damaged = bytearray(answer)
        damaged[self._random.randrange(4, len(answer))] ^= 1 << self._random.randrange(8)
        return bytes(damaged)


def table() -> str:
    """All faults, one a line, for people."""
    rows = [(f"{name}[={kind.unit.upper()}]" if kind.unit else str(name), kind) for name, kind in KINDS.items()]
    width = max(len(name) for name, _ in rows)
    usual = [f" ({kind.usual:g} {kind.unit} unless said)" if kind.unit else "" for _, kind in rows]
    return "\n".join(f"{row[0]:<{width}}  {row[1].explanation}{more}" for row, more in zip(rows, usual, strict=True))


def _fault(name: str) -> BmcFault:
    try:
        return BmcFault(name)
    except ValueError:
        known = ", ".join(sorted(BmcFault))
        raise ValueError(f"unknown BMC fault {name!r}; known are {known}") from None
