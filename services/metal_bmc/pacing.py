"""When a BMC is asked again, by how the last exchange ended, and when it counts as unreachable. Pure rules, no I/O.

A circuit a BMC: after three exchanges in a row without an answer it opens. Then only one exchange at a time is tried, a
probe, ever more rarely; the first answer closes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

OPENS_AFTER = 3
"""Failures in a row, the last one a silence, after which a BMC counts as unreachable."""

_FIRST_PROBE, _LAST_PROBE = timedelta(seconds=5), timedelta(minutes=15)
_SLOTS = timedelta(seconds=60)
"""What a BMC takes to end sessions that nobody uses (IPMI 2.0 §6.12.15)."""

_BUSY, _LONGEST_BUSY = timedelta(seconds=10), timedelta(minutes=5)
_JITTER = 0.2
_MOST_DOUBLINGS = 6
SILENCE = "TIMEOUT"
SLOTS_FULL, BUSY = "SESSIONS_FULL", "BUSY"


@dataclass(frozen=True, slots=True)
class PollPlan:
    """`interval` between two readings of the power, `inspect_every` between two of the identity, `parallel` at once."""

    interval: timedelta = timedelta(seconds=60)
    inspect_every: timedelta = timedelta(hours=6)
    parallel: int = 3
    deadline: float = 20.0


def opens(reason: str, failures: int) -> bool:
    """Whether the circuit is open after that many failures in a row, of which the last had this reason."""
    return reason == SILENCE and failures >= OPENS_AFTER


def next_look(
    interval: timedelta, reason: str, failures: int, chance: float, *, told: timedelta | None = None
) -> timedelta:
    """When to ask again; `chance` is uniform in [0, 1), `told` what the BMC itself asked for.

    A BMC that answers: at its interval, with 20 % jitter. One that is silent: soon, so that it is known after three
    tries whether it is unreachable, and then 5 s to 15 min later with full jitter. One whose sessions are taken: after
    60 s, in which it ends those that nobody uses. A busy one: when it said. Any other failure: more and more rarely.
    """
    if reason == SILENCE:
        if failures < OPENS_AFTER:
            soon: timedelta = min(interval, _FIRST_PROBE)
            return soon * (1 + chance)
        bound: timedelta = min(_LAST_PROBE, _FIRST_PROBE * 2 ** min(failures - OPENS_AFTER, 20))
        return _FIRST_PROBE + (bound - _FIRST_PROBE) * chance
    if reason == SLOTS_FULL:
        return _SLOTS * (1 + chance / 4)
    if reason == BUSY:
        asked: timedelta = min(told or _BUSY, _LONGEST_BUSY)
        return asked * (1 + chance / 4)
    base: timedelta = min(interval * 2 ** min(failures, _MOST_DOUBLINGS), max(_LAST_PROBE, interval))
    return timedelta(seconds=base.total_seconds() * (1 - _JITTER + 2 * _JITTER * chance))
