"""Start metal-bmc: `metal-bmc`, or `python -m metal_bmc`."""

from __future__ import annotations

from typing import NoReturn

from metal_kit.runtime import main as run

from metal_bmc.service import SPEC


def main() -> NoReturn:
    """Console script; settings come from the environment."""
    run(SPEC)


if __name__ == "__main__":
    main()
