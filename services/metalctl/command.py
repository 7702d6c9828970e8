"""What every command has in common: `--output` and `--context`, before its name or after it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from metalctl.context import VARIABLE
from metalctl.output import Format
from metalctl.session import Options

OUTPUT_HELP = "how to print: table (the default), or json with every field"
CONTEXT_HELP = f"context file; else ${VARIABLE}, .lab/context.json, ~/.config/metalplane/context.json"

Output = Annotated[Format | None, typer.Option("--output", "-o", help=OUTPUT_HELP, show_default=False)]
ContextFile = Annotated[Path | None, typer.Option("--context", help=CONTEXT_HELP, show_default=False)]


def group(help_text: str) -> typer.Typer:
    """A group of commands. Help and errors are plain text: they are read in logs as well as on terminals."""
    return typer.Typer(help=help_text, no_args_is_help=True, rich_markup_mode=None)


def add(to: typer.Typer, name: str, function: Callable[..., None], help_text: str) -> None:
    """Add a command. `function` takes a `typer.Context` named `ctx` and its own parameters, annotated for typer."""
    hints = get_type_hints(function, include_extras=True)
    own = [each.replace(annotation=hints[each.name]) for each in inspect.signature(function).parameters.values()]
    keyword = inspect.Parameter.KEYWORD_ONLY
    common = [
        inspect.Parameter("output", keyword, default=None, annotation=Output),
        inspect.Parameter("context", keyword, default=None, annotation=ContextFile),
    ]

    def command(**given: Any) -> None:
        ctx: typer.Context = given["ctx"]
        chosen = {each: value for each in ("output", "context") if (value := given.pop(each)) is not None}
        ctx.obj = replace(ctx.obj or Options(), **chosen)
        function(**given)

    to.command(name, help=help_text)(shape(command, [*own, *common]))


def shape(command: Callable[..., None], parameters: list[inspect.Parameter]) -> Callable[..., None]:
    """Give a function that takes keywords the signature that typer reads its arguments and options from."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command
