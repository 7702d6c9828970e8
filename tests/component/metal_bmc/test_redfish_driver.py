"""The Redfish driver against simulated BMCs: real HTTPS on loopback, each BMC with a certificate of its own."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable

import pytest
from metal_bmc.drivers import errors
from metal_bmc.drivers.interface import BootMode, BootSetting, BootTarget, BootWish, Capability, Target
from metal_bmc.drivers.ipmi import IpmiDriver
from metal_bmc.drivers.redfish import RedfishDriver
from metal_bmc.redfish.client import RedfishClient
from metal_kit.guard import in_transaction
from metal_sim.bmc import PowerAction, SimulatedBmc
from metal_sim.redfish import PERSONALITIES, SimulatedRedfish
from redfish_targets import redfish_target

NewRedfish = Callable[..., Awaitable[SimulatedRedfish]]
MAKES = sorted(PERSONALITIES)


@pytest.mark.parametrize("make", MAKES)
async def test_power_goes_on_and_off_and_is_read_back(
    make: str, new_redfish: NewRedfish, redfish: RedfishDriver
) -> None:
    bmc = await new_redfish(make)
    login = redfish_target(bmc)
    assert not await redfish.powered(login, deadline=20)
    await redfish.set_power(login, on=True, deadline=20)
    assert await redfish.powered(login, deadline=20)
    await redfish.set_power(login, on=False, deadline=20)
    assert not await redfish.powered(login, deadline=20)
    assert bmc.chassis.history == [PowerAction.ON, PowerAction.OFF]


async def test_one_session_serves_all_exchanges_and_is_closed_in_the_end(
    new_redfish: NewRedfish, redfish_client: RedfishClient, redfish: RedfishDriver
) -> None:
    bmc = await new_redfish(session_limit=1)
    for _ in range(5):
        await redfish.powered(redfish_target(bmc), deadline=20)
    assert (bmc.logins.started, len(bmc.sessions)) == (1, 1)
    await redfish_client.close()
    assert len(bmc.sessions) == 0


async def test_what_is_so_already_is_not_ordered(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish(powered=True)
    await redfish.set_power(redfish_target(bmc), on=True, deadline=20)
    assert not [method for method, _ in bmc.seen if method == "POST" and "Actions" in _]
    await redfish.soft_off(redfish_target(bmc), deadline=20)
    await redfish.soft_off(redfish_target(bmc), deadline=20)
    assert bmc.chassis.history == [PowerAction.OFF]


ORDERS = {"plain": "On", "no-on": "ForceOn", "button": "PushPowerButton", "old": "On", "strict": "On"}


@pytest.mark.parametrize("make", ORDERS)
async def test_only_what_the_bmc_lists_is_sent(make: str, new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish(make)
    await redfish.set_power(redfish_target(bmc), on=True, deadline=20)
    assert [entry.message for entry in bmc.state.log] == [f"Power order {ORDERS[make]}"]


async def test_what_the_bmc_does_not_list_is_unsupported(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish("button", powered=True)
    with pytest.raises(errors.BmcUnsupported, match="no way to interrupt"):
        await redfish.interrupt(redfish_target(bmc), deadline=20)
    assert bmc.chassis.history == []


@pytest.mark.parametrize("make", MAKES)
async def test_a_reset_is_sent_once(make: str, new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish(make, powered=True)
    await redfish.reset(redfish_target(bmc), deadline=20)
    assert bmc.chassis.history == [PowerAction.RESET]


async def test_a_reset_whose_answer_is_lost_is_not_repeated(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish(powered=True)
    bmc.faults.switch_on("loses-answers")
    with pytest.raises(errors.BmcTimeout, match="may have carried it out"):
        await redfish.reset(redfish_target(bmc), deadline=20)
    assert bmc.chassis.history == [PowerAction.RESET]


async def test_power_whose_answer_is_lost_is_ordered_again(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish(powered=True)
    bmc.faults.switch_on("loses-answers")
    with pytest.raises(errors.BmcTimeout):
        await redfish.set_power(redfish_target(bmc), on=False, deadline=20)
    assert bmc.chassis.history == [PowerAction.OFF]
    bmc.faults.clear()
    await redfish.set_power(redfish_target(bmc), on=False, deadline=20)


async def test_a_reset_without_power_is_refused(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish()
    with pytest.raises(errors.BmcRefused, match="off"):
        await redfish.reset(redfish_target(bmc), deadline=20)
    assert bmc.chassis.history == []


WISHES = [
    (BootWish(BootTarget.PXE), "e004000000"),
    (BootWish(BootTarget.DISK, mode=BootMode.UEFI), "e008000000"),
    (BootWish(BootTarget.BIOS, persistent=False), "a018000000"),
    (BootWish(BootTarget.PXE, persistent=False, mode=BootMode.BIOS), "8004000000"),
]


@pytest.mark.parametrize("make", ["plain", "strict", "weak"])
@pytest.mark.parametrize(("wish", "flags"), WISHES)
async def test_the_boot_override_is_set_and_read_back(
    wish: BootWish, flags: str, make: str, new_redfish: NewRedfish, redfish: RedfishDriver
) -> None:
    bmc = await new_redfish(make)
    setting = await redfish.set_boot(redfish_target(bmc), wish, deadline=20)
    assert setting == BootSetting(wish.target, wish.persistent, wish.mode or BootMode.UEFI)
    assert setting == await redfish.boot(redfish_target(bmc), deadline=20)
    # What an RMCP+ BMC of the same machine would show.
    assert bmc.chassis.flags.hex() == flags


async def test_an_old_bmc_tells_once_as_persistent_and_no_mode(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish("old")
    setting = await redfish.set_boot(redfish_target(bmc), BootWish(BootTarget.PXE, persistent=False), deadline=20)
    assert setting == BootSetting(BootTarget.PXE, persistent=True, mode=None)
    assert bmc.chassis.flags.hex() == "a004000000"
    with pytest.raises(errors.BmcUnsupported, match="UEFI and BIOS"):
        await redfish.set_boot(redfish_target(bmc), BootWish(BootTarget.PXE, mode=BootMode.BIOS), deadline=20)


async def test_a_boot_source_that_the_bmc_does_not_list_is_unsupported(
    new_redfish: NewRedfish, redfish: RedfishDriver
) -> None:
    personality = PERSONALITIES["plain"].__class__(boot_targets=("None", "Pxe"))
    bmc = await new_redfish(personality=personality)
    with pytest.raises(errors.BmcUnsupported, match="Hdd"):
        await redfish.set_boot(redfish_target(bmc), BootWish(BootTarget.DISK), deadline=20)
    assert not [path for method, path in bmc.seen if method == "PATCH"]


async def test_an_override_that_is_accepted_and_not_set_reads_back_as_it_was(
    new_redfish: NewRedfish, redfish: RedfishDriver
) -> None:
    bmc = await new_redfish()
    bmc.faults.switch_on("does-nothing")
    setting = await redfish.set_boot(redfish_target(bmc), BootWish(BootTarget.PXE), deadline=20)
    assert setting == BootSetting(None, False, BootMode.UEFI)


@pytest.mark.parametrize("make", MAKES)
async def test_the_identify_light_is_read_back(make: str, new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish(make)
    assert await redfish.set_identify(redfish_target(bmc), on=True, deadline=20) is True
    assert bmc.chassis.identify_state() == 2
    assert await redfish.set_identify(redfish_target(bmc), on=False, deadline=20) is False
    assert bmc.chassis.identify_state() == 0


async def test_a_bmc_says_who_it_is_and_what_it_can_do(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish(powered=True, firmware="2.47")
    info = await redfish.inspect(redfish_target(bmc, fingerprint=b""), deadline=20)
    assert (info.machine, info.firmware, info.powered) == (bmc.machine, "2.47", True)
    assert (info.guid, info.fingerprint) == (uuid.UUID(bmc.machine).bytes, bmc.fingerprint)
    assert info.fru["Manufacturer"] == "Contoso"
    assert info.fru["Serial Number"] == bmc.state.serial
    assert info.capabilities >= {
        Capability.POWER_ON, Capability.POWER_OFF, Capability.POWER_RESET, Capability.POWER_SOFT_OFF, Capability.NMI,
        Capability.BOOT_ONCE, Capability.BOOT_PERSISTENT, Capability.BOOT_UEFI, Capability.BOOT_BIOS,
        Capability.IDENTIFY, Capability.SENSORS, Capability.POWER_METRICS, Capability.SEL, Capability.FRU,
        Capability.FIRMWARE_INVENTORY, Capability.FIRMWARE_UPDATE,
    }  # fmt: skip
    assert not info.capabilities & {Capability.CONSOLE, Capability.USERS, Capability.VIRTUAL_MEDIA}


LACKS = {
    "old": {Capability.BOOT_BIOS, Capability.NMI, Capability.POWER_CYCLE, Capability.FIRMWARE_UPDATE},
    "button": {Capability.NMI, Capability.POWER_CYCLE},
    "no-on": {Capability.NMI, Capability.POWER_CYCLE},
    "strict": set(),
    "basic": set(),
}


@pytest.mark.parametrize("make", LACKS)
async def test_what_a_make_lacks_is_no_capability(make: str, new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish(make)
    able = (await redfish.inspect(redfish_target(bmc), deadline=20)).capabilities
    everything = {Capability.BOOT_BIOS, Capability.NMI, Capability.POWER_CYCLE, Capability.FIRMWARE_UPDATE}
    assert everything - able == LACKS[make]
    assert able >= {Capability.POWER_ON, Capability.POWER_OFF, Capability.BOOT_ONCE, Capability.IDENTIFY}


async def test_one_machine_may_have_both_protocols(
    new_redfish: NewRedfish,
    new_bmc: Callable[..., Awaitable[SimulatedBmc]],
    redfish: RedfishDriver,
    driver: IpmiDriver,
    target: Callable[..., Target],
) -> None:
    ipmi = await new_bmc()
    bmc = await new_redfish(machine=ipmi.machine, chassis=ipmi.chassis)
    await redfish.set_power(redfish_target(bmc), on=True, deadline=20)
    assert await driver.powered(target(ipmi), deadline=20)
    wish = BootWish(BootTarget.DISK, persistent=False)
    assert await redfish.set_boot(redfish_target(bmc), wish, deadline=20) == await driver.boot(
        target(ipmi), deadline=20
    )


async def test_a_bmc_is_not_asked_within_a_transaction(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish()
    token = in_transaction.set("a test")
    try:
        with pytest.raises(RuntimeError, match="commit first"):
            await redfish.powered(redfish_target(bmc), deadline=20)
    finally:
        in_transaction.reset(token)
    assert bmc.requests == 0
