"""Start metal-boot."""

from __future__ import annotations

from metal_kit import runtime

from metal_boot.service import SPEC


def main() -> None:
    """Console script."""
    runtime.main(SPEC)


if __name__ == "__main__":
    main()
