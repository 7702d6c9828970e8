from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_sim.bmc import BootDevice, BootOverride, Faults, FruInfo, PowerAction, SimulatedBmc
from metal_sim.bmc import fru as fru_device
from metal_sim.bmc.chassis import Chassis, ChassisControl
from metal_sim.bmc.packet import Packet, build_plain, checksum, parse_packet, parse_request
from metal_sim.bmc.session import Session
from metal_sim.bmc.suites import SUITE_3, SUITE_17, SUITES, decrypt, encrypt, suite_for
from pyghmi.ipmi.fru import FRU

MACHINE = "6f8e2c1a-0b7d-4e55-9a10-0242ac120002"


@given(st.binary(max_size=200), st.binary(min_size=16, max_size=16))
def test_what_is_encrypted_is_decrypted(message: bytes, key: bytes) -> None:
    sealed = encrypt(key, message)
    assert len(sealed) % 16 == 0
    assert decrypt(key, sealed) == message


@given(st.binary(max_size=80), st.binary(min_size=16, max_size=16))
def test_decrypting_garbage_gives_nothing_or_bytes(garbage: bytes, key: bytes) -> None:
    result = decrypt(key, garbage)
    assert result is None or len(result) < len(garbage)


def test_only_the_two_suites_are_offered() -> None:
    assert suite_for(SUITES, 1, 1, 1) is SUITE_3
    assert suite_for(SUITES, 3, 4, 1) is SUITE_17
    assert suite_for(SUITES, 0, 0, 0) is None
    assert suite_for(SUITES, 3, 1, 1) is None
    assert suite_for([SUITE_3], 3, 4, 1) is None


@given(st.binary(max_size=120), st.sampled_from([15, 20]))
def test_a_plain_packet_is_read_back(payload: bytes, version: int) -> None:
    assert parse_packet(build_plain(payload, version=version)) == Packet(version, 0, False, False, 0, 0, payload)


@given(st.binary(max_size=100))
def test_the_checksum_makes_the_sum_zero(data: bytes) -> None:
    assert (sum(data) + checksum(data)) % 256 == 0


async def test_no_datagram_makes_the_bmc_fail() -> None:
    bmc = SimulatedBmc(MACHINE, password="secret")
    head = b"\x06\x00\xff\x07"

    @given(
        st.binary(max_size=90), st.sampled_from([b"", head, head + b"\x06\x00", head + b"\x06\xc0", head + b"\x06\x12"])
    )
    def send(data: bytes, prefix: bytes) -> None:
        bmc.datagram_received(prefix + data, ("127.0.0.1", 1))

    send()
    assert bmc.logins.succeeded == 0


def test_a_request_with_a_wrong_checksum_is_dropped() -> None:
    good = bytes((0x20, 0x18, checksum(b"\x20\x18"), 0x81, 0x04, 0x01))
    good += bytes((checksum(good[3:]),))
    request = parse_request(good)
    assert request is not None
    assert (request.netfn, request.command) == (6, 1)
    for position in range(len(good)):
        damaged = bytearray(good)
        damaged[position] ^= 0x10
        assert parse_request(bytes(damaged)) is None


def test_a_session_takes_each_sequence_number_once() -> None:
    session = Session(1, 2, SUITE_17, 0.0)
    assert [session.accept(n) for n in (1, 2, 2, 5, 3, 3, 0)] == [True, True, False, True, True, False, False]
    assert session.accept(100)
    assert not session.accept(84)
    assert session.accept(85)


text = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40)


@given(st.builds(FruInfo, *[text] * 12))
def test_a_foreign_parser_reads_the_fru(info: FruInfo) -> None:
    raw = fru_device.encode(info)
    parse: Any = FRU
    parsed = parse(rawdata=raw).info
    assert len(raw) % 8 == 0
    assert (parsed["Board serial number"] or "") == info.board_serial
    assert (parsed["Chassis serial number"] or "") == info.chassis_serial
    assert (parsed["Serial Number"] or "") == info.product_serial
    assert (parsed["Asset Number"] or "") == info.asset_tag
    for start, length in ((0, 8), (raw[2] * 8, 0), (raw[3] * 8, 0), (raw[4] * 8, 0)):
        area = raw[start : start + (length or raw[start + 1] * 8)]
        assert sum(area) % 256 == 0


