"""The ways in which a simulated Redfish BMC can misbehave, by name, switchable while it runs.

A fault changes what the BMC answers, never what the test may see: counters, sessions and the true power stay honest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class RedfishFault(StrEnum):
    """Names of the faults. The value in brackets is what `RedfishFaults.switch_on` takes as `value`."""

    HANG = "hang"
    """Takes connections and requests, and answers none."""
    SLOW = "slow"
    """Delays each answer [seconds]."""
    DRIP = "drip"
    """Sends answers byte by byte [seconds between two]."""
    BUSY = "busy"
    """503 with Retry-After to everything but the service root [seconds]."""
    WRONG_PASSWORD = "wrong-password"  # noqa: S105 - the name of a fault
    """Its password is no longer the one that was configured."""
    REFUSES_TOKENS = "refuses-tokens"
    """Opens sessions and answers 401 to their tokens."""
    SESSIONS_FULL = "sessions-full"
    """All sessions are taken by someone else."""
    RESETS_ITSELF = "resets-itself"
    """Restarts at every so many requests [count]: cuts all connections and has no session any more."""
    LOSES_ANSWERS = "loses-answers"
    """Carries out what changes something, and cuts the connection instead of an answer."""
    DOES_NOTHING = "does-nothing"
    """Accepts what changes something with success and does none of it."""
    LIES_ABOUT_POWER = "lies-about-power"
    """Reports the opposite power state."""
    DUPLICATE_UUID = "duplicate-uuid"
    """Reports the UUID that a maker forgot to change."""
    WRONG_TYPES = "wrong-types"
    """JSON whose values have other types than the standard says."""
    NO_OBJECT = "no-object"
    """JSON that is a list."""
    TRUNCATED = "truncated"
    """Half of the JSON, with the connection cut."""
    HALF = "half"
    """Half of the JSON, as a complete answer."""
    DEEP = "deep"
    """JSON that is nested a hundred thousand times."""
    HUGE = "huge"
    """100 MB of JSON, without saying so beforehand."""
    HUGE_ANNOUNCED = "huge-announced"
    """The same with a Content-Length."""
    COMPRESSED = "compressed"
    """Compressed JSON that nobody asked for."""
    HTML = "html"
    """The web interface's login page with status 200."""
    REDIRECT = "redirect"
    """307 to another host."""


DUPLICATE = "03000200-0400-0500-0006-000700080009"
"""A UUID that boards of several makers share."""

_DEFAULTS: dict[RedfishFault, float] = {
    RedfishFault.SLOW: 1.0,
    RedfishFault.DRIP: 0.2,
    RedfishFault.BUSY: 1.0,
    RedfishFault.RESETS_ITSELF: 3.0,
}


@dataclass
class RedfishFaults:
    """The faults of one BMC."""

    _active: dict[RedfishFault, float] = field(default_factory=dict)
    _only: dict[RedfishFault, str] = field(default_factory=dict)
    huge_sent: int = 0
    """Bytes of HUGE and HUGE_ANNOUNCED that somebody took."""

    def switch_on(self, name: str, value: float | None = None, *, only: str = "") -> None:
        """Begin to misbehave. Raises ValueError for an unknown name or a value below 0.

        With `only`, a method and a path as in `POST /redfish/v1/SessionService/Sessions`, nowhere else: for the faults
        that show in answers.
        """
        fault = _fault(name)
        chosen = _DEFAULTS.get(fault, 1.0) if value is None else value
        if chosen < 0:
            raise ValueError(f"fault {fault}: value {chosen} is out of range")
        self._active[fault], self._only[fault] = chosen, only

    def switch_off(self, name: str) -> None:
        """Behave again. Raises ValueError for an unknown name; an inactive fault is no error."""
        self._active.pop(_fault(name), None)

    def clear(self) -> None:
        """Switch all faults off."""
        self._active.clear()

    def has(self, fault: RedfishFault) -> bool:
        """Whether the fault is on, wherever."""
        return fault in self._active

    def spoils(self, fault: RedfishFault, method: str, path: str) -> bool:
        """Whether the fault is on for this request."""
        return fault in self._active and self._only[fault] in ("", f"{method} {path}")

    def everywhere(self, fault: RedfishFault) -> bool:
        """Whether the fault is on and not bound to one request."""
        return fault in self._active and not self._only[fault]

    def value(self, fault: RedfishFault) -> float:
        """The value of an active fault, 0 when it is off."""
        return self._active.get(fault, 0.0)

    def active(self) -> dict[str, float]:
        """All active faults with their values, for status displays."""
        return {str(fault): value for fault, value in self._active.items()}


def _fault(name: str) -> RedfishFault:
    try:
        return RedfishFault(name)
    except ValueError:
        known = ", ".join(sorted(RedfishFault))
        raise ValueError(f"unknown Redfish fault {name!r}; known are {known}") from None
