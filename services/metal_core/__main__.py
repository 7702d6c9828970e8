"""`metal-core`, `python -m metal_core`: the agent, and commands for people on the leaf."""

from __future__ import annotations

import sys
from typing import NoReturn

from metal_core.cli.parser import parse


def main() -> NoReturn:
    """Run a command, or the agent when none is given."""
    options = parse(sys.argv[1:])
    # Only what is needed: the commands know nothing of the plane.
    if options.command in {None, "run"}:
        from metal_core import service  # noqa: PLC0415

        service.main()
    from metal_core.cli.main import main as run  # noqa: PLC0415

    sys.exit(run(options))


if __name__ == "__main__":
    main()
