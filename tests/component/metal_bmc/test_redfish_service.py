"""The whole service with machines whose BMCs speak Redfish: real gRPC, Postgres, NATS and HTTPS."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from metal_kit.errors import Unimplemented
from metal_sim.bmc import PowerAction
from metal_sim.redfish import SimulatedRedfish
from metalplane.bmc.v1 import bmc_pb2 as pb

NewRedfish = Callable[..., Awaitable[SimulatedRedfish]]
Eventually = Callable[..., Awaitable[None]]
REDFISH = pb.DRIVER_KIND_REDFISH


@pytest.fixture
def serve(plane: Any, new_redfish: NewRedfish) -> Callable[..., Awaitable[SimulatedRedfish]]:
    """Starts the service and registers a BMC of a machine that is on."""

    async def start(make: str = "plain", *, password: str = "", **options: Any) -> SimulatedRedfish:
        await plane.start(**options)
        bmc = await new_redfish(make, powered=True)
        await plane.register(bmc, driver=REDFISH, **({"password": password} if password else {}))
        return bmc

    return start


def outcome(command: pb.Command) -> tuple[str, str]:
    return pb.CommandState.Name(command.state).removeprefix("COMMAND_STATE_"), command.reason


@pytest.mark.parametrize("make", ["plain", "strict"])
async def test_commands_are_carried_out(
    make: str, plane: Any, serve: Callable[..., Awaitable[SimulatedRedfish]]
) -> None:
    bmc = await serve(make)
    for action in ("PXE_CYCLE", "RESET", "POWER_OFF", "POWER_ON", "IDENTIFY_ON"):
        assert outcome(await plane.command(bmc, action)) == ("SUCCEEDED", "")
    off, on = PowerAction.OFF, PowerAction.ON
    assert bmc.chassis.history == [off, on, PowerAction.RESET, off, on]
    assert (bmc.chassis.flags.hex(), bmc.chassis.identify_state()) == ("e004000000", 2)
    assert bmc.logins.started == 1
    await plane.running.stop(0)
    assert len(bmc.sessions) == 0


async def test_what_a_bmc_says_of_itself_is_shown_and_holds(
    plane: Any, serve: Callable[..., Awaitable[SimulatedRedfish]], eventually: Eventually
) -> None:
    bmc = await serve("button", poll_seconds=0.2)
    stub = plane.stub()

    async def inspected() -> bool:
        return bool((await stub.GetBmc(pb.GetBmcRequest(machine=bmc.machine))).capabilities)

    await eventually(inspected)
    shown = await stub.GetBmc(pb.GetBmcRequest(machine=bmc.machine))
    assert (shown.reported_power, shown.version, shown.error) == (pb.POWER_ON, "1.20", "")
    assert pb.CAPABILITY_POWER_OFF in shown.capabilities
    assert pb.CAPABILITY_NMI not in shown.capabilities
    with pytest.raises(Unimplemented):
        await plane.command(bmc, "NMI")
    assert bmc.chassis.history == []


async def test_an_order_that_is_accepted_and_not_carried_out_fails(
    plane: Any, serve: Callable[..., Awaitable[SimulatedRedfish]]
) -> None:
    bmc = await serve()
    bmc.faults.switch_on("does-nothing")
    assert outcome(await plane.command(bmc, "POWER_OFF")) == ("FAILED", "NOT_REACHED")
    assert outcome(await plane.command(bmc, "BOOT_PXE")) == ("FAILED", "NOT_REACHED")


async def test_a_wrong_password_is_tried_twice_and_never_again(
    plane: Any, serve: Callable[..., Awaitable[SimulatedRedfish]], eventually: Eventually
) -> None:
    bmc = await serve(password="guess", poll_seconds=0.1)
    stub = plane.stub()

    async def blocked() -> bool:
        return bool((await stub.GetBmc(pb.GetBmcRequest(machine=bmc.machine))).login_blocked)

    await eventually(blocked)
    assert outcome(await plane.command(bmc, "POWER_OFF")) == ("FAILED", "LOGIN_BLOCKED")
    assert (bmc.logins.started, bmc.logins.failed) == (2, 2)


async def test_busy_answers_in_between_are_no_proof_that_a_login_holds(
    plane: Any, serve: Callable[..., Awaitable[SimulatedRedfish]], eventually: Eventually
) -> None:
    bmc = await serve(password="guess")
    bmc.faults.switch_on("busy", 300)
    assert outcome(await plane.command(bmc, "IDENTIFY_ON"))[0] == "FAILED"
    bmc.faults.clear()
    for _ in range(3):
        assert outcome(await plane.command(bmc, "IDENTIFY_ON"))[0] == "FAILED"
        bmc.faults.switch_on("busy", 300)
        await plane.command(bmc, "IDENTIFY_ON")
        bmc.faults.clear()
    assert bmc.logins.failed == 2
