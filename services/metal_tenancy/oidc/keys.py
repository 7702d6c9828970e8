"""The provider's keys: fetched when they are needed, kept for a while, and asked for anew when an unknown one is named.

Providers change keys without a word (OpenID Connect Core 1.0, section 10.1.1), so an unknown key id is a reason to look
again; strangers can name unknown ones at will, so it is one every half a minute at most. While the provider is away the
known keys are good for a day.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from joserfc import jwk
from joserfc.errors import JoseError
from joserfc.jwk import OctKey
from metal_kit.errors import Unavailable
from metal_kit.logs import get_logger

from metal_tenancy.oidc.id_token import Header, Key, usable
from metal_tenancy.oidc.provider import check_url, discovery_url

log = get_logger(__name__)

# Seconds.
FRESH = 3600.0
STALE = 24 * 3600.0
EVERY = 30.0
MOST_KEYS = 100

Fetch = Callable[[str], Awaitable[Mapping[str, Any]]]


class ProviderError(Exception):
    """The provider does not answer, or not as the specification says."""


@dataclass(frozen=True, slots=True)
class _Known:
    keys: tuple[tuple[str, Key], ...]
    fetched: float


class ProviderKeys:
    """Keys of one issuer. `fetch` gets a JSON object from a URL, or raises ProviderError."""

    def __init__(self, issuer: str, fetch: Fetch, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._issuer = issuer
        self._fetch = fetch
        self._monotonic = monotonic
        self._known: _Known | None = None
        self._tried = float("-inf")
        self._lock = asyncio.Lock()

    async def meant_by(self, header: Header) -> list[Key]:
        """Keys that the header can mean: those of its id, or the only one of its kind when it names none.

        Raises Unavailable when no key is known that is not too old.
        """
        found = self._search(header)
        if not found or self._age() > FRESH:
            await self._refresh(header)
            found = self._search(header)
        if self._age() > STALE:
            raise Unavailable(
                "PROVIDER_UNREACHABLE",
                "the identity provider cannot be asked for its keys at the moment",
                retry_after=timedelta(seconds=max(1.0, self._tried + EVERY - self._monotonic())),
            )
        return found

    def _search(self, header: Header) -> list[Key]:
        known = self._known.keys if self._known is not None else ()
        fitting = [(key_id, key) for key_id, key in known if key.key_type == header.key_type]
        if header.key_id:
            return [key for key_id, key in fitting if key_id == header.key_id]
        return [key for _, key in fitting] if len(fitting) == 1 else []

    def _age(self) -> float:
        return self._monotonic() - self._known.fetched if self._known is not None else float("inf")

    async def _refresh(self, header: Header) -> None:
        """Fetch the keys unless that was tried a moment ago; a failure leaves the known ones."""
        async with self._lock:
            # Another call may have waited for the same key.
            if self._monotonic() - self._tried < EVERY or (self._search(header) and self._age() <= FRESH):
                return
            self._tried = self._monotonic()
            try:
                self._known = _Known(await self._fetched(), self._tried)
            except ProviderError as error:
                log.warning("oidc.keys_not_fetched", issuer=self._issuer, error=str(error), age=self._age())

    async def _fetched(self) -> tuple[tuple[str, Key], ...]:
        document = await self._fetch(discovery_url(self._issuer))
        if document.get("issuer") != self._issuer:
            # Section 4.3: exactly the same, or somebody else's document is taken for it.
            raise ProviderError(f"its discovery document is of the issuer {str(document.get('issuer'))[:200]!r}")
        try:
            url = check_url(str(document.get("jwks_uri", "")))
        except ValueError as error:
            raise ProviderError(f"jwks_uri: {error}") from None
        described = (await self._fetch(url)).get("keys")
        if not isinstance(described, list):
            raise ProviderError("its key set has no keys")
        keys = tuple(read_keys(described[:MOST_KEYS]))
        if not keys:
            raise ProviderError("its key set has no key that signatures can be verified with")
        return keys


def read_keys(described: list[Any]) -> list[tuple[str, Key]]:
    """Key ids and keys of a JWK set (RFC 7517, section 5: what is not understood is passed over)."""
    keys: list[tuple[str, Key]] = []
    for each in described:
        if not isinstance(each, dict) or each.get("kty") not in ("RSA", "EC", "OKP"):
            continue
        try:
            key = jwk.import_key(each)
            if not isinstance(key, OctKey) and usable(key, each):
                keys.append((str(each.get("kid", "")), key))
        except (JoseError, ValueError, TypeError, KeyError):
            continue
    return keys
