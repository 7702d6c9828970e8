"""Start metal-hammer in a ramdisk: settings come from the kernel command line, not from the environment."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from pathlib import Path

from metal_kit import logs

from metal_hammer import watchdog
from metal_hammer.contact import Rules
from metal_hammer.hardware.linux import OPTIONAL_PROGRAMS, PROGRAMS, LinuxHardware
from metal_hammer.run import run_installer

COMMAND_LINE = Path("/proc/cmdline")
CERTIFICATES = Path("/run/metal-hammer/identity")


def rules_of(command_line: str) -> Rules:
    """Rules with what the command line changes: `metal.neighbours=<n>`, leaves that a machine should hear (0..2)."""
    for word in command_line.split():
        name, _, value = word.partition("=")
        if name == "metal.neighbours" and value in ("0", "1", "2"):
            return Rules(neighbours_needed=int(value))
    return Rules()


async def install(command_line: str) -> None:
    """Run the installer on this machine; the watchdog is fed meanwhile."""
    log = logs.get_logger("metal-hammer")
    missing = [program for program in (*PROGRAMS, *OPTIONAL_PROGRAMS) if shutil.which(program) is None]
    if missing:
        log.warning("programs.missing", programs=missing)
    feeding = asyncio.create_task(watchdog.feed(), name="watchdog")
    try:
        await run_installer(LinuxHardware(), command_line, CERTIFICATES, rules=rules_of(command_line))
    finally:
        feeding.cancel()
        with suppress(asyncio.CancelledError):
            await feeding


def main() -> None:
    """Console script. Refuses to run where no boot service has started it: on somebody's workstation, for example."""
    logs.configure("info", json=False)
    command_line = COMMAND_LINE.read_text()
    if "metal.token=" not in command_line:
        raise SystemExit("metal-hammer runs in the ramdisk that metal-boot starts: there is no metal.token= here")
    asyncio.run(install(command_line))


if __name__ == "__main__":
    main()
