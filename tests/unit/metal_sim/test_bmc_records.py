"""Event log, sensor records and the table of faults, without sockets."""

from __future__ import annotations

import struct
from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_sim.bmc import BmcFarm, BmcFault, Faults, SimulatedBmc, commands
from metal_sim.bmc.event_log import CAPACITY, EventLog
from metal_sim.bmc.faults import KINDS, table
from metal_sim.bmc.sensors import SENSORS, Readings, repository
from metal_sim.bmc.session import Session
from metal_sim.bmc.suites import SUITE_17

MACHINE = "6f8e2c1a-0b7d-4e55-9a10-0242ac120002"
STORAGE, SENSOR = 0x0A, 0x04
ANYBODY = Session(1, 2, SUITE_17, 0.0, privilege=4)


def ask(bmc: SimulatedBmc, netfn: int, command: int, data: bytes = b"") -> tuple[int, bytes]:
    return commands.execute(bmc._state, netfn, command, data, ANYBODY)


def test_a_log_keeps_its_order_and_forgets_what_is_deleted() -> None:
    log = EventLog(lambda: 1_700_000_000.5)
    ids = [log.add(0x01, number, (1, 2, 3)) for number in range(3)]
    assert ids == [1, 2, 3]
    assert log.delete(2)
    assert not log.delete(2)
    following, record = log.get(0) or (0, b"")
    assert (following, struct.unpack("<HBIHBBBB3s", record)) == (
        3, (1, 2, 1_700_000_000, 0x20, 4, 0x01, 0, 0x6F, b"\x01\x02\x03"),
    )  # fmt: skip
    assert log.get(3) == log.get(0xFFFF)
    assert (log.get(3) or (0, b""))[0] == 0xFFFF
    log.clear()
    assert (len(log), log.get(0)) == (0, None)
    assert log.add(0x01, 1, (1, 2, 3)) == 4


def test_a_full_log_says_so_and_keeps_what_it_has() -> None:
    bmc = SimulatedBmc(MACHINE, password="x")
    for number in range(CAPACITY):
        assert bmc.event_log.add(1, number % 256, (0, 0, 0))
    assert bmc.event_log.add(1, 1, (0, 0, 0)) == 0
    assert ask(bmc, STORAGE, 0x44, bytes(16)) == (0xC4, b"")
    code, info = ask(bmc, STORAGE, 0x40)
    assert (code, info[1:5], info[13] & 0x80) == (0, struct.pack("<HH", CAPACITY, 0), 0x80)


def test_a_reservation_is_lost_when_an_event_comes_in() -> None:
    bmc = SimulatedBmc(MACHINE, password="x")
    bmc.event_log.add(1, 1, (0, 0, 0))
    _, reservation = ask(bmc, STORAGE, 0x42)
    bmc.event_log.add(1, 2, (0, 0, 0))
    assert ask(bmc, STORAGE, 0x47, reservation + b"CLR\xaa") == (0xC5, b"")
    assert ask(bmc, STORAGE, 0x46, reservation + b"\x01\x00") == (0xC5, b"")
    _, reservation = ask(bmc, STORAGE, 0x42)
    assert ask(bmc, STORAGE, 0x47, reservation + b"CLX\xaa") == (0xCC, b"")
    assert ask(bmc, STORAGE, 0x47, reservation + b"CLR\xaa") == (0, b"\x01")
    assert len(bmc.event_log) == 0


def test_records_are_read_in_parts_one_after_the_other() -> None:
    bmc = SimulatedBmc(MACHINE, password="x")
    number, found = 0, list[bytes]()
    while number != 0xFFFF:
        _, reservation = ask(bmc, STORAGE, 0x22)
        head = ask(bmc, STORAGE, 0x23, reservation + struct.pack("<HBB", number, 0, 5))[1]
        whole = ask(bmc, STORAGE, 0x23, reservation + struct.pack("<HBB", number, 0, 0xFF))[1]
        tail = ask(bmc, STORAGE, 0x23, reservation + struct.pack("<HBB", number, 5, head[6]))[1]
        assert whole[2:] == head[2:] + tail[2:]
        found.append(whole[2:])
        number = int.from_bytes(whole[:2], "little")
    assert tuple(found) == repository()
    assert len(found) == len(SENSORS)


@given(st.sampled_from([(0x0A, n) for n in (0x23, 0x43, 0x44, 0x46, 0x47, 0x49)] + [(4, 0x27), (4, 0x2D), (0x2C, 2)]),
       st.binary(max_size=20))  # fmt: skip
def test_no_request_makes_these_commands_fail(key: tuple[int, int], data: bytes) -> None:
    bmc = SimulatedBmc(MACHINE, password="x")
    bmc.event_log.add(1, 1, (0, 0, 0))
    code, answer = ask(bmc, *key, data)
    assert code == 0 or answer == b""


def test_readings_follow_the_power_and_what_a_test_sets() -> None:
    readings, fan, temperature = Readings(), SENSORS[2], SENSORS[0]
    assert readings.raw(fan, powered=False) == 0
    assert readings.raw(fan, powered=True) == fan.usual
    readings.set("FAN1", 4)
    assert fan.alarms(readings.raw(fan, powered=True)) == 0b11
    readings.set("FAN1", None)
    assert readings.raw(fan, powered=True) == fan.usual
    assert temperature.alarms(97) == 0b11000
    with pytest.raises(ValueError, match="one byte"):
        readings.set("FAN1", 256)
    with pytest.raises(KeyError):
        readings.set("FAN9", 1)


def test_every_fault_is_explained_and_has_a_value_only_where_it_has_a_unit() -> None:
    assert set(KINDS) == set(BmcFault)
    lines = table().splitlines()
    assert len(lines) == len(BmcFault)
    for fault, line in zip(KINDS, lines, strict=True):
        assert line.startswith(f"{fault}[=" if KINDS[fault].unit else f"{fault} ")
        assert KINDS[fault].explanation in line


def test_garbage_is_the_same_in_each_run_and_as_much_as_was_asked() -> None:
    answer = bytes(range(0x40, 0x70))
    runs = []
    for _ in range(2):
        faults = Faults(seed=9)
        faults.switch_on("garbage", 50)
        runs.append([faults.garbled(answer) for _ in range(400)])
    assert runs[0] == runs[1]
    assert 150 < sum(sent != answer for sent in runs[0]) < 250


def test_a_farm_is_on_loopback_and_has_an_end() -> None:
    with pytest.raises(ValueError, match="loopback interface"):
        BmcFarm(IPv4Network("10.0.0.0/24"))
    farm = BmcFarm(IPv4Network("127.20.0.0/30"))
    farm.fill(2, password="x")
    with pytest.raises(ValueError, match="no address left"):
        farm.fill(1, password="x")
    assert [bmc.address[0] for bmc in farm] == ["127.20.0.1", "127.20.0.2"]
    assert len({bmc.machine for bmc in farm}) == 2
