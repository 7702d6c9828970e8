"""Runs one command: settings, the leaf, one line on standard error for what went wrong."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from metal_kit import logs
from metal_kit.interrupt import run_command
from metal_kit.process import StartError
from pydantic import ValidationError

from metal_core.cli import commands
from metal_core.cli.failure import INTERRUPTED, USAGE, CommandFailed
from metal_core.leaf import LeafSettings, open_leaf


def main(options: argparse.Namespace) -> int:
    """Carry out the command; the exit code."""
    try:
        settings = LeafSettings()
    except ValidationError as error:
        faults = error.errors(include_input=False, include_url=False, include_context=False)
        names = [f"METALPLANE_{'__'.join(str(part) for part in each['loc']).upper()}: {each['msg']}" for each in faults]
        return _failed("; ".join(names), USAGE)
    # People read what the command prints; the agent's log is for what goes wrong underneath.
    logs.configure("error", json=False)
    try:
        return _carry_out(settings, options)
    except CommandFailed as failure:
        return _failed(str(failure), failure.code)
    except StartError as error:
        return _failed(str(error), USAGE)
    except KeyboardInterrupt:
        return _failed("interrupted; `metal-core status` says what the leaf has", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python would complain once more when it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _carry_out(settings: LeafSettings, options: argparse.Namespace) -> int:
    try:
        settings.state_directory.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="command-", dir=settings.state_directory) as scratch:
            return run_command(_run(settings, options, Path(scratch)))
    except PermissionError as error:
        raise CommandFailed(f"{error.filename}: {error.strerror}; METALPLANE_STATE_DIRECTORY", USAGE) from error


async def _run(settings: LeafSettings, options: argparse.Namespace, scratch: Path) -> int:
    leaf = open_leaf(settings, scratch=scratch)
    try:
        return await commands.run(leaf, options)
    finally:
        await leaf.close()


def _failed(line: str, code: int) -> int:
    sys.stderr.write(f"metal-core: {'; '.join(part.strip() for part in line.splitlines())}\n")
    return code
