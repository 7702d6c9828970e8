"""Sensors of a simulated machine and the records that describe them (SDR type 01h, IPMI 2.0 §43.1).

All machines have the same sensors, so that thousands of BMCs share one repository; only readings that differ from the
usual ones are kept a BMC. Not simulated: changing thresholds, hysteresis, compact and OEM records.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache

_VERSION = 0x51
_FULL_RECORD = 0x01
_BMC = 0x20
_THRESHOLD, _SENSOR_SPECIFIC = 0x01, 0x6F
_POWER_OF_TWO_BITS = 0x0F
SCANNING = 0xC0
"""Second byte of a reading: events and scanning are enabled, the reading is valid."""


@dataclass(frozen=True)
class Sensor:
    """One sensor. A value is `raw * factor * 10 ** exponent` in its unit; a discrete sensor's are bits of states.

    `thresholds` are raw: lower non-critical, critical, non-recoverable, then upper ones; None is absent.
    """

    number: int
    name: str
    kind: int
    unit: int
    usual: int
    entity: int
    instance: int = 1
    factor: int = 1
    exponent: int = 0
    discrete: bool = False
    thresholds: tuple[int | None, ...] = (None,) * 6

    @property
    def readable(self) -> int:
        """Which thresholds there are, one bit each (table 35-9)."""
        return sum(1 << bit for bit, value in enumerate(self.thresholds) if value is not None)

    def levels(self) -> bytes:
        """The thresholds in the order of Get Sensor Thresholds, 0 where there is none."""
        return bytes(value or 0 for value in self.thresholds)

    def alarms(self, raw: int) -> int:
        """Bits of the thresholds that `raw` is beyond (table 35-15)."""
        low = sum(1 << bit for bit, at in enumerate(self.thresholds[:3]) if at is not None and raw <= at)
        return low | sum(1 << bit for bit, at in enumerate(self.thresholds[3:], 3) if at is not None and raw >= at)

    def record(self, record_id: int) -> bytes:
        """The sensor's full record. The name is cut to 16 characters, the most that a record holds."""
        name = self.name.encode("ascii")[:16]
        masks = struct.pack("<HHBB", self._assertions(), self._assertions(), self.readable if not self.discrete else
                            0xFF, self.readable if not self.discrete else 0)  # fmt: skip
        kind = _SENSOR_SPECIFIC if self.discrete else _THRESHOLD
        analog = 0xC0 if self.discrete else 0x00
        lower_nc, lower_c, lower_nr, upper_nc, upper_c, upper_nr = self.levels()
        body = bytes((_BMC, 0, self.number, self.entity, self.instance, 0x7F, 0x68, self.kind, kind)) + masks
        body += bytes((analog, self.unit, 0, 0, self.factor, 0, 0, 0, 0, (self.exponent & _POWER_OF_TWO_BITS) << 4))
        body += bytes((0x01, self.usual, 0xFF, 0x00, 0xFF, 0x00))
        body += bytes((upper_nr, upper_c, upper_nc, lower_nr, lower_c, lower_nc, 2, 2, 0, 0, 0))
        body += bytes((0xC0 | len(name),)) + name
        return struct.pack("<HBBB", record_id, _VERSION, _FULL_RECORD, len(body)) + body

    def _assertions(self) -> int:
        # Discrete: the states that may be reported. Threshold sensors: no events, their readable thresholds elsewhere.
        return 0x7F if self.discrete else 0


TEMPERATURE, VOLTAGE, FAN, POWER_SUPPLY, OTHER = 0x01, 0x02, 0x04, 0x08, 0x0B
_CELSIUS, _VOLT, _WATT, _RPM, _STATES = 1, 4, 6, 18, 0
SENSORS = (
    Sensor(0x01, "CPU1 Temp", TEMPERATURE, _CELSIUS, 48, 3, thresholds=(None, None, None, 90, 95, 100)),
    Sensor(0x02, "Inlet Temp", TEMPERATURE, _CELSIUS, 24, 55, thresholds=(5, 3, None, 40, 45, None)),
    Sensor(0x10, "FAN1", FAN, _RPM, 82, 29, 1, 100, thresholds=(7, 5, None, None, None, None)),
    Sensor(0x11, "FAN2", FAN, _RPM, 84, 29, 2, 100, thresholds=(7, 5, None, None, None, None)),
    Sensor(0x20, "12V", VOLTAGE, _VOLT, 200, 7, 1, 6, -2, thresholds=(180, 175, None, 220, 225, None)),
    # Bit 0: it is there; bit 1: it has failed; bit 3: its input is lost (table 42-3).
    Sensor(0x30, "PSU1 Status", POWER_SUPPLY, _STATES, 0x01, 10, 1, discrete=True),
    Sensor(0x31, "PSU2 Status", POWER_SUPPLY, _STATES, 0x01, 10, 2, discrete=True),
    Sensor(0x40, "Pwr Consumption", OTHER, _WATT, 46, 7, 1, 4, thresholds=(None, None, None, 200, 225, None)),
)
BY_NUMBER = {sensor.number: sensor for sensor in SENSORS}
BY_NAME = {sensor.name: sensor for sensor in SENSORS}
POWER = BY_NAME["Pwr Consumption"]
_FOLLOW_POWER = {FAN, OTHER}
_STANDBY_WATTS_RAW = 3


@cache
def repository() -> tuple[bytes, ...]:
    """The records, by their ids from 1 on."""
    return tuple(sensor.record(number) for number, sensor in enumerate(SENSORS, 1))


class Readings:
    """What the sensors of one machine read: the usual values while it is on, and what a test has set."""

    __slots__ = ("_set",)

    def __init__(self) -> None:
        self._set: dict[int, int] | None = None

    def set(self, name: str, raw: int | None) -> None:
        """Let a sensor read that, or the usual again. Raises KeyError: no such sensor; ValueError: not one byte."""
        number = BY_NAME[name].number
        if raw is not None and not 0 <= raw <= 0xFF:
            raise ValueError(f"a raw reading is one byte, not {raw}")
        changed = dict(self._set or {})
        changed.pop(number, None)
        self._set = changed | ({} if raw is None else {number: raw}) or None

    def raw(self, sensor: Sensor, *, powered: bool) -> int:
        """The reading as a byte."""
        if self._set is not None and sensor.number in self._set:
            return self._set[sensor.number]
        if powered or sensor.kind not in _FOLLOW_POWER:
            return sensor.usual
        return _STANDBY_WATTS_RAW if sensor is POWER else 0
