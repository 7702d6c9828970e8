"""Start the agent: `python -m metal_core` or `metal-core`."""

from __future__ import annotations

from metal_core.service import main

if __name__ == "__main__":
    main()
