"""What commands print: results on standard output, remarks on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable


def print_lines(lines: Iterable[str]) -> None:
    """Lines of a result."""
    for line in lines:
        sys.stdout.write(_printable(line) + "\n")


def print_json(data: object) -> None:
    """A result as JSON."""
    sys.stdout.write(json.dumps(data, indent=1) + "\n")


def note(line: str) -> None:
    """A remark; results can be piped away without it."""
    sys.stderr.write(_printable(line) + "\n")


def _printable(line: str) -> str:
    # Bytes from Redis that are no text stand as lone surrogates, which no terminal takes.
    return line.encode(errors="backslashreplace").decode()
