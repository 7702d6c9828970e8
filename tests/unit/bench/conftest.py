"""Benchmarks are scripts beside each other: they find each other in their own directory, as when they run."""

from __future__ import annotations

import sys
from pathlib import Path

BENCH = Path(__file__).parents[3] / "bench"
if str(BENCH) not in sys.path:
    sys.path.append(str(BENCH))
