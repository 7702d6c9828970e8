"""The driver against simulated BMCs: real UDP, real RMCP+, and pyghmi's processes for FRU."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from metal_bmc.drivers import errors
from metal_bmc.drivers.interface import BootMode, BootSetting, BootTarget, BootWish, Capability, DriverKind, Target
from metal_bmc.drivers.ipmi import IpmiDriver
from metal_bmc.drivers.quirks import Quirks
from metal_bmc.drivers.router import DriverSet
from metal_bmc.rmcp.client import RmcpClient
from metal_kit.guard import in_transaction
from metal_sim.bmc import BootDevice, BootOverride, PowerAction, SimulatedBmc, commands
from metal_sim.bmc.suites import SUITES, CipherSuite

NewBmc = Callable[..., Awaitable[SimulatedBmc]]
MakeTarget = Callable[..., Target]
Eventually = Callable[..., Awaitable[None]]
CHASSIS_STATUS = (0, 1)
CHASSIS_CONTROL = (0, 2)
# Decides which packets a lossy BMC loses.
MACHINE = "6f8e2c1a-0b7d-4e55-9a10-0242ac120002"
PASSWORD = "pw-Tr0ub4dor-do-leak"


async def test_power_goes_on_and_off_and_is_read_back(new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget) -> None:
    bmc = await new_bmc()
    login = target(bmc)
    assert not await driver.powered(login, deadline=20)
    await driver.set_power(login, on=True, deadline=20)
    assert await driver.powered(login, deadline=20)
    await driver.set_power(login, on=False, deadline=20)
    assert not await driver.powered(login, deadline=20)
    assert bmc.chassis.history == [PowerAction.ON, PowerAction.OFF]


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: f"suite {suite.number}")
async def test_bmcs_that_know_one_cipher_suite_only_are_served(
    suite: CipherSuite, new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget
) -> None:
    bmc = await new_bmc(powered=True, suites=[suite])
    assert await driver.powered(target(bmc), deadline=20)
    assert (bmc.logins.started, bmc.logins.succeeded) == (1, 1)


async def test_one_session_serves_all_exchanges_and_is_closed_in_the_end(
    new_bmc: NewBmc, client: RmcpClient, driver: IpmiDriver, target: MakeTarget
) -> None:
    bmc = await new_bmc(session_slots=2)
    for _ in range(12):
        await driver.powered(target(bmc), deadline=20)
    assert (bmc.logins.started, bmc.active_sessions) == (1, 1)
    await client.close()
    assert bmc.active_sessions == 0


async def test_a_reset_is_sent_once(new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget) -> None:
    bmc = await new_bmc(powered=True)
    await driver.reset(target(bmc), deadline=20)
    assert bmc.chassis.history == [PowerAction.RESET]
    assert bmc.seen[CHASSIS_CONTROL] == 1


async def test_a_reset_whose_answer_is_lost_is_not_repeated(
    new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget
) -> None:
    bmc = await new_bmc(powered=True)
    bmc.chassis.on_power = lambda _action: bmc.faults.switch_on("hang")
    with pytest.raises(errors.BmcTimeout, match="may have carried it out"):
        await driver.reset(target(bmc), deadline=20)
    assert bmc.seen[CHASSIS_CONTROL] == 1


async def test_a_reset_without_power_is_refused(new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget) -> None:
    bmc = await new_bmc()
    with pytest.raises(errors.BmcRefused, match="code 0xd5"):
        await driver.reset(target(bmc), deadline=20)


OVERRIDES = {
    BootTarget.PXE: ("e004000000", BootOverride(BootDevice.PXE, True, True)),
    BootTarget.DISK: ("e008000000", BootOverride(BootDevice.DISK, True, True)),
    BootTarget.BIOS: ("a018000000", BootOverride(BootDevice.SETUP, False, True)),
}


@pytest.mark.parametrize("boot", BootTarget)
async def test_the_boot_override_has_the_exact_flags(
    boot: BootTarget, new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget
) -> None:
    bmc = await new_bmc()
    wish = BootWish(boot, persistent=boot is not BootTarget.BIOS)
    setting = await driver.set_boot(target(bmc), wish, deadline=20)
    assert setting == BootSetting(boot, boot is not BootTarget.BIOS, BootMode.UEFI)
    assert setting == await driver.boot(target(bmc), deadline=20)
    assert (bmc.chassis.flags.hex(), bmc.chassis.boot_override()) == OVERRIDES[boot]


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("mode", BootMode)
async def test_an_override_is_once_or_lasting_and_of_a_mode(
    persistent: bool, mode: BootMode, new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget
) -> None:
    bmc = await new_bmc()
    setting = await driver.set_boot(target(bmc), BootWish(BootTarget.PXE, persistent, mode), deadline=20)
    assert setting == BootSetting(BootTarget.PXE, persistent, mode)
    assert bmc.chassis.boot_override() == BootOverride(BootDevice.PXE, persistent, mode is BootMode.UEFI)


async def test_soft_off_and_interrupt_are_orders_of_their_own(
    new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget
) -> None:
    bmc = await new_bmc(powered=True)
    bmc.chassis.on_power = lambda _action: None
    await driver.soft_off(target(bmc), deadline=20)
    await driver.interrupt(target(bmc), deadline=20)
    assert bmc.chassis.history == [PowerAction.SOFT_OFF, PowerAction.NMI]
    assert await driver.powered(target(bmc), deadline=20)


async def test_a_bmc_says_what_it_can_do(
    new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    bmc = await new_bmc()
    info = await driver.inspect(target(bmc), deadline=20)
    told = (Capability.POWER_ON, Capability.BOOT_ONCE, Capability.FRU, Capability.SENSORS, Capability.SEL)
    assert {*told, Capability.POWER_METRICS, Capability.CONSOLE} <= info.capabilities
    assert not info.capabilities & {Capability.VIRTUAL_MEDIA, Capability.FIRMWARE_UPDATE, Capability.BIOS_SETTINGS}
    quirky = replace(target(bmc), quirks=Quirks(lacks=frozenset({"identify"})))
    answering(monkeypatch, (0, 9), [0x80])
    info = await driver.inspect(quirky, deadline=20)
    assert not info.capabilities & {Capability.BOOT_ONCE, Capability.BOOT_UEFI, Capability.IDENTIFY}
    answering(monkeypatch, (0x0C, 0x22), [0xC1])
    assert Capability.CONSOLE not in (await driver.inspect(target(bmc), deadline=20)).capabilities
    answering(monkeypatch, (0, 9), [0xC0])
    assert Capability.BOOT_ONCE in (await driver.inspect(target(bmc), deadline=20)).capabilities


async def test_a_target_of_a_kind_that_nobody_drives_is_unsupported(
    new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget
) -> None:
    bmc = await new_bmc(powered=True)
    both = DriverSet({DriverKind.IPMI: driver})
    assert await both.powered(target(bmc), deadline=20)
    with pytest.raises(errors.BmcUnsupported, match="redfish"):
        await both.powered(replace(target(bmc), driver=DriverKind.REDFISH), deadline=20)


async def test_the_disk_selector_of_a_quirky_board_is_used(
    new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget
) -> None:
    bmc = await new_bmc()
    quirky = replace(target(bmc), quirks=Quirks(disk_selector=0x24))
    setting = await driver.set_boot(quirky, BootWish(BootTarget.DISK), deadline=20)
    assert setting.target is BootTarget.DISK
    assert bmc.chassis.flags.hex() == "e024000000"


async def test_the_identify_light_is_read_back(new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget) -> None:
    bmc = await new_bmc()
    assert await driver.set_identify(target(bmc), on=True, deadline=20) is True
    assert bmc.chassis.identify_state() == 2
    assert await driver.set_identify(target(bmc), on=False, deadline=20) is False
    assert bmc.chassis.identify_state() == 0


async def test_a_bmc_says_who_it_is(new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget) -> None:
    bmc = await new_bmc(powered=True, firmware=(2, 47))
    info = await driver.inspect(target(bmc), deadline=20)
    assert info.machine == bmc.machine
    assert info.firmware == "2.47"
    assert info.powered
    assert info.fru["Board serial number"] == bmc.fru_info.board_serial
    assert info.fru["Manufacturer"] == "metalplane"


async def test_a_wrong_password_costs_one_attempt(new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget) -> None:
    bmc = await new_bmc()
    with pytest.raises(errors.BmcAuthFailed):
        await driver.powered(target(bmc, password="guess"), deadline=20)
    assert bmc.logins.started == 1


async def test_an_unknown_user_costs_one_attempt(new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget) -> None:
    bmc = await new_bmc()
    with pytest.raises(errors.BmcAuthFailed):
        await driver.powered(target(bmc, user="nobody"), deadline=20)
    assert bmc.logins.started == 1


async def test_a_locked_bmc_refuses_even_the_right_password(
    new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget
) -> None:
    bmc = await new_bmc()
    bmc.faults.switch_on("lockout", 2)
    for _ in range(2):
        with pytest.raises(errors.BmcAuthFailed):
            await driver.powered(target(bmc, password="guess"), deadline=20)
    with pytest.raises(errors.BmcAuthFailed, match="refuses the user"):
        await driver.powered(target(bmc), deadline=20)
    bmc.faults.clear()
    assert not await driver.powered(target(bmc), deadline=20)


async def test_full_session_slots_are_told_apart(new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget) -> None:
    bmc = await new_bmc()
    bmc.faults.switch_on("slots-full")
    with pytest.raises(errors.BmcSessionsFull):
        await driver.powered(target(bmc), deadline=20)


async def test_a_dead_bmc_is_a_timeout(new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget) -> None:
    bmc = await new_bmc()
    bmc.faults.switch_on("hang")
    with pytest.raises(errors.BmcTimeout):
        await driver.powered(target(bmc), deadline=20)


@pytest.mark.parametrize("count", [1, 2])
async def test_a_packet_that_is_lost_is_sent_again(
    new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget, count: int
) -> None:
    async def lose(after: int) -> bool:
        bmc = await new_bmc(powered=True)
        bmc.faults.lose_packets(count, after=after)
        powered = await driver.powered(target(bmc), deadline=40)
        assert not bmc.faults.losses_left
        return powered

    # Every packet of a login and the order after it, in either direction.
    assert await asyncio.gather(*(lose(after) for after in range(10))) == [True] * 10


async def test_an_exchange_inside_a_transaction_is_refused(
    new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget
) -> None:
    bmc = await new_bmc()
    token = in_transaction.set("a test")
    try:
        with pytest.raises(RuntimeError, match="inside the transaction"):
            await driver.powered(target(bmc), deadline=20)
    finally:
        in_transaction.reset(token)


async def test_errors_hold_no_secret(new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget) -> None:
    bmc = await new_bmc()
    bmc.faults.switch_on("wrong-password")
    login: Any = target(bmc)
    with pytest.raises(errors.BmcAuthFailed) as caught:
        await driver.powered(login, deadline=20)
    assert PASSWORD not in repr(caught.value) + repr(login) + str(login)


async def test_a_slow_bmc_and_one_that_loses_packets_are_served(
    new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget
) -> None:
    slow, lossy = await new_bmc(powered=True), await new_bmc(powered=True, machine=MACHINE)
    slow.faults.switch_on("slow", 0.8)
    lossy.faults.switch_on("drop", 10)
    both = (driver.powered(target(bmc), deadline=40) for bmc in (slow, lossy))
    assert await asyncio.gather(*both) == [True, True]


async def test_a_bmc_that_accepts_and_does_nothing_is_found_out_by_reading_back(
    new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget
) -> None:
    bmc = await new_bmc()
    bmc.faults.switch_on("does-nothing")
    await driver.set_power(target(bmc), on=True, deadline=20)
    assert not await driver.powered(target(bmc), deadline=20)
    setting = await driver.set_boot(target(bmc), BootWish(BootTarget.PXE), deadline=20)
    assert setting.target is None
    assert await driver.set_identify(target(bmc), on=True, deadline=20) is False


def answering(monkeypatch: pytest.MonkeyPatch, key: tuple[int, int], codes: list[int]) -> None:
    """Let simulated BMCs answer a command with these completion codes first, one after the other."""
    execute = commands.execute

    def first(state: Any, netfn: int, command: int, data: bytes, session: Any) -> tuple[int, bytes]:
        if (netfn, command) == key and codes:
            return codes.pop(0), b""
        return execute(state, netfn, command, data, session)

    monkeypatch.setattr(commands, "execute", first)


async def test_a_busy_bmc_is_asked_again(
    new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    bmc = await new_bmc(powered=True)
    answering(monkeypatch, CHASSIS_STATUS, [0xC0, 0xC3])
    assert await driver.powered(target(bmc), deadline=20)
    assert bmc.seen[CHASSIS_STATUS] == 3
    assert bmc.logins.started == 1


async def test_a_bmc_that_stays_busy_is_named_as_that(
    new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    bmc = await new_bmc(powered=True)
    answering(monkeypatch, CHASSIS_STATUS, [0xC0] * 20)
    with pytest.raises(errors.BmcRefused, match="code 0xc0: it is busy"):
        await driver.powered(target(bmc), deadline=20)
    assert bmc.seen[CHASSIS_STATUS] == 4


async def test_a_reset_into_a_busy_bmc_is_not_repeated(
    new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    bmc = await new_bmc(powered=True)
    answering(monkeypatch, CHASSIS_CONTROL, [0xC3])
    with pytest.raises(errors.BmcRefused, match="ran out of time"):
        await driver.reset(target(bmc), deadline=20)
    assert bmc.seen[CHASSIS_CONTROL] == 1


async def test_a_command_that_the_bmc_does_not_know_is_never_a_success(
    new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    bmc = await new_bmc()
    answering(monkeypatch, (0, 4), [0xC1])
    with pytest.raises(errors.BmcUnsupported):
        await driver.set_identify(target(bmc), on=True, deadline=20)


async def test_a_user_without_the_privilege_is_refused_at_the_door(
    new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget
) -> None:
    bmc = await new_bmc()
    user = bmc.users.by_name(b"metal")
    assert user is not None
    user.privilege = 3
    with pytest.raises(errors.BmcAuthFailed, match="refuses the user"):
        await driver.powered(target(bmc), deadline=20)
    assert bmc.logins.started == 1


async def test_a_dead_bmc_was_not_reset(new_bmc: NewBmc, driver: IpmiDriver, target: MakeTarget) -> None:
    bmc = await new_bmc(powered=True)
    assert await driver.powered(target(bmc), deadline=20)
    bmc.faults.switch_on("hang")
    with pytest.raises(errors.BmcTimeout) as caught:
        await driver.reset(target(bmc), deadline=2)
    assert "may have" not in caught.value.message
    assert bmc.seen[CHASSIS_CONTROL] == 0
