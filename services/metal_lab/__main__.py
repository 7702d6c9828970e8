"""`metal-lab`, `python -m metal_lab`: the whole control plane with a simulated rack, on one machine."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
from pathlib import Path
from types import ModuleType

from metal_lab import commands
from metal_lab.fault_catalogue import FAULTS
from metal_lab.state import DEFAULT, VARIABLE, state_directory

EXAMPLE = Path("examples/mini-rack.yaml")


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="metal-lab", description=__doc__)
    top.add_argument("--state", type=Path, help=f"state directory (${VARIABLE}, or {DEFAULT} here)")
    sub = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    up = sub.add_parser("up", help="start the lab in the background and wait until it is ready")
    run = sub.add_parser("run", help="run the lab in the foreground until it is stopped")
    for each in (up, run):
        each.add_argument("--rack", type=Path, help=f"rack file; the one of the last start, or {EXAMPLE}")
        each.add_argument("--processes", action="store_true", help="one process a service instead of one for all")
    sub.add_parser("down", help="stop the lab and leave no process behind")
    destroy = sub.add_parser("destroy", help="stop the lab and delete its state")
    destroy.add_argument("--yes", action="store_true", help="yes, delete it")
    sub.add_parser("status", help="what the lab is doing")
    sub.add_parser("doctor", help="find what would keep the lab from working")

    tour = sub.add_parser("tour", help="take a machine from waiting to a tenant and back, and tell about it")
    tour.add_argument("--ephemeral", action="store_true", help="in a lab of its own, which is stopped afterwards")
    tour.add_argument("--rack", type=Path, help=f"rack file for --ephemeral ({EXAMPLE})")
    tour.add_argument("--processes", action="store_true", help="with --ephemeral: one process a service")

    names = ", ".join(f"{each.name} ({each.target})" for each in FAULTS)
    fault = sub.add_parser("fault", help="switch a fault on or off", description=f"Faults: {names}")
    fault.add_argument("name", help="the fault")
    fault.add_argument("target", help="name of the machine or leaf, as `metal-lab status` shows it")
    fault.add_argument("switch", choices=("on", "off"), nargs="?", default="on")
    return top


def _running() -> ModuleType:
    """The commands that need the whole plane, loaded only for them: that takes seconds on a small computer."""
    return importlib.import_module("metal_lab.running")


def main() -> None:
    """Run one command; its exit code is 0 when it did what it says."""
    options = parser().parse_args()
    directory = state_directory(options.state)
    match options.command:
        case "up":
            code = asyncio.run(commands.up(directory, options.rack, processes=options.processes))
        case "run":
            code = _running().run(directory, options.rack, processes=options.processes)
        case "down":
            code = asyncio.run(commands.down(directory))
        case "destroy":
            code = asyncio.run(commands.destroy(directory, sure=options.yes))
        case "status":
            code = asyncio.run(commands.status(directory))
        case "doctor":
            code = asyncio.run(commands.examine(directory))
        case "tour" if options.ephemeral:
            code = asyncio.run(_running().ephemeral_tour(options.rack, processes=options.processes))
        case "tour":
            code = asyncio.run(_running().tour(directory))
        case _:
            code = asyncio.run(commands.fault(directory, options.name, options.target, on=options.switch == "on"))
    sys.exit(code)


if __name__ == "__main__":
    main()
