"""`metalctl`, `python -m metalctl`."""

from __future__ import annotations

import io
import os
import sys


def main() -> None:
    """Run one command."""
    # The transport's own log lines say in many words what `failure` says in one line; who wants them sets the variable.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character gets its number, not a traceback.
            stream.reconfigure(errors="backslashreplace")
    try:
        from metalctl.app import app  # noqa: PLC0415 - Ctrl-C while this loads ends as quietly as later

        app(prog_name="metalctl")
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
