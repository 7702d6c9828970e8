"""The deployment's files, read as the tools that use them would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def compose() -> dict[str, Any]:
    """docker-compose.yml."""
    return dict(yaml.safe_load((ROOT / "docker-compose.yml").read_text()))


@pytest.fixture(scope="session")
def partition() -> dict[str, Any]:
    """deploy/partition.yml."""
    return dict(yaml.safe_load((ROOT / "deploy" / "partition.yml").read_text()))
