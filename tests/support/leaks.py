"""Looks for secrets where none may be: as they are, and as base64, hexadecimal or URLs would have them.

A `Haystack` is what was found in one place, named so that a failure says where to look.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, quote_plus

import asyncpg
import nats
import prometheus_client
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.js.errors import NotFoundError

# Shorter ones would be found by chance.
SHORTEST = 8


@dataclass(frozen=True)
class Haystack:
    """Bytes, and where they are."""

    place: str
    content: bytes


@dataclass
class Secrets:
    """Everything that must not be found, by a name that may."""

    known: dict[str, bytes] = field(default_factory=dict)
    _count: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, *secrets: str | bytes) -> None:
        """Remember secrets. Raises ValueError for one that is too short to look for."""
        for secret in secrets:
            content = secret.encode() if isinstance(secret, str) else secret
            if len(content) < SHORTEST:
                raise ValueError(f"{name} has {len(content)} bytes; at least {SHORTEST} can be told from chance")
            self._count[name] = self._count.get(name, 0) + 1
            self.known[f"{name} {self._count[name]}"] = content

    def add_private_key(self, name: str, path: Path) -> None:
        """A key in a PEM file: its secret number, and a line of the file."""
        pem = path.read_bytes()
        key = serialization.load_pem_private_key(pem, password=None)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            raw = key.private_numbers().private_value.to_bytes(key.curve.key_size // 8, "big")
        else:
            assert isinstance(key, Ed25519PrivateKey)
            raw = key.private_bytes_raw()
        self.add(name, raw, max(pem.splitlines(), key=len))

    def found_in(self, haystacks: Iterable[Haystack]) -> list[tuple[str, str]]:
        """Each place with the name of a secret that is in it. The secret itself is not told: test logs are logs."""
        needles = {name: tuple(spellings(secret)) for name, secret in self.known.items()}
        return [
            (haystack.place, name)
            for haystack in haystacks
            for name, ways in needles.items()
            if any(way in haystack.content for way in ways)
        ]


def spellings(secret: bytes) -> set[bytes]:
    """A secret as it is, and as it looks within something that was encoded as a whole."""
    text = secret.decode("latin-1")
    found = {secret, secret.hex().encode(), secret.hex().upper().encode()}
    found |= {quote(secret, safe=safe).encode() for safe in ("", "/")} | {quote_plus(secret).encode()}
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for offset in range(3):
            # What surrounds it changes the characters at both ends.
            encoded = encode(b"\0" * offset + secret)
            end = len(encoded) - (4 if (offset + len(secret)) % 3 else 0)
            found.add(encoded[4 if offset else 0 : end])
    # As JSON and Python's repr have it.
    found.add(text.encode("unicode_escape"))
    return {each for each in found if len(each) >= SHORTEST}


def of_files(directory: Path, pattern: str) -> list[Haystack]:
    """All files below a directory whose names fit."""
    return [Haystack(f"file {path}", path.read_bytes()) for path in directory.rglob(pattern) if path.is_file()]


def of_metrics() -> list[Haystack]:
    """The metrics page of this process."""
    return [Haystack("metrics", prometheus_client.generate_latest())]


async def of_database(url: str) -> list[Haystack]:
    """Every value of every table of every schema that is ours."""
    connection = await asyncpg.connect(url)
    found = []
    try:
        tables = await connection.fetch(
            """SELECT table_schema, table_name FROM information_schema.tables
            WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema')"""
        )
        for schema, table in tables:
            for row in await connection.fetch(f'SELECT * FROM "{schema}"."{table}"'):
                found += [
                    Haystack(f"table {schema}.{table}.{column}", content)
                    for column, value in row.items()
                    for content in (value if isinstance(value, bytes) else str(value).encode(),)
                ]
    finally:
        await connection.close()
    return found


async def of_streams(url: str) -> list[Haystack]:
    """Every message of every stream of JetStream, with its headers."""
    client = await nats.connect(url)
    found = []
    try:
        manager = client.jetstream()
        for stream in await manager.streams_info():
            name = str(stream.config.name)
            for sequence in range(stream.state.first_seq, stream.state.last_seq + 1):
                try:
                    message = await manager.get_msg(name, sequence)
                except NotFoundError:
                    continue
                headers: Mapping[str, str] = message.headers or {}
                content = (message.data or b"") + repr(dict(headers)).encode()
                found.append(Haystack(f"stream {name}, subject {message.subject}", content))
    finally:
        await client.close()
    return found
