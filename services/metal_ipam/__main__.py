"""`metal-ipam`: the service, with settings from the environment."""

from __future__ import annotations

from metal_kit.runtime import main as run

from metal_ipam.service import SPEC


def main() -> None:
    """Run the service until it is told to stop."""
    run(SPEC)


if __name__ == "__main__":
    main()
