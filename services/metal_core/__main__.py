"""`metal-core`, `python -m metal_core`: the agent, and commands for people on the leaf."""

from __future__ import annotations

import gc
import sys
from typing import NoReturn

from metal_core.cli.parser import parse


def main() -> NoReturn:
    """Run a command, or the agent when none is given."""
    options = parse(sys.argv[1:])
    # Only what is needed: the commands know nothing of the plane.
    if options.command in {None, "run"}:
        # Modules are never garbage, and to look for it among them takes a tenth of the time that a start has.
        gc.disable()
        from metal_core import service  # noqa: PLC0415

        gc.freeze()
        gc.enable()
        service.main()
    from metal_core.cli.main import main as run  # noqa: PLC0415

    sys.exit(run(options))


if __name__ == "__main__":
    main()
