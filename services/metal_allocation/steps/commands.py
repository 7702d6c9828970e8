"""BMC commands of a phase: given once an attempt, awaited by their id, never taken for done without a result."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from metal_kit.errors import NotFound
from metalplane.bmc.v1.bmc_pb2 import Command, CommandAction, CommandState, CreateCommandRequest, GetCommandRequest

from metal_allocation.clients import Clients, derived_request_id
from metal_allocation.record import Record

POLL = timedelta(seconds=2)
TIMEOUT = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How the present attempt stands: `done` and `succeeded`, or `error` in words."""

    done: bool
    succeeded: bool
    reason: str
    error: str


async def command(record: Record, clients: Clients, action: CommandAction.ValueType, step: str) -> CommandResult:
    """Give the command of this attempt unless it is given already, and look at its result.

    A finished command that failed counts as one attempt; the next call gives a new one with an id of its own.
    """
    try:
        current = await _current(record, clients, action, step)
    except NotFound:
        return CommandResult(True, False, "BMC_UNKNOWN", "the machine has no BMC registered; register it")
    record.command = current.id
    if current.state == CommandState.COMMAND_STATE_SUCCEEDED:
        return CommandResult(True, True, "", "")
    if current.state in {CommandState.COMMAND_STATE_FAILED, CommandState.COMMAND_STATE_EXPIRED}:
        record.command = None
        record.command_attempts += 1
        error = current.error or "no answer before the deadline"
        record.note(current.reason or "COMMAND_FAILED", f"{_name(action)}: {error}")
        return CommandResult(True, False, current.reason or "COMMAND_FAILED", error)
    return CommandResult(False, False, "COMMAND_RUNNING", f"{_name(action)} is under way")


async def _current(record: Record, clients: Clients, action: CommandAction.ValueType, step: str) -> Command:
    if record.command is not None:
        return await clients.bmcs.GetCommand(GetCommandRequest(id=record.command))
    timeout = Duration()
    timeout.FromTimedelta(TIMEOUT)
    return await clients.bmcs.CreateCommand(
        CreateCommandRequest(
            request_id=derived_request_id(record.id, step, record.command_attempts),
            machine=record.machine,
            action=action,
            allocation=record.id,
            timeout=timeout,
        )
    )


def _name(action: CommandAction.ValueType) -> str:
    return CommandAction.Name(action).removeprefix("COMMAND_ACTION_").lower().replace("_", " ")
