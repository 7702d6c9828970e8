"""BMC commands of a phase: given once an attempt, awaited by their id, never taken for done without a result."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from metal_kit.clock import Clock
from metal_kit.controller import Wait
from metal_kit.errors import NotFound, Unimplemented
from metalplane.bmc.v1.bmc_pb2 import Command, CommandAction, CommandState, CreateCommandRequest, GetCommandRequest

from metal_allocation.clients import Clients, derived_request_id
from metal_allocation.record import MAX_TEXT, Record

# The end of a command is an event; this is for the one that gets lost.
POLL = timedelta(seconds=2)
MAX_BACKOFF = timedelta(minutes=2)
UNKNOWN_BMC = "BMC_UNKNOWN"
HOPELESS = frozenset({UNKNOWN_BMC, "BMC_CANNOT", "UNSUPPORTED", "DECLINED"})
"""Reasons that the next attempt would meet as well: no BMC, one that cannot do it, a person who will not."""
ENDED = frozenset({CommandState.COMMAND_STATE_FAILED, CommandState.COMMAND_STATE_EXPIRED})


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How the present attempt stands: succeeded, or not (yet), for a reason and in words.

    `failed` counts: it tells the end of an attempt from the pause after it and from a command that is under way. `look`
    is when to look again.
    """

    succeeded: bool
    failed: bool = False
    reason: str = ""
    error: str = ""
    look: timedelta = POLL


def due(record: Record, clock: Clock) -> bool:
    """Whether the next look gives a command: none is under way, and the pause after a failed one is over."""
    return record.command is None and (record.command_after is None or clock.now() >= record.command_after)


async def command(
    record: Record, clients: Clients, clock: Clock, action: CommandAction.ValueType, step: str
) -> CommandResult:
    """Give the command of this attempt unless it is given already, and look at its result.

    A command that failed, could not be given, or whose result is gone counts as one attempt; after a pause that doubles
    each time, the next call gives a new one with an id of its own. The pause is kept whatever wakes the allocation.
    """
    now = clock.now()
    if record.command is None and record.command_after is not None and now < record.command_after:
        return _open(record, f"{_name(action)} is tried again soon", look=record.command_after - now)
    try:
        current = await _current(record, clients, action, step)
    except NotFound as problem:
        if record.command is not None:
            return _failed(record, action, now, problem.reason, "its result is gone; it is given again")
        return _failed(record, action, now, UNKNOWN_BMC, "the machine has no BMC registered; register it")
    except Unimplemented as problem:
        return _failed(record, action, now, problem.reason, problem.message)
    record.command = current.id
    if current.state == CommandState.COMMAND_STATE_SUCCEEDED:
        return CommandResult(True)
    if current.state in ENDED:
        error = current.error or "no answer before the deadline"
        return _failed(record, action, now, current.reason or "COMMAND_FAILED", error)
    return _open(record, f"{_name(action)} is under way")


def again(result: CommandResult, *, before: str = "") -> Wait:
    """Wait for the command, or before its next attempt; `before` tells what else is waited for."""
    return Wait(result.reason, f"{before}; {result.error}" if before else result.error, result.look)


def backoff(attempts: int) -> timedelta:
    """Pause after so many failed attempts: doubling, capped."""
    doublings = min(max(attempts, 1) - 1, 10)
    return min(POLL * (1 << doublings), MAX_BACKOFF)


def _open(record: Record, text: str, *, look: timedelta = POLL) -> CommandResult:
    """The attempt has not ended; that an earlier one failed, and why, stays in sight."""
    reason, _, error = record.command_error.partition(": ")
    before = f" (attempt {record.command_attempts + 1}; before: {error})" if reason else ""
    return CommandResult(False, reason=reason or "COMMAND_RUNNING", error=text + before, look=look)


def _failed(record: Record, action: CommandAction.ValueType, now: datetime, reason: str, error: str) -> CommandResult:
    record.command = None
    record.command_attempts += 1
    pause = backoff(record.command_attempts)
    record.command_after = now + pause
    record.command_error = f"{reason}: {error}"[:MAX_TEXT]
    text = f"{_name(action)}: {error} (attempt {record.command_attempts})"
    record.note(reason, text)
    return CommandResult(False, failed=True, reason=reason, error=text, look=pause)


async def _current(record: Record, clients: Clients, action: CommandAction.ValueType, step: str) -> Command:
    if record.command is not None:
        return await clients.bmcs.GetCommand(GetCommandRequest(id=record.command))
    # No timeout: bmc knows whether a BMC or a person is to do it, and a person may need a day.
    return await clients.bmcs.CreateCommand(
        CreateCommandRequest(
            request_id=derived_request_id(record.id, step, record.command_attempts),
            machine=record.machine,
            action=action,
            allocation=record.id,
        )
    )


def _name(action: CommandAction.ValueType) -> str:
    return CommandAction.Name(action).removeprefix("COMMAND_ACTION_").lower().replace("_", " ")
