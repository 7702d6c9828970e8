"""The program logs in at a provider, in a plane as it runs, and out again."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from metal_kit.runtime import RunningService
from metal_tenancy.service import SPEC
from oidc_provider import CLIENT, OidcProvider, serving

ADDRESS = re.compile(r"https?://\S+")


@pytest.fixture
async def provider() -> AsyncIterator[OidcProvider]:
    async with serving() as made:
        yield made


@pytest.fixture
async def plane(
    start_service: Callable[..., Awaitable[RunningService]],
    new_database: Callable[..., Awaitable[str]],
    tmp_path: Path,
    provider: OidcProvider,
) -> RunningService:
    """tenancy, with the provider."""
    key = tmp_path / "tokens.pem"
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    key.write_bytes(Ed25519PrivateKey.generate().private_bytes(*pem))
    url = await new_database("tenancy", "metal_tenancy")
    return await start_service(
        SPEC, database_url=url, token_key=key, oidc_issuer=provider.issuer, oidc_client_id=CLIENT,
        oidc_operator_groups=("plane-ops",),
    )  # fmt: skip


@asynccontextmanager
async def started(context: Path, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`metalctl login` in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name not in {"METALPLANE_TOKEN", "DISPLAY"}}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "metalctl", "login", *words), env=environment | {"METALPLANE_CONTEXT": str(context)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def address_of(process: asyncio.subprocess.Process) -> str:
    """The address that the person is told to open."""
    assert process.stderr is not None
    line = (await process.stderr.readline()).decode()
    found = ADDRESS.search(line)
    assert found is not None, line
    return found[0]


async def opened(address: str) -> tuple[int, str]:
    """What the person's browser shows in the end; it follows the provider back to the program."""
    async with aiohttp.ClientSession() as browser, browser.get(address) as answer:
        return answer.status, await answer.text()


def kept(context: Path) -> dict[str, Any]:
    """What is in the context file."""
    content: dict[str, Any] = json.loads(context.read_text())
    return content


def mode(context: Path) -> int:
    """Who may read it."""
    return stat.S_IMODE(context.stat().st_mode)


@pytest.fixture
def bare_context(plane: RunningService, new_context: Any) -> Path:
    """A context that has no token yet."""
    path: Path = new_context(plane.address, token="")
    return path


async def test_a_person_logs_in_with_a_browser_is_somebody_and_logs_out(
    plane: RunningService, provider: OidcProvider, bare_context: Path, metalctl: Any
) -> None:
    provider.claims["groups"] = ["plane-ops"]
    before = kept(bare_context)
    async with started(bare_context, "--no-browser") as process:
        status, shown = await opened(await address_of(process))
        assert (status, "Go back to the terminal" in shown) == (200, True)
        out, err = (text.decode() for text in await process.communicate())
    assert process.returncode == 0, err
    assert out.startswith("logged in as oidc:anna@example.org, until ")
    assert "(in 7 h 59 min)" in out
    after = kept(bare_context)
    assert after | {"token": ""} == before
    assert mode(bare_context) == 0o600
    assert after["token"] not in out + err

    who, made, gone = await metalctl(bare_context, ["whoami"], ["tenant", "create", "acme"], ["logout"])
    assert re.search(r"plane role +operator\n", who.out)
    assert re.search(r"expires +\S+ \S+Z, in 7 h 59 min", who.out)
    assert (made.code, gone.code, gone.out) == (0, 0, "logged out\n")
    assert "token" not in kept(bare_context)
    deadline = time.monotonic() + 6
    while (late := (await metalctl(bare_context, ["whoami"], token=after["token"]))[0]).code == 0:
        assert time.monotonic() < deadline, "what was logged out holds for five seconds at most"
    assert "[TOKEN_INVALID]" in late.err


@pytest.mark.parametrize("nonce", [True, False])
async def test_a_person_logs_in_from_another_computer(
    plane: RunningService, provider: OidcProvider, bare_context: Path, nonce: bool
) -> None:
    provider.device_nonce = nonce
    async with started(bare_context, "--device", "-o", "json") as process:
        out, err = (text.decode() for text in await process.communicate())
    assert f"open {provider.issuer}/activate on any computer and type in: WDJB-MJHT" in err
    if nonce:
        assert process.returncode == 0, err
        assert json.loads(out)["user"] == "oidc:anna@example.org"
        assert kept(bare_context)["token"] not in out
    else:
        assert (process.returncode, out) == (4, "")
        assert "METALPLANE_OIDC_WITHOUT_NONCE" in err
        assert err.splitlines()[-1] == "metalctl: the ID token does not belong to this login (nonce) [ID_TOKEN_INVALID]"


async def test_a_login_that_is_refused_or_answered_by_others_keeps_the_old_token(
    plane: RunningService, provider: OidcProvider, new_context: Any
) -> None:
    context = new_context(plane.address, token="the.old.one")
    provider.refuses = "access_denied"
    async with started(context, "--no-browser") as process:
        await opened(await address_of(process))
        out, err = (text.decode() for text in await process.communicate())
    assert (process.returncode, out) == (4, "")
    assert err == "metalctl: the provider refused the login: access_denied: no\\x1b[31m\n"
    provider.refuses = ""
    provider.wrong_state = True
    async with started(context, "--no-browser") as process:
        status, _ = await opened(await address_of(process))
        assert status == 400
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await process.wait()
    assert provider.asked.count("/token") == 0, "the code of an answer that is not ours is not redeemed"
    assert kept(context)["token"] == "the.old.one"


async def test_a_provider_that_is_away_or_another_one_is_told_in_one_line(
    plane: RunningService, provider: OidcProvider, bare_context: Path
) -> None:
    for fault, code, said in (
        ({"away": True}, 5, "answers 503"), ({"away": False, "redirect": True}, 1, "answers 302"),
        ({"redirect": False, "issuer_said": "https://x.example.org"}, 1, "says that it is 'https://x.example.org'"),
    ):  # fmt: skip
        for name, value in fault.items():
            setattr(provider, name, value)
        async with started(bare_context) as process:
            out, err = (text.decode() for text in await process.communicate())
        assert (process.returncode, out, err.count("\n")) == (code, "", 1), err
        assert said in err
