"""`metal-tenancy`: the service. `metal-tenancy bootstrap`: the first operator's token, printed once."""

from __future__ import annotations

import sys

from metal_kit.runtime import main as run

from metal_tenancy.bootstrap import command
from metal_tenancy.service import SPEC


def main() -> None:
    """Start the service with settings from the environment, or make the first token."""
    if sys.argv[1:2] == ["bootstrap"]:
        command(sys.argv[2:])
        return
    run(SPEC)


if __name__ == "__main__":
    main()
