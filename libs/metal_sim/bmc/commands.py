"""The IPMI commands of a simulated BMC, one function each, in a table by (network function, command).

A handler gets the BMC's state and the request data and returns response data, or raises `Completion` with the code.
What is not in the table answers 0xC1, as the specification wants it.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from metal_sim.bmc import repositories
from metal_sim.bmc.chassis import Chassis, ChassisControl
from metal_sim.bmc.completion import Code, Completion
from metal_sim.bmc.completion import need as _need
from metal_sim.bmc.event_log import POWER_UNIT, SYSTEM_BOOT, EventLog
from metal_sim.bmc.faults import FORGOTTEN_UUID, BmcFault, Faults
from metal_sim.bmc.sensors import Readings
from metal_sim.bmc.session import Session, SessionTable
from metal_sim.bmc.sol import Sol
from metal_sim.bmc.users import MAX_USERS, User, UserTable

CHASSIS, SENSOR, APP, STORAGE, TRANSPORT, GROUP = 0x00, 0x04, 0x06, 0x0A, 0x0C, 0x2C
_LAN_CHANNEL = 1
_PARAMETER_VERSION = 0x01
_SHARED_GUID = uuid.UUID(FORGOTTEN_UUID).bytes_le
_POWER_UNIT_SENSOR, _BOOT_SENSOR = 0x50, 0x51


@dataclass
class BmcState:
    """All that commands can read and change."""

    guid: bytes
    firmware: tuple[int, int]
    manufacturer: int
    product: int
    fru: bytes
    chassis: Chassis
    users: UserTable
    sessions: SessionTable
    faults: Faults
    sol: Sol
    set_in_progress: int = 0
    boot_acknowledge: bytes = b"\x00\x00"
    boot_valid_clearing: int = 0
    boot_initiator: bytes = b"\x00" * 9
    readings: Readings = field(default_factory=Readings)
    event_log: EventLog = field(default_factory=EventLog)
    # The BMC's own MAC address; empty: it does not tell.
    mac: bytes = b""


Handler = Callable[[BmcState, bytes, Session | None], bytes]


def _channel_capabilities(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    _need(data, 2)
    # Bit 7: the extended (2.0) capabilities are valid. No IPMI 1.5 authentication type is offered.
    return bytes((_LAN_CHANNEL, 0x80 if data[0] & 0x80 else 0x00, 0x04, 0x02, 0, 0, 0, 0))


def _cipher_suites(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    _need(data, 3)
    listing = b"".join(suite.record() for suite in state.sessions.suites)
    index = data[2] & 0x3F
    return bytes((_LAN_CHANNEL,)) + listing[index * 16 : index * 16 + 16]


def _lan_parameter(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    _need(data, 4)
    # Of the LAN configuration there is the MAC address only (IPMI 2.0 table 23-4, parameter 5).
    if data[1] != 5 or not state.mac:
        raise Completion(Code.PARAMETER_NOT_SUPPORTED)
    return b"\x11" + state.mac


def _guid(state: BmcState, _data: bytes, _session: Session | None) -> bytes:
    return _SHARED_GUID if state.faults.has(BmcFault.SHARED_UUID) else state.guid


def _device_id(state: BmcState, _data: bytes, _session: Session | None) -> bytes:
    major, minor = state.firmware
    bcd = minor // 10 << 4 | minor % 10
    # Additional device support 0x8F: chassis, FRU, event log, SDR repository and sensor device.
    head = bytes((0x20, 0x01, major & 0x7F, bcd, 0x02, 0x8F))
    return head + state.manufacturer.to_bytes(3, "little") + struct.pack("<H", state.product) + b"\x00" * 4


def _self_test(_state: BmcState, _data: bytes, _session: Session | None) -> bytes:
    return b"\x55\x00"


def _cold_reset(state: BmcState, _data: bytes, _session: Session | None) -> bytes:
    state.sessions.close_all()
    return b""


def _set_privilege(_state: BmcState, data: bytes, session: Session | None) -> bytes:
    _need(data, 1)
    if session is None:
        raise Completion(Code.PRIVILEGE)
    wanted = data[0] & 0x0F
    if wanted > session.role & 0x0F:
        raise Completion(0x81)
    if wanted:
        session.privilege = wanted
    return bytes((session.privilege,))


def _close_session(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    _need(data, 4)
    if not state.sessions.close(int.from_bytes(data[:4], "little")):
        raise Completion(0x87)
    return b""


def _chassis_status(state: BmcState, _data: bytes, _session: Session | None) -> bytes:
    powered = state.chassis.powered != state.faults.has(BmcFault.LIES_ABOUT_POWER)
    return bytes((int(powered), 0x00, 0x40 | state.chassis.identify_state() << 4, 0x00))


def _chassis_control(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    _need(data, 1)
    try:
        action = ChassisControl(data[0] & 0x0F)
    except ValueError:
        raise Completion(Code.INVALID_FIELD) from None
    if state.faults.has(BmcFault.DOES_NOTHING):
        return b""
    if not state.chassis.control(action):
        raise Completion(Code.STATE)
    _log_power(state, action)
    return b""


def _log_power(state: BmcState, action: ChassisControl) -> None:
    if action in (ChassisControl.OFF, ChassisControl.CYCLE):
        # Power off (table 42-3, power unit, offset 0).
        state.event_log.add(POWER_UNIT, _POWER_UNIT_SENSOR, (0, 0xFF, 0xFF))
    if action in (ChassisControl.ON, ChassisControl.CYCLE, ChassisControl.RESET):
        # Initiated by power up (offset 0) or hard reset (offset 1).
        state.event_log.add(SYSTEM_BOOT, _BOOT_SENSOR, (int(action is ChassisControl.RESET), 0xFF, 0xFF))


def _identify(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    if not state.faults.has(BmcFault.DOES_NOTHING):
        seconds = data[0] if data else 15
        state.chassis.identify(seconds=seconds, forced=len(data) > 1 and bool(data[1] & 1))
    return b""


def _set_boot_options(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    _need(data, 1)
    parameter, value = data[0] & 0x7F, data[1:]
    lengths = {0: 1, 3: 1, 4: 2, 5: 5, 7: 9}
    if parameter not in lengths:
        raise Completion(Code.PARAMETER_NOT_SUPPORTED)
    _need(value, lengths[parameter])
    if parameter == 0:
        # A second writer must not slip in while one is at work (IPMI 2.0 table 28-14, parameter 0).
        if value[0] & 3 == 1 and state.set_in_progress == 1:
            raise Completion(Code.SET_IN_PROGRESS)
        state.set_in_progress = 1 if value[0] & 3 == 1 else 0
    elif state.faults.has(BmcFault.DOES_NOTHING):
        return b""
    elif parameter == 3:
        state.boot_valid_clearing = value[0]
    elif parameter == 4:
        mask, flags = value[0], value[1]
        state.boot_acknowledge = bytes((0, state.boot_acknowledge[1] & ~mask & 0xFF | flags & mask))
    elif parameter == 5:
        state.chassis.flags = bytes(value[:5])
    else:
        state.boot_initiator = bytes(value[:9])
    return b""


def _get_boot_options(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    _need(data, 3)
    parameter = data[0] & 0x7F
    values = {
        0: bytes((state.set_in_progress,)),
        3: bytes((state.boot_valid_clearing,)),
        4: state.boot_acknowledge,
        5: state.chassis.flags,
        7: state.boot_initiator,
    }
    if parameter not in values:
        raise Completion(Code.PARAMETER_NOT_SUPPORTED)
    return bytes((_PARAMETER_VERSION, parameter)) + values[parameter]


def _fru_info(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    _need(data, 1)
    if data[0] != 0:
        raise Completion(Code.NOT_PRESENT)
    return struct.pack("<HB", len(state.fru), 0)


def _fru_read(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    _need(data, 4)
    number, offset, count = struct.unpack_from("<BHB", data)
    if number != 0:
        raise Completion(Code.NOT_PRESENT)
    if offset >= len(state.fru) or count == 0:
        raise Completion(Code.OUT_OF_RANGE)
    chunk = state.fru[offset : offset + count]
    return bytes((len(chunk),)) + chunk


def _channel_info(state: BmcState, _data: bytes, _session: Session | None) -> bytes:
    # 802.3 LAN, IPMI-LAN protocol, multi-session; vendor IANA 7154 (IPMI forum).
    return bytes((_LAN_CHANNEL, 0x04, 0x01, 0x80 | min(63, state.sessions.active_count()), 0xF2, 0x1B, 0, 0, 0))


def _channel_access(_state: BmcState, _data: bytes, _session: Session | None) -> bytes:
    return b"\x22\x04"


def _user_access(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    _need(data, 2)
    user = _user(state, data[1])
    enabled = 0x40 if user.enabled else 0x80
    way_in = 0x10 if user.messaging else 0
    return bytes((MAX_USERS, enabled | state.users.enabled_count(), 1, way_in | user.privilege))


def _set_user_access(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    _need(data, 3)
    user = _user(state, data[1])
    user.privilege = data[2] & 0x0F
    # Bit 7: the bits about how he may come in are to be taken, too; bit 4 is IPMI messaging (table 22-31).
    if data[0] & 0x80:
        user.messaging = bool(data[0] & 0x10)
    return b""


def _user_name(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    _need(data, 1)
    return _user(state, data[0]).name.ljust(16, b"\x00")


def _set_user_name(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    _need(data, 17)
    _user(state, data[0]).name = data[1:17].rstrip(b"\x00")
    return b""


def _set_user_password(state: BmcState, data: bytes, _session: Session | None) -> bytes:
    _need(data, 2)
    user, operation, password = _user(state, data[0]), data[1] & 3, data[2:22].rstrip(b"\x00")
    if operation == 0:
        user.enabled = False
    elif operation == 1:
        user.enabled = True
    elif operation == 2:
        user.password = password
    elif password != user.password:
        raise Completion(0x80)
    return b""


def _sol(answer: Callable[[Sol, bytes, Session | None], tuple[int, bytes]]) -> Handler:
    """A command that the serial console answers."""

    def handler(state: BmcState, data: bytes, session: Session | None) -> bytes:
        code, told = answer(state.sol, data, session)
        if code:
            raise Completion(code)
        return told

    return handler


def _user(state: BmcState, number: int) -> User:
    user = state.users.by_id(number & 0x3F)
    if user is None:
        raise Completion(Code.INVALID_FIELD)
    return user


WITHOUT_SESSION: dict[tuple[int, int], Handler] = {
    (APP, 0x38): _channel_capabilities,
    (APP, 0x54): _cipher_suites,
    (APP, 0x37): _guid,
}
"""Commands that are answered outside of a session."""

_USER, _OPERATOR, _ADMINISTRATOR = 2, 3, 4

IN_SESSION: dict[tuple[int, int], tuple[int, Handler]] = {
    **{key: (_USER, handler) for key, handler in WITHOUT_SESSION.items()},
    (APP, 0x01): (_USER, _device_id),
    (APP, 0x02): (_ADMINISTRATOR, _cold_reset),
    (APP, 0x04): (_USER, _self_test),
    (APP, 0x08): (_USER, _guid),
    (APP, 0x3B): (_USER, _set_privilege),
    (APP, 0x3C): (_USER, _close_session),
    (APP, 0x41): (_USER, _channel_access),
    (APP, 0x42): (_USER, _channel_info),
    (APP, 0x43): (_ADMINISTRATOR, _set_user_access),
    (APP, 0x44): (_OPERATOR, _user_access),
    (APP, 0x45): (_ADMINISTRATOR, _set_user_name),
    (APP, 0x46): (_OPERATOR, _user_name),
    (APP, 0x47): (_ADMINISTRATOR, _set_user_password),
    (APP, 0x48): (_USER, _sol(Sol.activate)),
    (APP, 0x49): (_USER, _sol(Sol.deactivate)),
    (APP, 0x4A): (_USER, _sol(Sol.status)),
    (APP, 0x4B): (_USER, _sol(Sol.instance)),
    (APP, 0x4D): (_OPERATOR, _sol(Sol.user_access)),
    (TRANSPORT, 0x02): (_OPERATOR, _lan_parameter),
    (TRANSPORT, 0x21): (_ADMINISTRATOR, _sol(Sol.set_configuration)),
    (TRANSPORT, 0x22): (_USER, _sol(Sol.get_configuration)),
    (CHASSIS, 0x01): (_USER, _chassis_status),
    (CHASSIS, 0x02): (_OPERATOR, _chassis_control),
    (CHASSIS, 0x04): (_OPERATOR, _identify),
    (CHASSIS, 0x08): (_OPERATOR, _set_boot_options),
    (CHASSIS, 0x09): (_OPERATOR, _get_boot_options),
    (STORAGE, 0x10): (_USER, _fru_info),
    (STORAGE, 0x11): (_USER, _fru_read),
    (STORAGE, 0x20): (_USER, repositories.sdr_info),
    (STORAGE, 0x22): (_USER, repositories.sdr_reserve),
    (STORAGE, 0x23): (_USER, repositories.sdr_get),
    (STORAGE, 0x40): (_USER, repositories.sel_info),
    (STORAGE, 0x42): (_USER, repositories.sel_reserve),
    (STORAGE, 0x43): (_USER, repositories.sel_get),
    (STORAGE, 0x44): (_OPERATOR, repositories.sel_add),
    (STORAGE, 0x46): (_OPERATOR, repositories.sel_delete),
    (STORAGE, 0x47): (_OPERATOR, repositories.sel_clear),
    (STORAGE, 0x48): (_USER, repositories.sel_time),
    (STORAGE, 0x49): (_OPERATOR, repositories.sel_set_time),
    (SENSOR, 0x27): (_USER, repositories.sensor_thresholds),
    (SENSOR, 0x2D): (_USER, repositories.sensor_reading),
    (GROUP, 0x02): (_USER, repositories.power_reading),
}
"""Commands inside a session with the least privilege each needs (IPMI 2.0 appendix G)."""


def execute(state: BmcState, netfn: int, command: int, data: bytes, session: Session | None) -> tuple[int, bytes]:
    """Run one command; returns completion code and response data."""
    key = (netfn, command)
    if session is None:
        handler = WITHOUT_SESSION.get(key)
        if handler is None:
            return (Code.PRIVILEGE if key in IN_SESSION else Code.INVALID_COMMAND), b""
    else:
        entry = IN_SESSION.get(key)
        if entry is None:
            return Code.INVALID_COMMAND, b""
        privilege, handler = entry
        if session.privilege < privilege:
            return Code.PRIVILEGE, b""
    try:
        return Code.OK, handler(state, data, session)
    except Completion as completion:
        return completion.code, b""
