"""Tests against programs that others wrote: skipped where these are not installed, but where they must be."""

from __future__ import annotations

import os
import shutil

import pytest

REQUIRED = os.environ.get("METALPLANE_REQUIRE_PEERS") == "1"


def needs(program: str) -> list[pytest.MarkDecorator]:
    """The marks of tests that run `program`. With METALPLANE_REQUIRE_PEERS=1 they run, and fail without it."""
    absent = shutil.which(program) is None and not REQUIRED
    return [pytest.mark.peer, pytest.mark.skipif(absent, reason=f"{program} is not installed (`make peers`)")]
