"""Commands through the whole service: real gRPC, Postgres, NATS, driver processes and RMCP+."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from metal_kit.clock import Clock
from metal_kit.errors import InvalidArgument, NotFound, PermissionDenied, ResourceExhausted, Unimplemented
from metal_sim.bmc import BootDevice, BootOverride, PowerAction, SimulatedBmc, commands
from metalplane.bmc.v1 import bmc_pb2 as pb
from metalplane.bmc.v1.events_pb2 import CommandFinished

NewBmc = Callable[..., Awaitable[SimulatedBmc]]
Eventually = Callable[..., Awaitable[None]]
CHASSIS_CONTROL = (0, 2)
PXE = BootOverride(BootDevice.PXE, persistent=True, uefi=True)


def seconds(count: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=count))
    return duration


@pytest.fixture
async def bmc(plane: Any, new_bmc: NewBmc) -> SimulatedBmc:
    """A registered BMC of a machine that is on, at a running service."""
    await plane.start()
    simulated = await new_bmc(powered=True)
    await plane.register(simulated)
    return simulated


def outcome(command: pb.Command) -> tuple[str, str]:
    return pb.CommandState.Name(command.state).removeprefix("COMMAND_STATE_"), command.reason


@pytest.mark.parametrize(
    ("action", "history"),
    [
        ("POWER_ON", []),
        ("POWER_OFF", [PowerAction.OFF]),
        ("RESET", [PowerAction.RESET]),
        ("CYCLE", [PowerAction.OFF, PowerAction.ON]),
        ("PXE_CYCLE", [PowerAction.OFF, PowerAction.ON]),
    ],
)
async def test_power_commands_are_carried_out(
    action: str, history: list[PowerAction], plane: Any, bmc: SimulatedBmc
) -> None:
    command = await plane.command(bmc, action)
    assert outcome(command) == ("SUCCEEDED", "")
    assert command.start_time.ToDatetime() <= command.end_time.ToDatetime()
    assert bmc.chassis.history == history
    assert bmc.chassis.boot_override() == (PXE if action == "PXE_CYCLE" else None)


async def test_a_cycle_switches_a_machine_on_that_was_off(plane: Any, bmc: SimulatedBmc) -> None:
    await plane.command(bmc, "POWER_OFF")
    assert outcome(await plane.command(bmc, "PXE_CYCLE")) == ("SUCCEEDED", "")
    assert bmc.chassis.powered


async def test_boot_and_identify_are_read_back(plane: Any, bmc: SimulatedBmc) -> None:
    for action, flags in (("BOOT_PXE", "e004"), ("BOOT_DISK", "e008"), ("BOOT_BIOS", "a018")):
        assert outcome(await plane.command(bmc, action)) == ("SUCCEEDED", "")
        assert bmc.chassis.flags.hex() == f"{flags}000000"
    assert outcome(await plane.command(bmc, "IDENTIFY_ON")) == ("SUCCEEDED", "")
    assert bmc.chassis.identify_state() == 2
    assert outcome(await plane.command(bmc, "IDENTIFY_OFF")) == ("SUCCEEDED", "")
    assert bmc.chassis.identify_state() == 0


async def test_a_boot_device_is_for_once_and_by_bios_when_the_caller_says_so(plane: Any, bmc: SimulatedBmc) -> None:
    once = {"boot_lasting": pb.BOOT_LASTING_ONCE, "boot_mode": pb.BOOT_MODE_BIOS}
    command = await plane.command(bmc, "BOOT_DISK", **once)
    assert outcome(command) == ("SUCCEEDED", "")
    assert (command.boot_lasting, command.boot_mode) == (pb.BOOT_LASTING_ONCE, pb.BOOT_MODE_BIOS)
    assert bmc.chassis.boot_override() == BootOverride(BootDevice.DISK, persistent=False, uefi=False)


async def test_a_system_that_is_asked_to_shut_down_does(plane: Any, bmc: SimulatedBmc, eventually: Eventually) -> None:
    await plane.register(bmc, desired_power=pb.POWER_ON)
    bmc.chassis.on_power = lambda _action: None
    given = await plane.stub("").CreateCommand(
        pb.CreateCommandRequest(machine=bmc.machine, action=pb.COMMAND_ACTION_SOFT_OFF)
    )
    await eventually(lambda: bmc.chassis.history == [PowerAction.SOFT_OFF])
    shown = await plane.stub("").GetBmc(pb.GetBmcRequest(machine=bmc.machine))
    assert shown.desired_power == pb.POWER_ON
    bmc.chassis.machine_powered_off()
    assert outcome(await plane.ended(given.id)) == ("SUCCEEDED", "")
    shown = await plane.stub("").GetBmc(pb.GetBmcRequest(machine=bmc.machine))
    assert (shown.desired_power, shown.reported_power) == (pb.POWER_OFF, pb.POWER_OFF)
    assert outcome(await plane.command(bmc, "SOFT_OFF")) == ("SUCCEEDED", "")
    assert bmc.chassis.history == [PowerAction.SOFT_OFF]


@pytest.mark.parametrize("hard", [True, False])
async def test_a_system_that_does_not_shut_down_is_switched_off_only_if_that_was_asked_for(
    plane: Any, bmc: SimulatedBmc, hard: bool
) -> None:
    bmc.chassis.on_power = lambda _action: None
    more = {"hard_after": seconds(1)} if hard else {"timeout": seconds(3)}
    command = await plane.command(bmc, "SOFT_OFF", **more)
    assert outcome(command) == (("SUCCEEDED", "") if hard else ("FAILED", "NOT_REACHED"))
    assert bmc.chassis.history == [PowerAction.SOFT_OFF, *([PowerAction.OFF] if hard else [])]
    assert bmc.chassis.powered is not hard


async def test_an_interrupt_is_sent_once(plane: Any, bmc: SimulatedBmc) -> None:
    assert outcome(await plane.command(bmc, "NMI")) == ("SUCCEEDED", "")
    assert bmc.chassis.history == [PowerAction.NMI]
    assert bmc.seen[CHASSIS_CONTROL] == 1
    bmc.chassis.machine_powered_off()
    assert outcome(await plane.command(bmc, "NMI")) == ("FAILED", "POWERED_OFF")


async def test_a_reset_without_power_fails_with_the_reason(plane: Any, bmc: SimulatedBmc) -> None:
    bmc.chassis.machine_powered_off()
    assert outcome(await plane.command(bmc, "RESET")) == ("FAILED", "POWERED_OFF")


@pytest.mark.parametrize("action", ["CYCLE", "BOOT_PXE"])
async def test_a_bmc_that_accepts_and_does_nothing_is_found_out(action: str, plane: Any, bmc: SimulatedBmc) -> None:
    bmc.faults.switch_on("does-nothing")
    command = await plane.command(bmc, action)
    assert outcome(command) == ("FAILED", "NOT_REACHED")
    assert "accepted" in command.error
    assert bmc.chassis.history == []


async def test_a_bmc_that_lies_about_power_is_not_believed_to_have_switched(plane: Any, bmc: SimulatedBmc) -> None:
    bmc.faults.switch_on("lies-about-power")
    assert outcome(await plane.command(bmc, "POWER_OFF")) == ("FAILED", "NOT_REACHED")


async def test_a_bmc_that_hangs_ends_as_a_timeout(plane: Any, bmc: SimulatedBmc) -> None:
    bmc.faults.switch_on("hang")
    command = await plane.command(bmc, "POWER_OFF", timeout=seconds(5))
    assert outcome(command) == ("FAILED", "TIMEOUT")
    assert bmc.chassis.powered


async def test_a_bmc_that_hangs_for_a_moment_costs_time_only(
    plane: Any, bmc: SimulatedBmc, eventually: Eventually
) -> None:
    bmc.faults.switch_on("hang")
    given = await plane.stub("").CreateCommand(
        pb.CreateCommandRequest(machine=bmc.machine, action=pb.COMMAND_ACTION_POWER_OFF)
    )
    await eventually(lambda: plane.rows("SELECT FROM command WHERE reason = 'TIMEOUT'"), seconds=30)
    bmc.faults.clear()
    assert outcome(await plane.ended(given.id)) == ("SUCCEEDED", "")


async def test_a_wrong_password_is_tried_exactly_twice(plane: Any, bmc: SimulatedBmc, eventually: Eventually) -> None:
    await eventually(lambda: plane.rows("SELECT FROM endpoint WHERE inspected_at IS NOT NULL"))
    before = bmc.logins.started
    bmc.faults.switch_on("wrong-password")
    bmc.forget_sessions()
    assert outcome(await plane.command(bmc, "POWER_OFF")) == ("FAILED", "AUTH_FAILED")
    assert bmc.logins.started - before == 2
    assert outcome(await plane.command(bmc, "POWER_OFF")) == ("FAILED", "LOGIN_BLOCKED")
    await plane.rows("UPDATE endpoint SET poll_at = now()")
    shown = await plane.stub("viewer").GetBmc(pb.GetBmcRequest(machine=bmc.machine))
    assert shown.login_blocked
    assert bmc.logins.started - before == 2
    bmc.faults.clear()
    await plane.register(bmc)
    assert outcome(await plane.command(bmc, "POWER_OFF")) == ("SUCCEEDED", "")
    shown = await plane.stub("viewer").GetBmc(pb.GetBmcRequest(machine=bmc.machine))
    assert (shown.login_blocked, shown.error) == (False, "")


async def test_polls_and_commands_share_the_two_tries(plane: Any, new_bmc: NewBmc, eventually: Eventually) -> None:
    await plane.start(poll_seconds=0.2)
    bmcs = [await new_bmc(powered=True) for _ in range(4)]
    for bmc in bmcs:
        await plane.register(bmc, password="not-the-password")
    commands = await asyncio.gather(*(plane.command(bmc, "POWER_OFF") for bmc in bmcs))
    assert {outcome(command)[1] for command in commands} <= {"AUTH_FAILED", "LOGIN_BLOCKED"}
    await eventually(lambda: plane.rows("SELECT FROM endpoint HAVING min(refused_logins) = 2"))
    assert [bmc.logins.started for bmc in bmcs] == [2] * 4


async def test_dead_bmcs_do_not_delay_the_others(plane: Any, new_bmc: NewBmc) -> None:
    await plane.start(polls_at_once=3, poll_seconds=0.1)
    dead = [await new_bmc() for _ in range(12)]
    for bmc in dead:
        bmc.faults.switch_on("hang")
        await plane.register(bmc)
    alive = await new_bmc(powered=True)
    await plane.register(alive)
    for action in ("POWER_OFF", "POWER_ON", "RESET"):
        command = await plane.command(alive, action)
        assert outcome(command) == ("SUCCEEDED", "")
        # Less than one exchange with a dead BMC takes.
        assert command.end_time.ToNanoseconds() - command.create_time.ToNanoseconds() < 3e9


async def test_full_session_slots_are_waited_for_or_named(plane: Any, bmc: SimulatedBmc) -> None:
    bmc.faults.switch_on("slots-full")
    command = await plane.command(bmc, "POWER_OFF", timeout=seconds(10))
    assert outcome(command) == ("FAILED", "SESSIONS_FULL")


async def test_a_command_that_never_got_its_turn_expires(plane: Any, bmc: SimulatedBmc) -> None:
    bmc.faults.switch_on("slow", 60)
    stub = plane.stub("")
    request = pb.CreateCommandRequest(machine=bmc.machine, action=pb.COMMAND_ACTION_POWER_OFF, timeout=seconds(30))
    first = await stub.CreateCommand(request)
    request.timeout.CopyFrom(seconds(1))
    second = await plane.ended((await stub.CreateCommand(request)).id, 15)
    assert outcome(second) == ("EXPIRED", "DEADLINE")
    assert "before it was begun" in second.error
    bmc.faults.clear()
    assert outcome(await plane.ended(first.id)) == ("SUCCEEDED", "")


async def test_a_bmc_that_has_forgotten_our_session_does_not_lose_the_command(
    plane: Any, bmc: SimulatedBmc, eventually: Eventually
) -> None:
    await eventually(lambda: plane.rows("SELECT FROM endpoint WHERE inspected_at IS NOT NULL"))
    before = bmc.logins.succeeded
    bmc.forget_sessions()
    assert outcome(await plane.command(bmc, "POWER_OFF")) == ("SUCCEEDED", "")
    assert bmc.logins.succeeded == before + 1
    assert bmc.chassis.history == [PowerAction.OFF]


async def test_a_reset_whose_answer_is_lost_is_not_repeated(
    plane: Any, bmc: SimulatedBmc, eventually: Eventually
) -> None:
    bmc.chassis.on_power = lambda _action: bmc.faults.switch_on("hang")
    given = await plane.stub("").CreateCommand(
        pb.CreateCommandRequest(machine=bmc.machine, action=pb.COMMAND_ACTION_RESET)
    )
    await eventually(lambda: bmc.chassis.history)
    bmc.faults.clear()
    assert outcome(await plane.ended(given.id)) == ("FAILED", "OUTCOME_UNKNOWN")
    assert bmc.seen[CHASSIS_CONTROL] == 1


async def test_a_reset_that_was_under_way_when_the_service_died_is_not_repeated(
    plane: Any, bmc: SimulatedBmc, eventually: Eventually
) -> None:
    bmc.chassis.on_power = lambda _action: bmc.faults.switch_on("hang")
    given = await plane.stub("").CreateCommand(
        pb.CreateCommandRequest(machine=bmc.machine, action=pb.COMMAND_ACTION_RESET)
    )
    await eventually(lambda: bmc.chassis.history)
    # What a crash leaves behind: the mark, and a lease that runs out.
    await plane.running.stop(0)
    bmc.faults.clear()
    await plane.rows("UPDATE command SET state = 'running', reason = '', error = '', ended_at = NULL, version = 1")
    await plane.start()
    await plane.rows(
        "INSERT INTO reconcile_queue (kind, key, ready_at) SELECT 'bmc/fra1', machine::text, now() FROM command "
        "ON CONFLICT (kind, key) DO UPDATE SET ready_at = now(), holder = NULL"
    )
    assert outcome(await plane.ended(given.id)) == ("FAILED", "OUTCOME_UNKNOWN")
    assert bmc.seen[CHASSIS_CONTROL] == 1


async def test_a_cycle_that_was_interrupted_goes_on(plane: Any, bmc: SimulatedBmc, eventually: Eventually) -> None:
    await plane.running.stop(0)
    await plane.start(rest_seconds=3)
    given = await plane.stub("").CreateCommand(
        pb.CreateCommandRequest(machine=bmc.machine, action=pb.COMMAND_ACTION_CYCLE)
    )
    await eventually(lambda: not bmc.chassis.powered)
    await plane.running.stop(0)
    await plane.start()
    assert outcome(await plane.ended(given.id)) == ("SUCCEEDED", "")
    assert bmc.chassis.history == [PowerAction.OFF, PowerAction.ON]


async def test_commands_to_one_bmc_run_one_after_the_other(plane: Any, bmc: SimulatedBmc) -> None:
    stub = plane.stub("")
    actions = [pb.COMMAND_ACTION_POWER_OFF, pb.COMMAND_ACTION_POWER_ON] * 4
    given = [await stub.CreateCommand(pb.CreateCommandRequest(machine=bmc.machine, action=a)) for a in actions]
    ended = [await plane.ended(command.id) for command in given]
    assert {outcome(command) for command in ended} == {("SUCCEEDED", "")}
    assert bmc.chassis.history == [PowerAction.OFF, PowerAction.ON] * 4
    for earlier, later in pairwise(ended):
        assert earlier.end_time.ToNanoseconds() <= later.start_time.ToNanoseconds()


async def test_a_repeated_request_is_one_command(plane: Any, bmc: SimulatedBmc) -> None:
    stub = plane.stub("")
    request = pb.CreateCommandRequest(
        request_id=str(uuid.uuid4()), machine=bmc.machine, action=pb.COMMAND_ACTION_RESET, allocation=str(uuid.uuid4())
    )
    first, second = await stub.CreateCommand(request), await stub.CreateCommand(request)
    assert first.id == second.id
    assert uuid.UUID(first.id).version == 7
    ended = await plane.ended(first.id)
    assert (ended.allocation, ended.requester) == (request.allocation, "service:allocation")
    assert bmc.chassis.history == [PowerAction.RESET]
    request.action = pb.COMMAND_ACTION_CYCLE
    with pytest.raises(InvalidArgument, match="REQUEST_ID_REUSED"):
        await stub.CreateCommand(request)


async def test_equal_commands_are_two_commands_listed_newest_first(plane: Any, bmc: SimulatedBmc) -> None:
    first, second = await plane.command(bmc, "RESET"), await plane.command(bmc, "RESET")
    stub = plane.stub("viewer")
    page = await stub.ListCommands(pb.ListCommandsRequest(machine=bmc.machine, page_size=1))
    assert [command.id for command in page.commands] == [second.id]
    rest = await stub.ListCommands(
        pb.ListCommandsRequest(machine=bmc.machine, page_size=1, page_token=page.next_page_token)
    )
    assert ([command.id for command in rest.commands], rest.next_page_token) == ([first.id], "")


async def test_a_command_that_ends_is_an_event(plane: Any, bmc: SimulatedBmc) -> None:
    command = await plane.command(bmc, "POWER_OFF")
    rows = await plane.rows("SELECT payload FROM change WHERE entity = 'command' AND deleted")
    assert [row["payload"] for row in rows] == [CommandFinished(command=command).SerializeToString()]


async def test_too_many_waiting_commands_are_refused(plane: Any, bmc: SimulatedBmc) -> None:
    bmc.faults.switch_on("hang")
    stub = plane.stub("")
    request = pb.CreateCommandRequest(machine=bmc.machine, action=pb.COMMAND_ACTION_POWER_ON)
    for _ in range(20):
        await stub.CreateCommand(request)
    with pytest.raises(ResourceExhausted, match="TOO_MANY_COMMANDS"):
        await stub.CreateCommand(request)


async def test_bad_commands_are_refused_with_the_field_named(plane: Any, bmc: SimulatedBmc) -> None:
    stub = plane.stub("")
    good: dict[str, Any] = {"machine": bmc.machine, "action": pb.COMMAND_ACTION_RESET}
    for field, request in (
        ("machine", pb.CreateCommandRequest(**{**good, "machine": "not-a-uuid"})),
        ("action", pb.CreateCommandRequest(machine=bmc.machine)),
        ("action", pb.CreateCommandRequest(**{**good, "action": 99})),
        ("timeout", pb.CreateCommandRequest(**good, timeout=seconds(7200))),
        ("timeout", pb.CreateCommandRequest(**good, timeout=seconds(90000))),
        ("boot_lasting", pb.CreateCommandRequest(**good, boot_lasting=pb.BOOT_LASTING_ONCE)),
        ("boot_mode", pb.CreateCommandRequest(**good, boot_mode=9)),
        ("hard_after", pb.CreateCommandRequest(**good, hard_after=seconds(5))),
        ("allocation", pb.CreateCommandRequest(**good, allocation="x")),
    ):
        with pytest.raises(InvalidArgument) as caught:
            await stub.CreateCommand(request)
        assert caught.value.field == field
    with pytest.raises(NotFound, match="BMC_NOT_FOUND"):
        await stub.CreateCommand(pb.CreateCommandRequest(**{**good, "machine": str(uuid.uuid4())}))
    with pytest.raises(NotFound, match="COMMAND_NOT_FOUND"):
        await stub.GetCommand(pb.GetCommandRequest(id=str(uuid.uuid4())))
    assert await plane.rows("SELECT FROM command") == []


async def test_what_a_bmc_is_known_not_to_do_is_unimplemented(
    plane: Any, bmc: SimulatedBmc, eventually: Eventually
) -> None:
    stub = plane.stub()
    request = pb.CreateCommandRequest(machine=bmc.machine, action=pb.COMMAND_ACTION_PXE_CYCLE)
    await eventually(lambda: plane.rows("SELECT FROM endpoint WHERE inspected_at IS NOT NULL"))
    shown = await stub.GetBmc(pb.GetBmcRequest(machine=bmc.machine))
    assert {pb.CAPABILITY_POWER_ON, pb.CAPABILITY_BOOT_PERSISTENT, pb.CAPABILITY_FRU} <= set(shown.capabilities)
    assert shown.driver == pb.DRIVER_KIND_IPMI
    await plane.rows("UPDATE endpoint SET capabilities = array_remove(capabilities, 'boot_persistent')")
    with pytest.raises(Unimplemented, match=r"BMC_CANNOT.*BOOT_PERSISTENT") as caught:
        await stub.CreateCommand(request)
    assert caught.value.field == "action"
    assert await plane.rows("SELECT FROM command") == []
    assert outcome(await plane.command(bmc, "POWER_OFF")) == ("SUCCEEDED", "")


async def test_what_a_bmc_turns_out_not_to_do_fails_as_unsupported(
    plane: Any, bmc: SimulatedBmc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(commands.IN_SESSION, (0, 4))
    assert outcome(await plane.command(bmc, "IDENTIFY_ON")) == ("FAILED", "UNSUPPORTED")


async def test_a_viewer_may_not_command(plane: Any, bmc: SimulatedBmc) -> None:
    with pytest.raises(PermissionDenied):
        await plane.stub("viewer").CreateCommand(
            pb.CreateCommandRequest(machine=bmc.machine, action=pb.COMMAND_ACTION_RESET)
        )


@pytest.mark.parametrize("minutes", [-60, 60])
async def test_a_service_whose_clock_is_wrong_keeps_to_the_deadlines(
    plane: Any, new_bmc: NewBmc, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    monkeypatch.setattr(Clock, "now", lambda _self: datetime.now(UTC) + timedelta(minutes=minutes))
    await plane.start()
    bmc = await new_bmc(powered=True)
    await plane.register(bmc)
    ended = await plane.command(bmc, "CYCLE")
    assert (ended.state, ended.error) == (pb.COMMAND_STATE_SUCCEEDED, "")
    assert await plane.rows("SELECT FROM command WHERE deadline = created_at + interval '1 minute'")
