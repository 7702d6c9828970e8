"""What a machine's sensors and log say, whatever protocol told it. Plain data and its rules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum


class SensorKind(StrEnum):
    """What a sensor measures, with the unit that its readings have here."""

    TEMPERATURE = "temperature"
    """°C."""
    FAN_SPEED = "fan_speed"
    """Revolutions a minute."""
    FAN_PERCENT = "fan_percent"
    """Percent of the full speed."""
    POWER = "power"
    """W."""
    VOLTAGE = "voltage"
    """V."""
    CURRENT = "current"
    """A."""


class Health(StrEnum):
    """What the BMC thinks of a part. UNKNOWN: it does not say."""

    OK = "ok"
    WARNING = "warning"
    CRITICAL = "critical"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Reading:
    """One sensor. `value` is None when it reads nothing, as many do while the machine is off."""

    name: str
    kind: SensorKind
    value: float | None
    health: Health


@dataclass(frozen=True, slots=True)
class Supply:
    """One power supply."""

    name: str
    health: Health


@dataclass(frozen=True, slots=True)
class PowerDraw:
    """What the machine draws, in W; None for what the BMC does not tell. The other three are over `seconds`."""

    watts: float | None
    minimum: float | None = None
    average: float | None = None
    maximum: float | None = None
    seconds: float | None = None
    supplies: tuple[Supply, ...] = ()


_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """How far a log has been read: time and number of the last entry. BMCs number anew when a log was cleared."""

    created: datetime = _LONG_AGO
    number: int = 0


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One of the event log. `text` is the BMC's own and may say anything; `message_id` is that of its registry."""

    cursor: Cursor
    health: Health
    message_id: str
    text: str


def after(entries: Iterable[LogEntry], cursor: Cursor) -> list[LogEntry]:
    """The entries beyond a cursor in their order, whatever order they came in."""
    return sorted((each for each in entries if each.cursor > cursor), key=lambda each: each.cursor)
