"""`metalctl`, `python -m metalctl`."""

from __future__ import annotations

from metalctl.app import app


def main() -> None:
    """Run one command."""
    app(prog_name="metalctl")


if __name__ == "__main__":
    main()
