"""The command line of `metal-core`."""

from __future__ import annotations

import argparse
from pathlib import Path

AS_WRITTEN = argparse.RawDescriptionHelpFormatter
DESCRIPTION = "The agent on a SONiC leaf, and what people do there without the plane."
EXIT_CODES = """\
Exit codes: 0 done, 1 differs (diff, status), refused or failed, 2 wrong usage or input, 3 there is no such state,
4 somebody else holds the leaf, 5 Redis or FRR is not reachable, 130 interrupted."""
EPILOG = f"""\
Without a command, `metal-core` runs the agent. The commands need no plane and no certificate; settings are the same
environment variables as the agent's (METALPLANE_STATE_DIRECTORY, METALPLANE_VTYSH, ...), and each has a default.

First steps:
  metal-core status                     who is at work here, and does the leaf have what it should?
  metal-core diff                       what is other than in the last known good state
  metal-core render -o json > w.json    a state to edit
  metal-core plan --wish w.json         what would be done for it, step by step
  metal-core apply --wish w.json --dry-run

{EXIT_CODES}"""
WISH = """\
The state is the last known good one, or with --wish a JSON file: what `metal-core render -o json` prints, or the file
of a last known good state, or only the object `desired` of either."""


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="metal-core", description=DESCRIPTION, epilog=EPILOG, formatter_class=AS_WRITTEN, allow_abbrev=False
    )
    sub = top.add_subparsers(dest="command", metavar="COMMAND")
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("-o", "--output", choices=("text", "json"), default="text", help="text for people, or JSON")
    wish = argparse.ArgumentParser(add_help=False)
    wish.add_argument("--wish", metavar="FILE", help="the state to work with; - reads standard input")

    def command(
        name: str, text: str, more: str = "", parents: tuple[argparse.ArgumentParser, ...] = ()
    ) -> argparse.ArgumentParser:
        description = f"{text[0].upper()}{text[1:]}.{more}"
        return sub.add_parser(
            name,
            help=text,
            description=description,
            epilog=EXIT_CODES,
            formatter_class=AS_WRITTEN,
            parents=[*parents, output],
            allow_abbrev=False,
        )

    command("run", "run the agent in the foreground (as without a command)")
    render = command(
        "render", "print what a state becomes: rows of CONFIG_DB and FRR's configuration", _and(WISH), (wish,)
    )
    render.add_argument(
        "--only", choices=("configdb", "frr"), help="only one of the two, ready to be written to a file"
    )
    render.add_argument("--vtep", default="", help="name of the leaf's VXLAN tunnel; left out, CONFIG_DB is asked")
    command("diff", "print where the leaf differs from a state", _and(WISH, "Code 1 when it does."), (wish,))
    command(
        "plan",
        "check a state against the leaf and print each step and FRR command that would lead there",
        _and(WISH, "Nothing is changed; FRR is asked whether it would take the commands."),
        (wish,),
    )
    apply = command("apply", "bring the leaf to a state, prove it, and remember it", _and(WISH, _APPLY), (wish,))
    rollback = command("rollback", "bring the leaf back to its last known good state", _and(_ROLLBACK))
    rollback.add_argument("--previous", action="store_true", help="to the known good state before the last one instead")
    for each in (apply, rollback):
        each.add_argument("--dry-run", action="store_true", help="print what would be done, as `plan` does")
    command("retry", "have the generation tried again that the agent has set aside", _and(_RETRY))
    command("status", "show who is at work, what is known to be good, and whether the leaf has it", _and(_STATUS))
    return top


_APPLY = """\
A failed attempt is taken back. While the agent runs it holds the leaf; stop it first. When it runs again, the plane
replaces a state that is not its own by a new generation."""
_ROLLBACK = """\
A failed attempt is taken back. While the agent runs it holds the leaf; stop it first. When it runs again it brings the
leaf to the plane's newest state; `metalctl switch rollback` has the plane want an older one."""
_RETRY = """\
A generation of the plane's that failed three times, can never work, or cut the leaf off, is not tried again by itself;
`metal-core status` and `metalctl switch describe` say why. An agent that runs tries it again within seconds, otherwise
the next one does. Where nothing is set aside nothing happens. `metalctl switch retry` does the same from afar."""
_STATUS = """\
Code 1 when the leaf differs from the last known good state, 3 when there is none."""


def _and(*paragraphs: str) -> str:
    return "".join(f"\n\n{paragraph}" for paragraph in paragraphs)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. Exits with code 2 and the usage when it makes no sense."""
    return parser().parse_args(arguments)


def file_of(text: str) -> Path:
    """The file that an option names; standard input for `-`."""
    return Path("/dev/stdin") if text == "-" else Path(text)
