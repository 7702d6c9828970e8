"""metalctl as a program, against tenancy as it runs."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from metal_kit.identity import client_id
from metal_kit.runtime import RunningService
from metal_tenancy.bootstrap import operator_token
from metal_tenancy.service import SPEC, Settings

NewContext = Callable[..., Path]


@dataclass
class Tenancy:
    """The running service, its database, and an operator's token."""

    running: RunningService
    url: str
    secret: str


@pytest.fixture
async def tenancy(
    start_service: Callable[..., Awaitable[RunningService]],
    new_database: Callable[..., Awaitable[str]],
    tmp_path: Path,
) -> Tenancy:
    key = tmp_path / "tokens.pem"
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    key.write_bytes(Ed25519PrivateKey.generate().private_bytes(*pem))
    url = await new_database("tenancy", "metal_tenancy")
    running = await start_service(SPEC, database_url=url, token_key=key)
    settings = Settings(database_url=url, token_key=key)
    secret = await operator_token(settings, user="root", lifetime=timedelta(hours=1), description="test")
    return Tenancy(running, url, secret)


@pytest.fixture
def new_context(new_identity: Any, tmp_path: Path) -> NewContext:
    """`new_context(endpoint, token, **changes)` writes a context file for that address; gives its path."""

    def write(endpoint: str, token: str = "t", **changes: object) -> Path:
        mine = new_identity(client_id("tester"))
        content = {
            "name": "test", "endpoints": {"tenancy": endpoint}, "token": token,
            "ca": str(mine.ca), "cert": str(mine.cert), "key": str(mine.key),
        }  # fmt: skip
        path = tmp_path / f"context-{os.urandom(4).hex()}.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(content | changes))
        return path

    return write
