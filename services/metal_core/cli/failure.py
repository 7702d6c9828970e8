"""How a command ends when it cannot do what it says."""

from __future__ import annotations

# The same numbers as metalctl's, so that scripts need one list.
DIFFERS = REFUSED = 1
USAGE = 2
MISSING = 3
HELD = 4
UNREACHABLE = 5
INTERRUPTED = 130


class CommandFailed(Exception):
    """One line for standard error, and the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