def test_an_overlong_fru_field_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than 63"):
        fru_device.encode(FruInfo(board_serial="x" * 64))


async def test_power_changes_call_the_hook_once_each() -> None:
    seen: list[PowerAction] = []
    cycled = asyncio.Event()

    def hook(action: PowerAction) -> None:
        seen.append(action)
        if len(seen) == 3:
            cycled.set()

    chassis = Chassis(on_power=hook, cycle_seconds=0.01)
    assert chassis.control(ChassisControl.ON)
    assert chassis.control(ChassisControl.ON)
    assert chassis.control(ChassisControl.CYCLE)
    assert not chassis.powered
    await asyncio.wait_for(cycled.wait(), 5)
    assert chassis.powered
    assert chassis.control(ChassisControl.RESET)
    assert chassis.control(ChassisControl.OFF)
    assert seen == [PowerAction.ON, PowerAction.OFF, PowerAction.ON, PowerAction.RESET, PowerAction.OFF]


async def test_actions_may_be_given_by_their_numbers() -> None:
    seen: list[PowerAction] = []
    chassis = Chassis(powered=True, on_power=seen.append)
    assert chassis.control(3)  # type: ignore[arg-type]
    assert chassis.control(0)  # type: ignore[arg-type]
    assert seen == [PowerAction.RESET, PowerAction.OFF]
    with pytest.raises(ValueError, match="9 is not a valid"):
        chassis.control(9)  # type: ignore[arg-type]


async def test_power_off_during_a_cycle_stays_off() -> None:
    chassis = Chassis(powered=True, cycle_seconds=0.01)
    chassis.control(ChassisControl.CYCLE)
    chassis.control(ChassisControl.OFF)
    assert chassis._pending_on is None
    assert not chassis.powered


async def test_reset_and_cycle_need_power() -> None:
    chassis = Chassis()
    assert not chassis.control(ChassisControl.RESET)
    assert not chassis.control(ChassisControl.CYCLE)


def test_a_persistent_override_stays_and_a_single_one_is_used_up() -> None:
    chassis = Chassis(flags=b"\xe0\x04\x00\x00\x00")
    assert chassis.take_boot_override() == BootOverride(BootDevice.PXE, persistent=True, uefi=True)
    assert chassis.take_boot_override() is not None
    chassis.flags = b"\xa0\x18\x00\x00\x00"
    assert chassis.take_boot_override() == BootOverride(BootDevice.SETUP, persistent=False, uefi=True)
    assert chassis.take_boot_override() is None
    assert chassis.flags == b"\x20\x18\x00\x00\x00"


def test_faults_go_by_name() -> None:
    faults = Faults()
    faults.switch_on("drop", 50)
    faults.switch_on("lockout")
    assert faults.active() == {"drop": 50, "lockout": 3}
    faults.switch_off("drop")
    assert faults.active() == {"lockout": 3}
    with pytest.raises(ValueError, match="unknown BMC fault 'explode'; known are"):
        faults.switch_on("explode")
    with pytest.raises(ValueError, match="out of range"):
        faults.switch_on("drop", 101)


def test_a_lossy_bmc_loses_about_as_much_as_was_asked() -> None:
    faults = Faults(seed=1)
    faults.switch_on("drop", 30)
    assert 250 < sum(faults.loses_packet() for _ in range(1000)) < 350


def test_names_and_passwords_that_ipmi_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 16 bytes"):
        SimulatedBmc(MACHINE, user="x" * 17)
    with pytest.raises(ValueError, match="at most 20 bytes"):
        SimulatedBmc(MACHINE, password="x" * 21)


def test_the_password_is_not_in_any_representation() -> None:
    bmc = SimulatedBmc(MACHINE, password="hunter2-hunter2")
    assert "hunter2" not in repr(bmc.users.by_id(2))
    assert uuid.UUID(bmc.machine) == uuid.UUID(MACHINE)
