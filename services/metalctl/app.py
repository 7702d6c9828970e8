"""The command tree."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from metalctl import command, reading
from metalctl.commands import (
    allocation,
    audit,
    bmc,
    console,
    expected,
    fabric_settings,
    generation,
    ip,
    issues,
    login,
    machine,
    member,
    namespace,
    network,
    prefix,
    project,
    quota,
    switch,
    switch_state,
    tenant,
    token,
    whoami,
)
from metalctl.context import TOKEN_VARIABLE
from metalctl.failure import EXIT_HELP
from metalctl.output import Format, write
from metalctl.resources import RESOURCES
from metalctl.session import Options

HELP = "The plane on the command line: list and get everything, give machines to projects and take them back."
EPILOG = (
    "Tenants, projects, networks and allocations may be named by their names instead of their ids. "
    f"${TOKEN_VARIABLE} goes before the context's token. {EXIT_HELP}"
)

app = typer.Typer(
    help=HELP,
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        write(f"metalctl {version('metalplane')}")
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    context: command.ContextFile = None,
    output: command.Output = None,
    _: Annotated[bool, typer.Option("--version", help="show the version", is_eager=True, callback=_version)] = False,
) -> None:
    ctx.obj = Options(context=context, output=output or Format.TABLE)


def _assemble() -> None:
    groups: dict[str, typer.Typer] = {}
    for resource in RESOURCES:
        group = groups[resource.name] = command.group(resource.help)
        reading.add(group, resource)
        app.add_typer(group, name=resource.name)
    for module in (
        allocation,
        bmc,
        console,
        expected,
        fabric_settings,
        generation,
        ip,
        machine,
        member,
        namespace,
        network,
        prefix,
        project,
        quota,
        switch,
        switch_state,
        tenant,
        token,
    ):
        module.add(groups)
    command.add(app, "issues", issues.issues, "what is wrong with the plane, as its services tell it; the worst first")
    group = groups["audit"] = command.group("who did what, on every service, and whether that record is whole")
    audit.add(groups)
    app.add_typer(group, name="audit")
    command.add(app, "login", login.login, "get a token from the identity provider and keep it in the context")
    command.add(app, "logout", login.logout, "end the context's token and take it out of the file")
    command.add(app, "whoami", whoami.whoami, "who the plane takes you for, and what you may do")


_assemble()
