"""The system event log of a simulated BMC (IPMI 2.0 §31, §32): records of 16 bytes, one after the other, until full."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

CAPACITY = 512
RECORD_BYTES = 16
_SYSTEM_EVENT = 0x02
_GENERATOR = 0x20
_REVISION = 0x04
POWER_UNIT, SYSTEM_BOOT = 0x09, 0x1D
SENSOR_SPECIFIC = 0x6F


class EventLog:
    """`clock` tells seconds since 1970. A log that is full takes no more and says so, as most BMCs do."""

    __slots__ = ("_clock", "_entries", "_next", "_offset", "_reservation", "added_at", "erased_at", "overflowed")

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._offset = clock, 0
        self._entries: dict[int, bytes] | None = None
        self._next, self._reservation = 1, 0
        self.added_at = self.erased_at = 0
        self.overflowed = False

    def __len__(self) -> int:
        return len(self._entries or ())

    @property
    def reservation(self) -> int:
        """The number that holds now; 0 when somebody changed the log since the last one was given."""
        return self._reservation

    def reserve(self) -> int:
        """A new reservation, which ends the one before."""
        self._reservation = self._reservation % 0xFFFF + 1
        return self._reservation

    def add(self, sensor_type: int, sensor: int, event: tuple[int, int, int], *, kind: int = SENSOR_SPECIFIC) -> int:
        """Log an event of a sensor; returns its record's id, 0 when the log is full."""
        body = bytes((_REVISION, sensor_type, sensor, kind, *event))
        return self.append(struct.pack("<BIH", _SYSTEM_EVENT, self.now(), _GENERATOR) + body)

    def append(self, rest: bytes) -> int:
        """Add a record, given without its id; returns the id, 0 when the log is full."""
        entries = self._entries = {} if self._entries is None else self._entries
        if len(entries) >= CAPACITY:
            self.overflowed = True
            return 0
        number, self._next = self._next, self._next % 0xFFFE + 1
        entries[number] = struct.pack("<H", number) + rest
        self.added_at = self.now()
        # What was reserved did not know of this record: a clear would lose it unread.
        self._reservation = 0
        return number

    def get(self, number: int) -> tuple[int, bytes] | None:
        """The id after this one, 0xFFFF at the end, and the record. 0 asks for the first, 0xFFFF for the last."""
        ids = list(self._entries or ())
        if not ids:
            return None
        wanted = {0: ids[0], 0xFFFF: ids[-1]}.get(number, number)
        if self._entries is None or wanted not in self._entries:
            return None
        place = ids.index(wanted)
        return (ids[place + 1] if place + 1 < len(ids) else 0xFFFF), self._entries[wanted]

    def delete(self, number: int) -> bool:
        """Delete a record; False when there is none."""
        found = self.get(number)
        if found is None or self._entries is None:
            return False
        del self._entries[int.from_bytes(found[1][:2], "little")]
        self._erased()
        return True

    def clear(self) -> None:
        """Delete all records."""
        self._entries = None
        self.overflowed = False
        self._erased()

    def now(self) -> int:
        """The log's clock, in seconds since 1970."""
        return int(self._clock()) + self._offset & 0xFFFFFFFF

    def set_time(self, seconds: int) -> None:
        """Set the log's clock."""
        self._offset = seconds - int(self._clock())

    def _erased(self) -> None:
        self.erased_at, self._reservation = self.now(), 0
