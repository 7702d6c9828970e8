"""Getting JSON from the provider: over TLS that is verified, with a deadline, a limit of size, and no detours."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from typing import Any

import aiohttp
from metal_kit.guard import refuse_in_transaction

from metal_tenancy.oidc.keys import ProviderError

DEADLINE = 5.0
MOST_BYTES = 256 * 1024


class Fetcher:
    """One HTTP client. `ca` is a bundle (PEM) that the provider is verified with instead of the system's."""

    def __init__(self, ca: str = "") -> None:
        """Raises OSError or ssl.SSLError for a bundle that cannot be read."""
        self._context = ssl.create_default_context(cafile=ca or None)
        self._session: aiohttp.ClientSession | None = None

    async def get(self, url: str) -> Mapping[str, Any]:
        """The JSON object at a URL. Raises ProviderError."""
        refuse_in_transaction(url)
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=DEADLINE),
                connector=aiohttp.TCPConnector(ssl=self._context, limit=2),
                # What is compressed has no size until it is too late.
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                if response.status != 200:
                    raise ProviderError(f"{url} answers {response.status}")
                body = await _limited(response.content, url)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ProviderError(f"{url}: {error or type(error).__name__}") from error
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise ProviderError(f"{url} has no JSON object")
        return content

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


async def _limited(stream: aiohttp.StreamReader, url: str) -> bytes:
    parts = bytearray()
    async for part in stream.iter_chunked(16 * 1024):
        parts += part
        if len(parts) > MOST_BYTES:
            raise ProviderError(f"{url} has more than {MOST_BYTES} bytes")
    return bytes(parts)
