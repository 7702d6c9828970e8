"""The commands behind `sdr`, `sensor` and `sel`: sensor data records, readings, power in watts, the event log."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from metal_sim.bmc.completion import Code, Completion, need
from metal_sim.bmc.event_log import CAPACITY, RECORD_BYTES
from metal_sim.bmc.sensors import BY_NUMBER, POWER, SCANNING, Sensor, repository

if TYPE_CHECKING:
    from metal_sim.bmc.commands import BmcState
    from metal_sim.bmc.session import Session

_VERSION = 0x51
_CAN_RESERVE, _CAN_DELETE, _OVERFLOW = 0x02, 0x08, 0x80
_CLEAR, _CLEAR_STATUS, _CLEARED = 0xAA, 0x00, 0x01
_DCMI = 0xDC
_PERIOD_MS = 1000
_SDR_RESERVATION = 1


def sdr_info(_state: BmcState, _data: bytes, _session: Session | None) -> bytes:
    """Get SDR Repository Info (§33.9)."""
    return struct.pack("<BHHIIB", _VERSION, len(repository()), 0, 0, 0, _CAN_RESERVE)


def sdr_reserve(_state: BmcState, _data: bytes, _session: Session | None) -> bytes:
    """Reserve SDR Repository (§33.11); the records never change, so one number always holds."""
    return struct.pack("<H", _SDR_RESERVATION)


def sdr_get(_state: BmcState, data: bytes, _session: Session | None) -> bytes:
    """Get SDR (§33.12): one record, or a part of it under a reservation."""
    need(data, 6)
    reservation, number, offset, count = struct.unpack_from("<HHBB", data)
    records = repository()
    place = {0: 0, 0xFFFF: len(records) - 1}.get(number, number - 1)
    if not 0 <= place < len(records):
        raise Completion(Code.NOT_PRESENT)
    if offset and reservation != _SDR_RESERVATION:
        raise Completion(Code.RESERVATION)
    following = place + 2 if place + 1 < len(records) else 0xFFFF
    return struct.pack("<H", following) + _part(records[place], offset, count)


def sensor_reading(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    """Get Sensor Reading (§35.14)."""
    sensor = _sensor(data)
    raw = state.readings.raw(sensor, powered=state.chassis.powered)
    if sensor.discrete:
        return bytes((0, SCANNING, raw & 0x7F, 0x80))
    return bytes((raw, SCANNING, 0xC0 | sensor.alarms(raw)))


def sensor_thresholds(_state: BmcState, data: bytes, _session: Session | None) -> bytes:
    """Get Sensor Thresholds (§35.9)."""
    sensor = _sensor(data)
    return bytes((sensor.readable,)) + sensor.levels()


def power_reading(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    """Get Power Reading (DCMI 1.5 §6.6.1): watts now, least, most, on average, of the last second."""
    need(data, 4)
    if data[0] != _DCMI or data[1] != 1:
        raise Completion(Code.INVALID_FIELD)
    watts = state.readings.raw(POWER, powered=state.chassis.powered) * POWER.factor
    return struct.pack("<BHHHHIIB", _DCMI, watts, watts, watts, watts, state.event_log.now(), _PERIOD_MS, 0x40)


def sel_info(state: BmcState, _data: bytes, _session: Session | None) -> bytes:
    """Get SEL Info (§31.2)."""
    log = state.event_log
    free = (CAPACITY - len(log)) * RECORD_BYTES
    able = _CAN_RESERVE | _CAN_DELETE | (_OVERFLOW if log.overflowed else 0)
    return struct.pack("<BHHIIB", _VERSION, len(log), free, log.added_at, log.erased_at, able)


def sel_reserve(state: BmcState, _data: bytes, _session: Session | None) -> bytes:
    """Reserve SEL (§31.4)."""
    return struct.pack("<H", state.event_log.reserve())


def sel_get(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    """Get SEL Entry (§31.5)."""
    need(data, 6)
    reservation, number, offset, count = struct.unpack_from("<HHBB", data)
    found = state.event_log.get(number)
    if found is None:
        raise Completion(Code.NOT_PRESENT)
    if offset:
        _reserved(state, reservation)
    following, record = found
    return struct.pack("<H", following) + _part(record, offset, count)


def sel_add(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    """Add SEL Entry (§31.6). Only system events, whose time is the BMC's, and records without a time are taken."""
    need(data, RECORD_BYTES)
    rest = bytes(data[2:RECORD_BYTES])
    if rest[0] < 0xE0:
        rest = rest[:1] + struct.pack("<I", state.event_log.now()) + rest[5:]
    number = state.event_log.append(rest)
    if not number:
        raise Completion(Code.OUT_OF_SPACE)
    return struct.pack("<H", number)


def sel_delete(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    """Delete SEL Entry (§31.8)."""
    need(data, 4)
    reservation, number = struct.unpack_from("<HH", data)
    _reserved(state, reservation)
    if not state.event_log.delete(number):
        raise Completion(Code.NOT_PRESENT)
    return struct.pack("<H", number)


def sel_clear(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    """Clear SEL (§31.9); done at once, so that its progress is always "completed"."""
    need(data, 6)
    if data[2:5] != b"CLR" or data[5] not in (_CLEAR, _CLEAR_STATUS):
        raise Completion(Code.INVALID_FIELD)
    if data[5] == _CLEAR:
        _reserved(state, int.from_bytes(data[:2], "little"))
        state.event_log.clear()
    return bytes((_CLEARED,))


def sel_time(state: BmcState, _data: bytes, _session: Session | None) -> bytes:
    """Get SEL Time (§31.10)."""
    return struct.pack("<I", state.event_log.now())


def sel_set_time(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    """Set SEL Time (§31.11)."""
    need(data, 4)
    state.event_log.set_time(int.from_bytes(data[:4], "little"))
    return b""


def _sensor(data: bytes) -> Sensor:
    need(data, 1)
    sensor = BY_NUMBER.get(data[0])
    if sensor is None:
        raise Completion(Code.NOT_PRESENT)
    return sensor


def _reserved(state: BmcState, reservation: int) -> None:
    if not reservation or reservation != state.event_log.reservation:
        raise Completion(Code.RESERVATION)


def _part(record: bytes, offset: int, count: int) -> bytes:
    if offset >= len(record):
        raise Completion(Code.OUT_OF_RANGE)
    return record[offset:] if count == 0xFF else record[offset : offset + count]
