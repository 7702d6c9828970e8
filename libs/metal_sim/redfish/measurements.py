"""Power, temperatures and fans of a simulated Redfish BMC, in the older documents and in the newer ones."""

from __future__ import annotations

from collections.abc import Callable

from metal_sim.redfish.state import Document, RedfishState

OLDER = ("Power", "Thermal")
SUBSYSTEMS = ("PowerSubsystem", "ThermalSubsystem", "Sensors", "EnvironmentMetrics")


def find(state: RedfishState, chassis: str, path: str) -> Document | None:
    """The document at a path below the chassis, None when there is none."""
    if not path.startswith(f"{chassis}/"):
        return None
    name = path.removeprefix(f"{chassis}/")
    make = (_NEWER if state.personality.newer else _OLDER).get(name)
    if make is not None:
        return make(state, path)
    parent, _, member = name.rpartition("/")
    if not state.personality.newer:
        return None
    if parent == "Sensors":
        return _sensor_named(state, member)
    if parent == "PowerSubsystem/PowerSupplies":
        return _supply_named(state, member)
    return None


def _power(state: RedfishState, path: str) -> Document:
    sensors = state.sensors
    return {
        "@odata.type": "#Power.v1_6_0.Power",
        "Id": "Power",
        "Name": "Power",
        "PowerControl": [
            {
                "MemberId": "0",
                "PowerConsumedWatts": sensors.watts,
                "PowerMetrics": {
                    "IntervalInMin": 1,
                    "MinConsumedWatts": sensors.watts - 20,
                    "MaxConsumedWatts": sensors.watts + 35,
                    "AverageConsumedWatts": sensors.watts,
                },
            }
        ],
        "PowerSupplies": [
            {
                "@odata.id": f"{path}#/PowerSupplies/{number}",
                "MemberId": str(number),
                "Name": name,
                "PowerInputWatts": watts,
                "Status": {"State": "Enabled", "Health": sensors.health(name)},
            }
            for number, (name, watts) in enumerate(sensors.supplies.items())
        ],
        "Voltages": [
            {"MemberId": str(number), "Name": name, "ReadingVolts": volts, "Status": _status(state, name)}
            for number, (name, volts) in enumerate(sensors.voltages.items())
        ],
    }


def _thermal(state: RedfishState, _path: str) -> Document:
    sensors = state.sensors
    return {
        "@odata.type": "#Thermal.v1_6_0.Thermal",
        "Id": "Thermal",
        "Name": "Thermal",
        "Temperatures": [
            {"MemberId": str(number), "Name": name, "ReadingCelsius": degrees, "Status": _status(state, name)}
            for number, (name, degrees) in enumerate(sensors.temperatures.items())
        ],
        "Fans": [
            {
                "MemberId": str(number),
                "Name": name,
                "Reading": rpm,
                "ReadingUnits": "RPM",
                "Status": _status(state, name),
            }
            for number, (name, rpm) in enumerate(sensors.fans.items())
        ],
    }


def _power_subsystem(_state: RedfishState, path: str) -> Document:
    return {
        "@odata.type": "#PowerSubsystem.v1_1_0.PowerSubsystem",
        "Id": "PowerSubsystem",
        "Name": "Power Subsystem",
        "PowerSupplies": {"@odata.id": f"{path}/PowerSupplies"},
    }


def _supplies(state: RedfishState, path: str) -> Document:
    members = [{"@odata.id": f"{path}/{_slug(name)}"} for name in state.sensors.supplies]
    return {"Name": "Power Supplies", "Members": members, "Members@odata.count": len(members)}


def _supply_named(state: RedfishState, member: str) -> Document | None:
    for name in state.sensors.supplies:
        if _slug(name) == member:
            return {
                "@odata.type": "#PowerSupply.v1_3_0.PowerSupply",
                "Id": member,
                "Name": name,
                "Status": {"State": "Enabled", "Health": state.sensors.health(name)},
            }
    return None


def _thermal_subsystem(_state: RedfishState, _path: str) -> Document:
    return {"@odata.type": "#ThermalSubsystem.v1_0_0.ThermalSubsystem", "Id": "ThermalSubsystem", "Name": "Thermal"}


def _environment(state: RedfishState, _path: str) -> Document:
    return {
        "@odata.type": "#EnvironmentMetrics.v1_1_0.EnvironmentMetrics",
        "Id": "EnvironmentMetrics",
        "Name": "Environment Metrics",
        "PowerWatts": {"Reading": state.sensors.watts},
    }


def _sensors(state: RedfishState, path: str) -> Document:
    members = [{"@odata.id": f"{path}/{_slug(name)}"} for name, _, _, _ in _readings(state)]
    return {"Name": "Sensors", "Members": members, "Members@odata.count": len(members)}


def _sensor_named(state: RedfishState, member: str) -> Document | None:
    for name, kind, unit, reading in _readings(state):
        if _slug(name) == member:
            return {
                "@odata.type": "#Sensor.v1_2_0.Sensor",
                "Id": member,
                "Name": name,
                "ReadingType": kind,
                "ReadingUnits": unit,
                "Reading": reading,
                "Status": _status(state, name),
            }
    return None


def _readings(state: RedfishState) -> list[tuple[str, str, str, float]]:
    sensors = state.sensors
    groups = (
        (sensors.temperatures, "Temperature", "Cel"),
        (sensors.fans, "Rotational", "{rev}/min"),
        (sensors.supplies, "Power", "W"),
        (sensors.voltages, "Voltage", "V"),
    )
    return [(name, kind, unit, reading) for group, kind, unit in groups for name, reading in group.items()]


def _status(state: RedfishState, name: str) -> Document:
    return {"State": "Enabled", "Health": state.sensors.health(name)}


def _slug(name: str) -> str:
    return name.replace(" ", "")


_Make = Callable[[RedfishState, str], Document]
_OLDER: dict[str, _Make] = {"Power": _power, "Thermal": _thermal}
_NEWER: dict[str, _Make] = {
    "PowerSubsystem": _power_subsystem,
    "PowerSubsystem/PowerSupplies": _supplies,
    "ThermalSubsystem": _thermal_subsystem,
    "Sensors": _sensors,
    "EnvironmentMetrics": _environment,
}
