"""What the leaf sees on its ports: link states, neighbours, and installed systems that announce themselves.

An installed system says "provisioned" in its LLDP system description and carries its machine's UUID as system name.
Neighbours are whatever others send, so everything in them is checked before it is believed. The module compares two
looks; reading the databases and reporting are done elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from metal_core.bgp_state import Session

# What marks an installed system's announcement.
PROVISIONED = "provisioned"
# Seconds between reports of the same announcement, as long as it is seen: the plane takes it as a sign of life.
REPEAT = 60.0
# Seconds after which neighbours and sessions are reported again though nothing happened: counters change all the time,
# and the plane may have learnt of new cables to compare with.
REFRESH = 60.0


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Who is on the other end of a port's cable, by SONiC's LLDP_ENTRY_TABLE."""

    port: str
    chassis: str
    port_id: str
    system_name: str
    description: str
    management_address: str

    @property
    def outline(self) -> tuple[str, ...]:
        """What is reported of it; a description may change with every frame."""
        return (self.port, self.chassis, self.port_id, self.system_name, self.management_address)


@dataclass(frozen=True, slots=True)
class Announcement:
    """An installed system announced itself on `port`; `time` is in seconds since the epoch."""

    port: str
    machine: str
    description: str
    time: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look brought that had to be reported; None where nothing had to be.

    Neighbours and sessions are all that there are at `time`, in seconds since the epoch.
    """

    states: Mapping[str, str]
    announcements: tuple[Announcement, ...]
    neighbours: tuple[Neighbour, ...] | None = None
    sessions: tuple[Session, ...] | None = None
    time: float = 0.0


class Observer:
    """Remembers the last look and says what is new in the next one."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}
        self._announced: dict[tuple[str, str, str], float] = {}
        self._neighbours = _Repeated()
        self._sessions = _Repeated()

    def forget(self) -> None:
        """Have the next look report everything: the plane may be another one, or has been told by another way."""
        self._states = {}
        self._neighbours, self._sessions = _Repeated(), _Repeated()

    def look_at_sessions(self, sessions: tuple[Session, ...], now: float) -> Seen:
        """All BGP sessions, when one of them has changed or they were last reported more than `REFRESH` ago."""
        due = self._sessions.due(tuple(session.outline for session in sessions), now)
        return Seen({}, (), sessions=sessions if due else None, time=now)

    def look(self, states: Mapping[str, str], rows: Mapping[str, Mapping[str, str]], now: float) -> Seen:
        """Changed link states, and announcements that are new or were last reported more than `REPEAT` ago."""
        changed = {port: state for port, state in states.items() if self._states.get(port) != state}
        self._states = dict(states)
        announcements = []
        present = {}
        neighbours = neighbours_of(rows)
        for neighbour in neighbours:
            machine = announced_machine(neighbour)
            if not machine:
                continue
            key = (neighbour.port, machine, neighbour.description)
            reported = self._announced.get(key)
            # A clock that was set back must not silence a machine.
            if reported is None or not 0 <= now - reported < REPEAT:
                announcements.append(Announcement(neighbour.port, machine, neighbour.description, now))
                reported = now
            present[key] = reported
        # Only what is still there is remembered: bounded by the number of ports.
        self._announced = present
        due = self._neighbours.due(tuple(neighbour.outline for neighbour in neighbours), now)
        return Seen(changed, tuple(announcements), tuple(neighbours) if due else None, time=now)


class _Repeated:
    """Whether something is to be reported: when it has changed, and now and then."""

    def __init__(self) -> None:
        self._last: tuple[object, ...] | None = None
        self._at = 0.0

    def due(self, outline: tuple[object, ...], now: float) -> bool:
        """Whether to report it now, which then counts as done."""
        if outline == self._last and 0 <= now - self._at < REFRESH:
            return False
        self._last, self._at = outline, now
        return True


def neighbours_of(rows: Mapping[str, Mapping[str, str]]) -> list[Neighbour]:
    """Neighbours by port; fields that are missing are empty."""
    return [
        Neighbour(
            port=port,
            chassis=row.get("lldp_rem_chassis_id", ""),
            port_id=row.get("lldp_rem_port_id", ""),
            system_name=row.get("lldp_rem_sys_name", ""),
            description=row.get("lldp_rem_sys_desc", ""),
            management_address=row.get("lldp_rem_man_addr", ""),
        )
        for port, row in rows.items()
    ]


def announced_machine(neighbour: Neighbour) -> str:
    """The UUID of the machine whose installed system this neighbour is; empty when it is nothing of the kind."""
    if PROVISIONED not in neighbour.description:
        return ""
    name = neighbour.system_name.strip().lower()
    try:
        return name if str(UUID(name)) == name else ""
    except ValueError:
        return ""
