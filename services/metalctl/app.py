"""The command tree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metalctl import reading
from metalctl.commands import allocation, machine, network, project, switch, tenant, token
from metalctl.output import Format
from metalctl.resources import RESOURCES
from metalctl.session import Options

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback(help="The plane on the command line.")
def _options(
    ctx: typer.Context,
    context: Annotated[Path | None, typer.Option(help="context file", envvar="METALPLANE_CONTEXT")] = None,
    output: Annotated[Format, typer.Option("--output", "-o", help="how to print")] = Format.TABLE,
) -> None:
    ctx.obj = Options(context=context, output=output)


def _assemble() -> None:
    groups: dict[str, typer.Typer] = {}
    for resource in RESOURCES:
        group = groups[resource.name] = typer.Typer(help=resource.help, no_args_is_help=True)
        reading.add(group, resource)
        app.add_typer(group, name=resource.name)
    for module in (allocation, machine, network, project, switch, tenant, token):
        module.add(groups)
    app.command("whoami", help="who the plane takes you for, and what you may do")(token.whoami)


_assemble()
