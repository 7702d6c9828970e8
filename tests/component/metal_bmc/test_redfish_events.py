"""What Redfish BMCs tell by themselves: event streams, beside which they are asked as before."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from metal_bmc.drivers import errors
from metal_bmc.drivers.redfish import RedfishDriver
from metal_bmc.drivers.telemetry import Health
from metal_bmc.redfish.client import RedfishClient, SessionLife
from metal_sim.redfish import SimulatedRedfish
from redfish_targets import redfish_target

NewRedfish = Callable[..., Awaitable[SimulatedRedfish]]
Eventually = Callable[..., Awaitable[None]]


async def test_events_come_as_they_happen_and_other_exchanges_go_on(
    new_redfish: NewRedfish, redfish: RedfishDriver, eventually: Eventually
) -> None:
    bmc = await new_redfish("strict")
    async with redfish.events(redfish_target(bmc), deadline=20) as stream:
        await eventually(lambda: len(bmc.listeners) == 1)
        bmc.record("Contoso.1.0.FanFailed", "Fan 1 has failed", "Critical")
        event = await anext(stream)
        assert (event.health, event.message_id, event.text) == (
            Health.CRITICAL,
            "Contoso.1.0.FanFailed",
            "Fan 1 has failed",
        )
        await redfish.set_power(redfish_target(bmc), on=True, deadline=20)
        assert (await anext(stream)).text == "Power order On"
    await eventually(lambda: len(bmc.listeners) == 0)
    assert bmc.logins.started == 1


async def test_a_stream_keeps_its_session_and_ends_with_it(new_redfish: NewRedfish, eventually: Eventually) -> None:
    bmc, other = await new_redfish(), await new_redfish()
    client = RedfishClient(SessionLife(unused=0.05, look=0.01))
    driver = RedfishDriver(client)
    async with driver.events(redfish_target(bmc), deadline=20) as stream:
        await eventually(lambda: len(bmc.listeners) == 1)
        # One that began later and is not used any more has gone meanwhile.
        await driver.powered(redfish_target(other), deadline=20)
        await eventually(lambda: len(other.sessions) == 0)
        assert (len(bmc.sessions), client.sessions) == (1, 1)
        bmc.listeners.cut()
        assert [each async for each in stream] == []
    await eventually(lambda: len(bmc.sessions) == 0)
    await client.close()


async def test_a_stream_that_falls_silent_is_given_up(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish()
    with pytest.raises(errors.BmcTimeout):
        async with redfish.events(redfish_target(bmc), deadline=20, silence=0.2) as stream:
            await anext(stream)


async def test_a_bmc_without_a_stream_is_told_as_that(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish("old")
    with pytest.raises(errors.BmcUnsupported, match="no event stream"):
        async with redfish.events(redfish_target(bmc), deadline=20):
            pytest.fail("there is a stream")


async def test_a_stream_that_a_bmc_refuses_is_told_as_that(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish()
    assert not await redfish.powered(redfish_target(bmc), deadline=20)
    bmc.faults.switch_on("busy", 60)
    with pytest.raises(errors.BmcBusy):
        async with redfish.events(redfish_target(bmc), deadline=20):
            pytest.fail("there is a stream")
