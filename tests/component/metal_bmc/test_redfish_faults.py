"""The Redfish driver against BMCs that misbehave: each fault is told by its reason, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from metal_bmc.drivers import errors
from metal_bmc.drivers.interface import BootTarget, BootWish, Target
from metal_bmc.drivers.redfish import RedfishDriver
from metal_bmc.redfish.client import RedfishClient
from metal_bmc.redfish.wire import MOST_BYTES
from metal_sim.redfish import SimulatedRedfish
from redfish_targets import redfish_target

NewRedfish = Callable[..., Awaitable[SimulatedRedfish]]
Eventually = Callable[..., Awaitable[None]]
SYSTEM = "/redfish/v1/Systems/1"

BAD = {
    "wrong-types": "should be",
    "no-object": "no JSON object",
    "half": "no JSON",
    "deep": "no JSON",
    "huge": "more than",
    "huge-announced": "more than",
    "compressed": "compressed",
    "html": "content type",
    "redirect": "not followed",
}


@pytest.mark.parametrize("only", ["", f"GET {SYSTEM}", "GET /redfish/v1/Systems"], ids=["all", "system", "list"])
@pytest.mark.parametrize("fault", BAD)
async def test_an_answer_that_makes_no_sense_is_told_as_that(
    fault: str, only: str, new_redfish: NewRedfish, redfish_client: RedfishClient, redfish: RedfishDriver
) -> None:
    bmc = await new_redfish()
    bmc.faults.switch_on(fault, only=only)
    with pytest.raises(errors.BmcBadAnswer, match=BAD[fault]) as caught:
        await redfish.powered(redfish_target(bmc), deadline=20)
    assert bmc.password not in caught.value.message
    assert bmc.address[0] not in caught.value.message
    bmc.faults.clear()
    assert not await redfish.powered(redfish_target(bmc), deadline=20)
    await redfish_client.close()
    assert len(bmc.sessions) == 0


@pytest.mark.parametrize("fault", BAD)
async def test_an_identity_that_makes_no_sense_is_told_as_that(
    fault: str, new_redfish: NewRedfish, redfish_client: RedfishClient, redfish: RedfishDriver
) -> None:
    bmc = await new_redfish("strict")
    bmc.faults.switch_on(fault, only="GET /redfish/v1/Managers/BMC.Embedded.1")
    with pytest.raises(errors.BmcBadAnswer, match=BAD[fault]):
        await redfish.inspect(redfish_target(bmc), deadline=20)
    await redfish_client.close()
    assert len(bmc.sessions) == 0


@pytest.mark.parametrize("fault", ["hang", "drip", "slow"])
async def test_a_bmc_that_does_not_come_to_an_end_is_given_up_in_time(
    fault: str, new_redfish: NewRedfish, redfish_client: RedfishClient, redfish: RedfishDriver
) -> None:
    bmc = await new_redfish()
    assert not await redfish.powered(redfish_target(bmc), deadline=20)
    bmc.faults.switch_on(fault, 5)
    started = asyncio.get_running_loop().time()
    with pytest.raises(errors.BmcTimeout):
        await redfish.powered(redfish_target(bmc), deadline=0.4)
    assert asyncio.get_running_loop().time() - started < 2
    bmc.faults.clear()
    assert not await redfish.powered(redfish_target(bmc), deadline=20)
    await redfish_client.close()
    assert (len(bmc.sessions), bmc.logins.started) == (0, 1)


async def test_an_answer_that_is_cut_is_asked_for_again(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish()
    bmc.faults.switch_on("truncated", only=f"GET {SYSTEM}")
    with pytest.raises(errors.BmcTimeout):
        await redfish.powered(redfish_target(bmc), deadline=20)
    assert bmc.seen[("GET", SYSTEM)] > 1


async def test_a_bmc_that_restarts_now_and_then_is_served(
    new_redfish: NewRedfish, redfish_client: RedfishClient, redfish: RedfishDriver
) -> None:
    bmc = await new_redfish()
    bmc.faults.switch_on("resets-itself", 7)
    for _ in range(10):
        assert not await redfish.powered(redfish_target(bmc), deadline=20)
    assert bmc.logins.failed == 0
    bmc.faults.clear()
    await redfish_client.close()
    assert len(bmc.sessions) == 0


async def test_a_dead_bmc_is_a_timeout(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish()
    await bmc.stop()
    with pytest.raises(errors.BmcTimeout):
        await redfish.powered(redfish_target(bmc), deadline=5)


async def test_what_speaks_no_tls_is_told_as_that(redfish: RedfishDriver) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(errors.BmcBadAnswer, match="TLS"):
        await redfish.powered(Target("127.0.0.1", port, "metal", "pw"), deadline=5)
    server.close()


async def test_a_busy_bmc_is_asked_again_when_it_says_that_it_takes_a_moment(
    new_redfish: NewRedfish, redfish: RedfishDriver, eventually: Eventually
) -> None:
    bmc = await new_redfish()
    assert not await redfish.powered(redfish_target(bmc), deadline=20)
    bmc.faults.switch_on("busy", 1)
    asking = asyncio.create_task(redfish.powered(redfish_target(bmc), deadline=20))
    before = bmc.seen[("GET", SYSTEM)]
    await eventually(lambda: bmc.seen[("GET", SYSTEM)] > before)
    bmc.faults.clear()
    assert await asking is False
    assert bmc.seen[("GET", SYSTEM)] == before + 2


async def test_a_bmc_that_is_busy_for_long_says_for_how_long(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish(powered=True)
    assert await redfish.powered(redfish_target(bmc), deadline=20)
    bmc.faults.switch_on("busy", 120)
    for ask in (redfish.powered, redfish.reset):
        with pytest.raises(errors.BmcBusy) as caught:
            await ask(redfish_target(bmc), deadline=20)
        assert caught.value.retry_after == 120
    assert bmc.chassis.history == []


async def test_a_login_to_a_busy_bmc_says_nothing_about_the_password(
    new_redfish: NewRedfish, redfish: RedfishDriver
) -> None:
    bmc = await new_redfish()
    bmc.faults.switch_on("busy", 60)
    with pytest.raises(errors.BmcBusy) as caught:
        await redfish.powered(redfish_target(bmc), deadline=20)
    assert caught.value.before_login


async def test_a_uuid_is_told_as_the_bmc_tells_it(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    one, other = await new_redfish(), await new_redfish()
    for bmc in (one, other):
        bmc.faults.switch_on("duplicate-uuid")
    first = await redfish.inspect(redfish_target(one), deadline=20)
    assert first.machine == (await redfish.inspect(redfish_target(other), deadline=20)).machine != one.machine


async def test_an_entity_tag_that_is_out_of_date_is_read_again(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish("strict")
    seen = []

    def meddle(request_path: str) -> None:
        # Somebody else changes the machine between our reading and our change.
        seen.append(request_path)
        if len(seen) == 1:
            bmc.chassis.identify(seconds=0, forced=True)

    bmc.before_patch = meddle
    setting = await redfish.set_boot(redfish_target(bmc), BootWish(BootTarget.PXE), deadline=20)
    assert setting.target is BootTarget.PXE
    assert len(seen) == 2


async def test_a_hundred_megabytes_are_not_read(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish()
    assert not await redfish.powered(redfish_target(bmc), deadline=20)
    bmc.faults.switch_on("huge")
    with pytest.raises(errors.BmcBadAnswer, match=str(MOST_BYTES)):
        await redfish.powered(redfish_target(bmc), deadline=20)
    # What was sent beyond the limit is what the sockets held.
    assert bmc.faults.huge_sent < 20 * MOST_BYTES
