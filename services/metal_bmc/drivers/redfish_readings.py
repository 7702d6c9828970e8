"""Sensors, power draw and event log of a machine by Redfish: which documents are asked for, the newer ones first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence

from metal_bmc.drivers.errors import BmcUnsupported
from metal_bmc.drivers.telemetry import Cursor, Health, LogEntry, PowerDraw, Reading, SensorKind, Supply, after
from metal_bmc.redfish import log, measurements
from metal_bmc.redfish.document import Document
from metal_bmc.redfish.failures import NotThere
from metal_bmc.redfish.visit import Visit

_MOST_SENSORS = 500
_MOST_ENTRIES = 4000
_MOST_SERVICES = 8
_HEALTH = {"OK": Health.OK, "Warning": Health.WARNING, "Critical": Health.CRITICAL}
_LOG = "log"


async def sensors(visit: Visit, cases: Sequence[Document]) -> list[Reading]:
    """All sensors of the cases. Raises RedfishFailure, BmcUnsupported."""
    found: list[measurements.Sensor] = []
    known = False
    for case in cases:
        if path := case.optional_link("Sensors"):
            known = True
            for member in (await visit.members(path))[:_MOST_SENSORS]:
                sensor = measurements.of_sensor(await visit.get(member))
                found += [sensor] if sensor is not None else []
            continue
        for name, read in (("Thermal", measurements.of_thermal), ("Power", measurements.of_power)):
            if path := case.optional_link(name):
                known = True
                found += read(await visit.get(path))
    if not known:
        raise BmcUnsupported("the BMC shows no sensors")
    return [
        Reading(each.name, SensorKind(each.kind), each.value, _HEALTH.get(each.health, Health.UNKNOWN))
        for each in found
    ]


async def power_draw(visit: Visit, cases: Sequence[Document]) -> PowerDraw:
    """What the first case that measures it draws. Raises RedfishFailure, BmcUnsupported."""
    for case in cases:
        if path := case.optional_link("EnvironmentMetrics"):
            power = (await visit.get(path)).optional_inner("PowerWatts")
            if power is not None:
                return PowerDraw(watts=power.number("Reading"), supplies=await _supplies(visit, case))
        if path := case.optional_link("Power"):
            document = await visit.get(path)
            controls = document.inners("PowerControl")
            if controls:
                return _drawn(controls[0], _parts(document.inners("PowerSupplies")))
    raise BmcUnsupported("the BMC does not measure what the machine draws")


async def event_log(visit: Visit, owner: Document, since: Cursor) -> list[LogEntry]:
    """Entries beyond `since`. Raises RedfishFailure, BmcUnsupported."""
    found: list[LogEntry] = []
    async for page in visit.pages(await _entries(visit, owner)):
        fresh = [_entry(log.entry(each)) for each in page.inners("Members")]
        found += fresh
        # Many give the newest first: what follows is known then.
        if len(fresh) > 1 and fresh[0].cursor > fresh[-1].cursor and fresh[-1].cursor <= since:
            break
        if len(found) > _MOST_ENTRIES:
            break
    return after(found, since)


async def events(stream: AsyncIterator[Document]) -> AsyncIterator[LogEntry]:
    """Events as entries of a log. Raises RedfishFailure."""
    async for each in stream:
        yield _entry(log.event(each))


async def _entries(visit: Visit, owner: Document) -> str:
    """The path of the event log's entries."""
    if _LOG not in visit.known:
        path = owner.optional_link("LogServices")
        members = await visit.members(path) if path else []
        services = [await visit.get(each) for each in members[:_MOST_SERVICES]]
        services = [each for each in services if "Entries" in each]
        if not services:
            raise BmcUnsupported("the BMC shows no event log")
        visit.known[_LOG] = min(services, key=log.rank).link("Entries")
    return visit.known[_LOG]


async def _supplies(visit: Visit, case: Document) -> tuple[Supply, ...]:
    path = case.optional_link("PowerSubsystem")
    try:
        supplies = (await visit.get(path)).optional_link("PowerSupplies") if path else ""
        members = (await visit.members(supplies))[:_MOST_SERVICES] if supplies else []
        return _parts([await visit.get(each) for each in members])
    except NotThere:
        return ()


def _parts(documents: Iterable[Document]) -> tuple[Supply, ...]:
    parts = [measurements.part(each) for each in documents]
    return tuple(Supply(name, _HEALTH.get(health, Health.UNKNOWN)) for name, health in parts)


def _drawn(control: Document, supplies: tuple[Supply, ...]) -> PowerDraw:
    watts, metrics = control.number("PowerConsumedWatts"), control.optional_inner("PowerMetrics")
    if metrics is None:
        return PowerDraw(watts, supplies=supplies)
    minutes = metrics.number("IntervalInMin")
    return PowerDraw(
        watts,
        metrics.number("MinConsumedWatts"),
        metrics.number("AverageConsumedWatts"),
        metrics.number("MaxConsumedWatts"),
        None if minutes is None else minutes * 60,
        supplies,
    )


def _entry(read: log.Entry) -> LogEntry:
    health = _HEALTH.get(read.severity, Health.UNKNOWN)
    return LogEntry(Cursor(read.created, read.number), health, read.message_id, read.text)
