"""Starts inventory: `metal-inventory`, or `python -m metal_inventory`."""

from __future__ import annotations

from metal_kit import runtime

from metal_inventory.service import SPEC


def main() -> None:
    """Serve until told to stop."""
    runtime.main(SPEC)


if __name__ == "__main__":
    main()
