"""One command's connection to the plane."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from metal_kit.client import Peers
from metal_kit.errors import Problem
from metal_kit.interrupt import run_command
from metal_kit.tls import Identity

from metalctl.context import Context, ContextError, load
from metalctl.failure import INTERRUPTED, USAGE, exit_code, explain, fail
from metalctl.output import Format, note

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """What every command takes."""

    context: Path | None = None
    output: Format = Format.TABLE


def run(
    options: Options,
    body: Callable[[Peers], Awaitable[T]],
    *,
    interrupted: str = "",
    token: str | None = None,
    token_source: str = "",
) -> T:
    """Connect, run, disconnect. A Problem becomes one line on standard error and an exit code.

    `interrupted` tells what goes on without us when Ctrl-C ends the command. `token` stands for the context's, whether
    it has one or not; empty: as nobody.
    """
    try:
        context = load(options.context, stored=token is not None)
        if token is not None:
            context = replace(context, token=token, token_source=token_source or str(context.path), warning="")
    except ContextError as error:
        fail(str(error), USAGE)
    if context.warning:
        note(f"metalctl: warning: {context.warning}")
    try:
        return run_command(_connected(context, body))
    except Problem as problem:
        fail(explain(problem, context), exit_code(problem))
    except KeyboardInterrupt:
        fail("interrupted" + (f"; {interrupted}" if interrupted else ""), INTERRUPTED)


async def _connected(context: Context, body: Callable[[Peers], Awaitable[T]]) -> T:
    identity = Identity(context.ca, context.cert, context.key)
    peers = Peers(context.endpoints, identity, token=lambda: context.token, server_names=context.server_names)
    try:
        return await body(peers)
    finally:
        await peers.close()
