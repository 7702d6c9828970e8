"""`metal-fabric`: the service."""

from __future__ import annotations

from metal_kit.runtime import main as run

from metal_fabric.service import SPEC


def main() -> None:
    """Start the service with settings from the environment."""
    run(SPEC)


if __name__ == "__main__":
    main()
