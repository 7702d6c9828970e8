"""`metal-tenancy bootstrap`: the first token, printed once, or one line that says why not."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

# Nothing listens there: port 1 is reserved and needs root.
NO_POSTGRES = "postgresql://postgres@127.0.0.1:1/none"


async def bootstrap(*words: str, **settings: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "metal_tenancy", "bootstrap", *words),
        env={"PATH": os.environ["PATH"]} | {f"METALPLANE_{name.upper()}": text for name, text in settings.items()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_the_token_is_an_operators_and_alone_on_standard_output(
    tenancy: Any, tenancy_url: str, token_key: Path
) -> None:
    settings = {"database_url": tenancy_url, "token_key": str(token_key)}
    code, out, err = await bootstrap("--user", "founder", "--hours", "2", **settings)
    assert (code, len(out.splitlines())) == (0, 1), err
    token = await tenancy.check(out.strip())
    assert (token.user, token.plane_role) == ("founder", 2)
    assert token.expire_time.seconds - token.create_time.seconds == 7200
    assert out.strip() not in err


@pytest.mark.parametrize(
    ("settings", "exit_code", "told"),
    [
        ({}, 78, "METALPLANE_TOKEN_KEY"),
        ({"token_key": "none.pem"}, 78, "METALPLANE_DATABASE_URL"),
        ({"token_key": "none.pem", "database_url": NO_POSTGRES}, 78, "none.pem"),
        ({"token_key": "KEY", "database_url": NO_POSTGRES}, 69, "127.0.0.1:1"),
    ],
)
async def test_what_is_missing_is_told_in_one_line(
    token_key: Path, settings: dict[str, str], exit_code: int, told: str
) -> None:
    if settings.get("token_key") == "KEY":
        settings = settings | {"token_key": str(token_key)}
    code, out, err = await bootstrap(**settings)
    assert (code, out) == (exit_code, "")
    assert told in err.splitlines()[-1]
    assert "Traceback" not in err
