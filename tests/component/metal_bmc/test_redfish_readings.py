"""Sensors, power draw and event log by Redfish, in the older documents and in the newer ones."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Awaitable, Callable

import pytest
from metal_bmc.drivers import errors
from metal_bmc.drivers.redfish import RedfishDriver
from metal_bmc.drivers.telemetry import Cursor, Health, PowerDraw, Reading, SensorKind, Supply
from metal_sim.redfish import SimulatedRedfish
from metal_sim.redfish.documents import PAGE
from redfish_targets import redfish_target

NewRedfish = Callable[..., Awaitable[SimulatedRedfish]]
START = Cursor()


@pytest.mark.parametrize("make", ["plain", "strict"])
async def test_all_sensors_are_read(make: str, new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish(make)
    bmc.state.sensors.broken.add("Fan 2")
    readings = {each.name: each for each in await redfish.sensors(redfish_target(bmc), deadline=20)}
    assert readings["Inlet"] == Reading("Inlet", SensorKind.TEMPERATURE, 22.5, Health.OK)
    assert readings["Fan 2"] == Reading("Fan 2", SensorKind.FAN_SPEED, 5520.0, Health.CRITICAL)
    assert readings["PSU 1"] == Reading("PSU 1", SensorKind.POWER, 118.0, Health.OK)
    assert readings["12V"] == Reading("12V", SensorKind.VOLTAGE, 12.1, Health.OK)
    assert len(readings) == 7


@pytest.mark.parametrize("make", ["plain", "strict"])
async def test_the_power_draw_and_the_supplies_are_read(
    make: str, new_redfish: NewRedfish, redfish: RedfishDriver
) -> None:
    bmc = await new_redfish(make)
    bmc.state.sensors.broken.add("PSU 2")
    supplies = (Supply("PSU 1", Health.OK), Supply("PSU 2", Health.CRITICAL))
    metrics = (219.5, 239.5, 274.5, 60.0) if make == "plain" else (None, None, None, None)
    drawn = await redfish.power_draw(redfish_target(bmc), deadline=20)
    assert drawn == PowerDraw(239.5, *metrics, supplies)


@pytest.mark.parametrize("make", ["plain", "strict"])
async def test_the_event_log_is_read_on_from_where_it_was_left(
    make: str, new_redfish: NewRedfish, redfish: RedfishDriver
) -> None:
    bmc = await new_redfish(make)
    bmc.record("Contoso.1.0.FanFailed", "Fan 1 has failed\x1b[2J", "Critical")
    bmc.record("Contoso.1.0.FanOk", "Fan 1 is back")
    first = await redfish.event_log(redfish_target(bmc), since=START, deadline=20)
    assert [(each.health, each.message_id) for each in first] == [
        (Health.CRITICAL, "Contoso.1.0.FanFailed"),
        (Health.OK, "Contoso.1.0.FanOk"),
    ]
    assert "\x1b" not in first[0].text
    assert await redfish.event_log(redfish_target(bmc), since=first[-1].cursor, deadline=20) == []
    bmc.record("Contoso.1.0.FanFailed", "again", "Critical")
    (third,) = await redfish.event_log(redfish_target(bmc), since=first[-1].cursor, deadline=20)
    assert third.text == "again"


async def test_a_log_of_many_pages_is_read_whole(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish()
    for number in range(2 * PAGE + 3):
        bmc.record("Contoso.1.0.Tick", str(number))
    read = await redfish.event_log(redfish_target(bmc), since=START, deadline=20)
    assert [each.text for each in read] == [str(number) for number in range(2 * PAGE + 3)]


async def test_a_log_that_was_cleared_begins_anew(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish()
    for number in range(5):
        bmc.record("Contoso.1.0.Tick", str(number))
    read = await redfish.event_log(redfish_target(bmc), since=START, deadline=20)
    bmc.state.log.clear()
    bmc.state.next_entry = 1
    entry = bmc.state.record("Contoso.1.0.Tick", "after")
    entry.created += datetime.timedelta(seconds=1)
    (only,) = await redfish.event_log(redfish_target(bmc), since=read[-1].cursor, deadline=20)
    assert only.text == "after"


PATHS = ("Chassis/1/Thermal", "Chassis/1/Power", "Systems/1/LogServices/SEL/Entries")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fault", ["wrong-types", "no-object", "half", "html", "huge"])
async def test_readings_that_make_no_sense_are_told_as_that(
    fault: str, path: str, new_redfish: NewRedfish, redfish: RedfishDriver
) -> None:
    bmc = await new_redfish()
    bmc.faults.switch_on(fault, only=f"GET /redfish/v1/{path}")
    reads = {
        PATHS[0]: redfish.sensors,
        PATHS[1]: redfish.power_draw,
        PATHS[2]: functools.partial(redfish.event_log, since=START),
    }
    with pytest.raises(errors.BmcBadAnswer):
        await reads[path](redfish_target(bmc), deadline=20)
