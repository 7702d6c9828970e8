"""`metal-allocation`, `python -m metal_allocation`."""

from __future__ import annotations

from metal_kit.runtime import main as run

from metal_allocation.service import SPEC


def main() -> None:
    """Start the service with settings from the environment."""
    run(SPEC)


if __name__ == "__main__":
    main()
