"""One command's connection to the plane, and how its failures are told."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

import typer
from metal_kit.client import Peers
from metal_kit.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Problem,
    Unauthenticated,
    Unavailable,
)
from metal_kit.tls import Identity

from metalctl.context import Context, ContextError, load
from metalctl.output import Format

T = TypeVar("T")
# Exit codes that scripts can tell apart; 1 is everything else.
EXIT_CODES: dict[type[Problem], int] = {
    InvalidArgument: 2,
    NotFound: 3,
    Unauthenticated: 4,
    PermissionDenied: 4,
    Unavailable: 5,
    DeadlineExceeded: 5,
}


@dataclass(slots=True)
class Options:
    """What stands before the command."""

    context: Path | None = None
    output: Format = Format.TABLE


def run(options: Options, body: Callable[[Peers], Awaitable[T]]) -> T:
    """Connect, run, disconnect. A Problem becomes one line on standard error and an exit code."""
    try:
        context = load(options.context)
    except ContextError as error:
        fail(str(error), 2)
    try:
        return asyncio.run(_connected(context, body))
    except Problem as problem:
        fail(explain(problem, context), EXIT_CODES.get(type(problem), 1))
    except FileNotFoundError as error:
        fail(f"{context.path}: {error.filename} is not there", 2)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


async def _connected(context: Context, body: Callable[[Peers], Awaitable[T]]) -> T:
    identity = Identity(context.ca, context.cert, context.key)
    peers = Peers(context.endpoints, identity, token=lambda: context.token, server_names=context.server_names)
    try:
        return await body(peers)
    finally:
        await peers.close()


def explain(problem: Problem, context: Context) -> str:
    """A problem in one line: what, which field, and what to do where metalctl knows it."""
    text = f"{problem.message} [{problem.reason}]"
    if problem.field and problem.field not in problem.message:
        text = f"{problem.field}: {text}"
    match problem:
        case Unauthenticated():
            return f"{text}; the token in {context.path} no longer holds"
        case Unavailable() | DeadlineExceeded():
            return f"{text}; is the plane of context {context.name} running?"
        case _:
            return text


def fail(message: str, code: int = 1) -> NoReturn:
    """End with one line on standard error."""
    print(f"metalctl: {message}", file=sys.stderr)
    raise typer.Exit(code)
