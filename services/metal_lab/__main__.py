"""`metal-lab`, `python -m metal_lab`: the whole control plane with a simulated rack, on one machine."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

from metal_kit.interrupt import run_command

from metal_lab import commands
from metal_lab.fault_catalogue import FAULTS
from metal_lab.state import DEFAULT, VARIABLE, state_directory

EXAMPLE = "examples/mini-rack.yaml"
AS_WRITTEN = argparse.RawDescriptionHelpFormatter
DESCRIPTION = "The whole control plane with a simulated rack, on one machine."
EPILOG = """\
First steps:
  metal-lab doctor      is everything there that it needs?
  metal-lab up          start it
  metal-lab tour        a machine from waiting to a tenant and back
  metal-lab down        stop it; its state stays
  metal-lab destroy     stop it and delete its state"""


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="metal-lab", description=DESCRIPTION, epilog=EPILOG, formatter_class=AS_WRITTEN)
    where = f"state directory (${VARIABLE}, or {DEFAULT} here)"
    top.add_argument("--state", type=Path, help=where)
    # Before the command or after it; a default here would undo what was given before it.
    state = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    state.add_argument("--state", type=Path, help=where)
    sub = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return sub.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", parents=[state])

    up = command("up", "start the lab in the background and wait until it is ready")
    run = command("run", "run the lab in the foreground until it is stopped")
    for each in (up, run):
        each.add_argument("--rack", type=Path, help=f"rack file; the one of the last start, or {EXAMPLE}")
        each.add_argument("--processes", action="store_true", help="one process a service instead of one for all")
    command("down", "stop the lab and leave no process behind")
    destroy = command("destroy", "stop the lab and delete its state")
    destroy.add_argument("--yes", action="store_true", help="yes, delete it")
    command("status", "show what the lab is doing and what has failed")
    command("doctor", "find what would keep the lab from working, and say what to do about it")

    tour = command("tour", "take a machine from waiting to a tenant and back, and tell about it")
    tour.add_argument("--ephemeral", action="store_true", help="in a lab of its own, which is stopped afterwards")
    tour.add_argument("--rack", type=Path, help=f"rack file for --ephemeral ({EXAMPLE})")
    tour.add_argument("--processes", action="store_true", help="with --ephemeral: one process a service")

    listed = "\n".join(f"  {each.name:<22} {each.target:<8} {each.text}" for each in FAULTS)
    fault = sub.add_parser(
        "fault",
        help="switch a fault on or off, or list them",
        description=f"Switch a fault of a simulated machine or leaf on or off. There are:\n{listed}",
        epilog="`metal-lab fault list` shows who has which now.",
        formatter_class=AS_WRITTEN,
        parents=[state],
    )
    fault.add_argument(
        "name", choices=[*(each.name for each in FAULTS), "list"], metavar="NAME", help="one of the above"
    )
    fault.add_argument("target", nargs="?", default="", help="the machine or leaf, as `metal-lab status` names it")
    fault.add_argument("switch", choices=("on", "off"), nargs="?", default="on", help="on when left out")
    return top


def _running() -> ModuleType:
    """The commands that need the whole plane, loaded only for them: that takes seconds on a small computer."""
    return importlib.import_module("metal_lab.running")


def main() -> None:
    """Run one command; its exit code is 0 when it did what it says."""
    try:
        sys.exit(_run(parse()))
    except KeyboardInterrupt:
        # A lab that `up` has started goes on: it is a process of its own.
        sys.stderr.write("metal-lab: interrupted; `metal-lab status` says what runs\n")
        sys.exit(130)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with code 2 and the usage when it makes no sense."""
    top = parser()
    options = top.parse_args(arguments)
    if options.command == "fault" and options.name != "list" and not options.target:
        top.error(f"which machine or leaf has {options.name}? `metal-lab status` names them")
    if options.command == "tour" and not options.ephemeral and (options.rack or options.processes):
        top.error("--rack and --processes are for `tour --ephemeral`; a lab that runs has its rack")
    return options


def _run(options: argparse.Namespace) -> int:
    directory = state_directory(options.state)
    match options.command:
        case "up":
            code = run_command(commands.up(directory, options.rack, processes=options.processes))
        case "run":
            code = _running().run(directory, options.rack, processes=options.processes)
        case "down":
            code = run_command(commands.down(directory))
        case "destroy":
            code = run_command(commands.destroy(directory, sure=options.yes))
        case "status":
            code = run_command(commands.status(directory))
        case "doctor":
            code = run_command(commands.examine(directory))
        case "tour" if options.ephemeral:
            code = run_command(_running().ephemeral_tour(options.rack, processes=options.processes))
        case "tour":
            code = run_command(_running().tour(directory))
        case _ if options.name == "list":
            code = run_command(commands.fault_list(directory))
        case _:
            code = run_command(commands.fault(directory, options.name, options.target, on=options.switch == "on"))
    return int(code)


if __name__ == "__main__":
    main()
