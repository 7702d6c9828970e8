"""Readings of sensors and power out of Redfish documents, the older ones (Power, Thermal) and the newer (Sensors, …).

Pure. Names and units are the standard's; what has another unit than is known is left out rather than mistaken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from metal_bmc.redfish.document import Document

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_LONGEST_NAME = 128
UNITS = {
    "Cel": "temperature",
    "{rev}/min": "fan_speed",
    "RPM": "fan_speed",
    "%": "fan_percent",
    "Percent": "fan_percent",
    "W": "power",
    "V": "voltage",
    "A": "current",
}
"""Units (of UCUM in the newer documents) and what is measured in them here."""


@dataclass(frozen=True, slots=True)
class Sensor:
    """One reading. `kind` is one of the values of UNITS, `health` OK, Warning, Critical, or empty."""

    name: str
    kind: str
    value: float | None
    health: str


def of_thermal(thermal: Document) -> list[Sensor]:
    """Temperatures and fans. Raises BadAnswer."""
    found = [
        _sensor(each, "temperature", each.number("ReadingCelsius"))
        for each in thermal.inners("Temperatures")
        if _is_there(each)
    ]
    for fan in thermal.inners("Fans"):
        kind = UNITS.get(fan.optional_text("ReadingUnits") or "RPM", "")
        if kind and _is_there(fan):
            found.append(_sensor(fan, kind, fan.number("Reading")))
    return found


def of_power(power: Document) -> list[Sensor]:
    """Voltages and what each supply draws. Raises BadAnswer."""
    found = [
        _sensor(each, "voltage", each.number("ReadingVolts")) for each in power.inners("Voltages") if _is_there(each)
    ]
    measured = [each for each in power.inners("PowerSupplies") if _is_there(each) and "PowerInputWatts" in each]
    return found + [_sensor(each, "power", each.number("PowerInputWatts")) for each in measured]


def of_sensor(sensor: Document) -> Sensor | None:
    """A document of its own; None for one that measures something else, or is not there. Raises BadAnswer."""
    kind = UNITS.get(sensor.optional_text("ReadingUnits"), "")
    if kind == "fan_percent" and sensor.optional_text("PhysicalContext") != "Fan":
        # Humidity and load are in percent too.
        return None
    return _sensor(sensor, kind, sensor.number("Reading")) if kind and _is_there(sensor) else None


def part(document: Document) -> tuple[str, str]:
    """Name and health of a part. Raises BadAnswer."""
    return name(document), health(document)


def name(document: Document) -> str:
    """What a part is called, without what does not belong into a line. Raises BadAnswer."""
    text = document.optional_text("Name") or document.optional_text("MemberId") or document.optional_text("Id")
    return clean(text)[:_LONGEST_NAME]


def health(document: Document) -> str:
    """OK, Warning, Critical, or empty. Raises BadAnswer."""
    status = document.optional_inner("Status")
    told = status.optional_text("Health") if status is not None else ""
    return told if told in ("OK", "Warning", "Critical") else ""


def clean(text: str) -> str:
    """A text of the BMC without control characters."""
    return _CONTROL.sub(" ", text).strip()


def _is_there(document: Document) -> bool:
    status = document.optional_inner("Status")
    return status is None or status.optional_text("State") != "Absent"


def _sensor(document: Document, kind: str, value: float | None) -> Sensor:
    return Sensor(name(document), kind, value, health(document))
