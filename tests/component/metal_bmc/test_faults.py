"""Every fault that a simulated BMC can have, as the service shows it: in the BMC's state, and in a command's end."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

from google.protobuf.duration_pb2 import Duration
from metal_bmc.pacing import OPENS_AFTER
from metal_sim.bmc import BmcFarm, BmcFault, SimulatedBmc
from metal_sim.bmc.faults import FORGOTTEN_UUID
from metalplane.bmc.v1 import bmc_pb2 as pb

PASSWORD = "pw-Tr0ub4dor-do-leak"
MOST_REFUSED_LOGINS = 2


@dataclass(frozen=True)
class Shown:
    """The reason that the state of the BMC begins with, and how an order to switch on ends."""

    value: float | None
    state: str
    order: str


SHOWN = {
    BmcFault.HANG: Shown(None, "TIMEOUT", "FAILED UNREACHABLE"),
    BmcFault.DROP: Shown(10.0, "", "SUCCEEDED "),
    BmcFault.SLOW: Shown(30.0, "TIMEOUT", "FAILED UNREACHABLE"),
    BmcFault.WRONG_PASSWORD: Shown(None, "AUTH_FAILED", "FAILED LOGIN_BLOCKED"),
    BmcFault.LOCKOUT: Shown(0.0, "AUTH_FAILED", "FAILED LOGIN_BLOCKED"),
    BmcFault.SLOTS_FULL: Shown(None, "SESSIONS_FULL", "FAILED SESSIONS_FULL"),
    BmcFault.DOES_NOTHING: Shown(None, "", "FAILED NOT_REACHED"),
    # The machine is off and reads on, so there seems to be nothing to do; who orders it off is not believed it is.
    BmcFault.LIES_ABOUT_POWER: Shown(None, "", "FAILED NOT_REACHED"),
    # The serial console's alone.
    BmcFault.SOL_DROP: Shown(None, "", "SUCCEEDED "),
    BmcFault.SOL_SILENT: Shown(None, "", "SUCCEEDED "),
    BmcFault.SOL_TAKES_HALF: Shown(None, "", "SUCCEEDED "),
    BmcFault.RESETS: Shown(30.0, "", "SUCCEEDED "),
    BmcFault.SHARED_UUID: Shown(None, "", "SUCCEEDED "),
    BmcFault.GARBAGE: Shown(None, "TIMEOUT", "FAILED UNREACHABLE"),
}


def test_every_fault_is_looked_at() -> None:
    assert set(SHOWN) == set(BmcFault)


async def test_faults_show_with_their_reasons_and_never_as_a_success(plane: Any, eventually: Any) -> None:
    farm = BmcFarm(IPv4Network("127.79.0.0/24"))
    # The same UUIDs in each run: they decide which packets are lost and damaged.
    bmcs = {each: SimulatedBmc(str(uuid.uuid5(uuid.NAMESPACE_DNS, each)), password=PASSWORD) for each in SHOWN}
    for fault, bmc in bmcs.items():
        farm.add(bmc)
        bmc.faults.switch_on(fault, SHOWN[fault].value)
    farm.start()
    # One that is well shows that the others are no trouble to it.
    well = SimulatedBmc(str(uuid.uuid4()), password=PASSWORD)
    farm.add(well)
    await plane.start(poll_seconds=1, exchange_seconds=4, polls_at_once=32)
    for bmc in (*bmcs.values(), well):
        await plane.register(bmc)
    stub = plane.stub("")

    async def shown(fault: BmcFault) -> bool:
        seen = await stub.GetBmc(pb.GetBmcRequest(machine=bmcs[fault].machine))
        reason = seen.error.partition(":")[0]
        answered = seen.reported_power != pb.POWER_UNSPECIFIED or bool(reason)
        return answered and reason == SHOWN[fault].state

    async def given_up(fault: BmcFault) -> bool:
        return (await stub.GetBmc(pb.GetBmcRequest(machine=bmcs[fault].machine))).failures >= OPENS_AFTER

    for fault in bmcs:
        await eventually(lambda fault=fault: shown(fault), seconds=60, what=fault)
        if SHOWN[fault].order.endswith("UNREACHABLE"):
            await eventually(lambda fault=fault: given_up(fault), seconds=60, what=fault)
    ends = await asyncio.gather(*(_switched(plane, bmc) for bmc in bmcs.values()))
    assert dict(zip(bmcs, ends, strict=True)) == {fault: each.order for fault, each in SHOWN.items()}
    assert await _switched(plane, well) == "SUCCEEDED "
    assert well.chassis.powered
    assert bmcs[BmcFault.WRONG_PASSWORD].logins.started == MOST_REFUSED_LOGINS
    assert bmcs[BmcFault.LOCKOUT].logins.started == MOST_REFUSED_LOGINS
    await eventually(lambda: bmcs[BmcFault.RESETS].restarts, seconds=60)
    assert FORGOTTEN_UUID not in {bmc.machine for bmc in bmcs.values()}
    farm.stop()


async def _switched(plane: Any, bmc: SimulatedBmc) -> str:
    """How an order ends that changes what the BMC says about the power."""
    lies = bmc.faults.has(BmcFault.LIES_ABOUT_POWER)
    ended = await plane.command(bmc, "POWER_OFF" if lies else "POWER_ON", timeout=Duration(seconds=15))
    return f"{pb.CommandState.Name(ended.state).removeprefix('COMMAND_STATE_')} {ended.reason}"
