"""Installing: the installer works and reports; a machine that fell silent or failed is sent through PXE again."""

from __future__ import annotations

from datetime import datetime, timedelta

from metal_kit.clock import Clock
from metal_kit.controller import Failed, Go, Outcome, Wait
from metalplane.bmc.v1.bmc_pb2 import CommandAction

from metal_allocation.clients import Clients
from metal_allocation.phase import Phase
from metal_allocation.record import INSTALLED, Record
from metal_allocation.steps.commands import again, command, due
from metal_allocation.steps.telling import PLANNED_REBOOT, Standing, tell

MAX_REBOOTS = 3
# The installer reports each step and a sign of life in between; a silence this long is a dead installer.
SILENCE = timedelta(minutes=5)
LOOK_AGAIN = timedelta(seconds=30)
BINDING_LOST_RETRY = timedelta(seconds=15)


async def install(record: Record, clients: Clients, clock: Clock) -> Outcome:
    """Wait for the installer's report. After a failure or a long silence reboot into the installer, at most thrice.

    After that the allocation holds still for an operator: nothing is wiped or freed on its own. A reboot that the BMC
    did not do is none of the three, and is tried again for as long as it takes.
    """
    if record.installed:
        record.set_condition(INSTALLED, True, "INSTALLED", "", clock.now())
        return Go(Phase.ATTACHING, "INSTALLED", "the installer has reported success")
    why = trouble(record, clock.now())
    if not why:
        step = f"the installer is at {record.installer_step}" if record.installer_step else "the installer is awaited"
        return Wait("INSTALLING", step, LOOK_AGAIN)
    record.set_condition(INSTALLED, False, "INSTALL_FAILED", why, clock.now())
    if record.install_reboots >= MAX_REBOOTS:
        message = f"gave up after {MAX_REBOOTS} reboots: {why}; free the allocation, or repair the machine"
        return Wait("INSTALL_GAVE_UP", message, LOOK_AGAIN)
    if due(record, clock):
        attempt = record.command_attempts
        standing = await tell(
            record, clients, PLANNED_REBOOT, "install-again", f"installs again: {why}", attempt=attempt
        )
        if standing is not Standing.OURS:
            return Failed("BINDING_LOST", "inventory does not bind the machine to this allocation", BINDING_LOST_RETRY)
    result = await command(record, clients, clock, CommandAction.COMMAND_ACTION_PXE_CYCLE, "install-again")
    if not result.succeeded:
        return again(result, before=why)
    record.command = None
    record.command_attempts += 1
    record.install_reboots += 1
    record.command_after = None
    record.installer_time = clock.now()
    record.install_error = ""
    record.note("INSTALL_AGAIN", f"rebooted into the installer: {why}")
    return Wait("INSTALLING", "the installer is awaited again", LOOK_AGAIN)


def trouble(record: Record, now: datetime) -> str:
    """Why the machine has to be sent to the installer again; empty while the installation may still come to its end."""
    if record.install_error:
        return record.install_error
    heard = max(record.installer_time or record.phase_time, record.phase_time)
    if now - heard > SILENCE or record.command is not None:
        return "the installer fell silent"
    return ""
