"""From the kernel command line to a running agent: what a ramdisk's init and a simulated machine's firmware call."""

from __future__ import annotations

from pathlib import Path

from metal_kit.logs import get_logger

from metal_hammer.agent import Agent
from metal_hammer.client import BootClient
from metal_hammer.contact import Rules
from metal_hammer.enrol import enrol, parse_command_line
from metal_hammer.failure import Step, StepFailed
from metal_hammer.hardware.base import Hardware

log = get_logger(__name__)


async def run_installer(
    hardware: Hardware, command_line: str, directory: Path, *, rules: Rules | None = None, crashes: int = 0
) -> None:
    """Run the installer once on `hardware`, which boot has started with `command_line`.

    `directory` is for the machine's certificate, in memory on a real machine. Does not return on a real machine; on a
    simulated one, whatever its hardware raises to say that it stopped comes out of here. Without a certificate there is
    nobody to report to: the machine resets, and the next boot decides anew.
    """
    hardware.checkpoint(Step.ENROL)
    try:
        parameters = parse_command_line(command_line)
        enrolment = await enrol(parameters, directory)
    except StepFailed as failure:
        log.warning("installer.not_enrolled", code=failure.code, detail=failure.detail)
        await hardware.reboot()
        return
    client = BootClient(enrolment, parameters.machine_id, parameters.session)
    try:
        agent = Agent(
            hardware,
            client,
            machine_id=parameters.machine_id,
            command_line=command_line,
            rules=rules,
            crashes=crashes,
        )
        await agent.run()
    finally:
        await client.close()
