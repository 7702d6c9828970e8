"""One HTTP request to a BMC: TLS with a pinned certificate, a deadline, a limit of size, no detours."""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import aiohttp

from metal_bmc import address
from metal_bmc.redfish.failures import BadAnswer, ConnectionLost, NoAnswer, WrongCertificate

MOST_BYTES = 1 << 20
"""Of an answer's body. The largest documents of real BMCs, pages of a log, have some hundred kilobytes."""
_CONNECT_SECONDS = 5.0
_COURTESY_SECONDS = 1.0
_CONNECTIONS = 2048
_CHUNK = 64 * 1024
_FINGERPRINT_BYTES = 32


class Pin(aiohttp.Fingerprint):
    """The certificate that a BMC has to show, by its SHA-256; what it shows first, when `expected` is empty.

    BMCs sign their own certificates, so there is no authority to ask. Checked before the first byte is sent.
    """

    def __init__(self, expected: bytes = b"") -> None:
        """Raises ValueError when `expected` has another length than SHA-256."""
        if expected and len(expected) != _FINGERPRINT_BYTES:
            raise ValueError("a SHA-256 fingerprint has 32 bytes")
        super().__init__(expected or bytes(_FINGERPRINT_BYTES))
        self.seen = expected

    def check(self, transport: asyncio.Transport) -> None:
        """Raise ServerFingerprintMismatch for another certificate."""
        tls = transport.get_extra_info("ssl_object")
        shown = hashlib.sha256(tls.getpeercert(binary_form=True) or b"").digest() if tls is not None else b""
        if not self.seen:
            self.seen = shown
        if shown != self.seen:
            raise aiohttp.ServerFingerprintMismatch(self.seen, shown, "", 0)


@dataclass(frozen=True, slots=True)
class Place:
    """Where to ask. `pin` belongs to this BMC alone."""

    host: str
    port: int
    pin: Pin


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. Headers by lower-case name."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class Wire:
    """The connections to all BMCs. Use it in one event loop."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def send(
        self,
        place: Place,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: Mapping[str, object] | None = None,
        give_up: float,
        headers_matter: bool = False,
    ) -> Reply:
        """Ask once. `give_up` is on the event loop's clock. Raises RedfishFailure.

        With `headers_matter` the headers of a success come back whatever is wrong with its body.
        """
        with _told():
            async with asyncio.timeout_at(give_up), self._request(place, method, path, headers, body) as response:
                if headers_matter and 200 <= response.status < 300:
                    return _reply(response, await _courtesy(response))
                return _reply(response, await _limited(response))

    @asynccontextmanager
    async def stream(
        self, place: Place, path: str, *, headers: Mapping[str, str], give_up: float, silence: float
    ) -> AsyncIterator[Reply | AsyncIterator[bytes]]:
        """An event stream piece by piece, or the reply of a BMC that does not give one. Raises RedfishFailure.

        It begins by `give_up`, and ends with NoAnswer after `silence` seconds without a byte.
        """
        with _told():
            async with asyncio.timeout_at(give_up):
                events = {**headers, "Accept": "text/event-stream"}
                response = await self._request(place, "GET", path, events, None)
            try:
                if response.status == 200 and response.content_type == "text/event-stream":
                    yield _pieces(response, silence)
                else:
                    async with asyncio.timeout_at(give_up):
                        yield _reply(response, await _limited(response))
            finally:
                response.close()

    async def close(self) -> None:
        """Close all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _request(
        self, place: Place, method: str, path: str, headers: Mapping[str, str], body: Mapping[str, object] | None
    ) -> aiohttp.client._RequestContextManager:
        if self._session is None:
            self._session = _session()
        url = f"https://{address.show(place.host, place.port)}{path}"
        content = None if body is None else json.dumps(body).encode()
        typed = {**headers, "Content-Type": "application/json"} if body is not None else headers
        return self._session.request(method, url, headers=typed, data=content, ssl=place.pin, allow_redirects=False)


@contextmanager
def _told() -> Iterator[None]:
    """Tell what the library raises in our terms."""
    try:
        yield
    except TimeoutError:
        raise NoAnswer("the BMC does not answer") from None
    except aiohttp.ServerFingerprintMismatch:
        raise WrongCertificate("the BMC shows another certificate than the one that is known of it") from None
    except (aiohttp.ClientSSLError, ssl.SSLError):
        raise BadAnswer("the BMC does not get through a TLS handshake (1.2 or newer)") from None
    except (aiohttp.ClientConnectionError, OSError):
        raise ConnectionLost("the BMC cannot be reached, or cut the connection") from None
    except aiohttp.ClientPayloadError:
        raise ConnectionLost("the BMC cut the connection within its answer") from None
    except (aiohttp.ClientError, ValueError):
        raise BadAnswer("the BMC does not answer in HTTP that makes sense") from None


def _reply(response: aiohttp.ClientResponse, body: bytes) -> Reply:
    return Reply(response.status, {name.lower(): value for name, value in response.headers.items()}, body)


async def _pieces(response: aiohttp.ClientResponse, silence: float) -> AsyncIterator[bytes]:
    with _told():
        while True:
            async with asyncio.timeout(silence):
                piece = await response.content.readany()
            if not piece:
                return
            yield piece


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        # Deadlines are the caller's; dead addresses are given up earlier.
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
        connector=aiohttp.TCPConnector(limit=_CONNECTIONS, limit_per_host=4),
        # What is compressed has no size until it is too late.
        headers={"Accept": "application/json", "Accept-Encoding": "identity", "OData-Version": "4.0"},
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def _courtesy(response: aiohttp.ClientResponse) -> bytes:
    """A body that nobody waits for long; empty for one that is slow, too long, or cut."""
    try:
        async with asyncio.timeout(_COURTESY_SECONDS):
            return await _limited(response)
    except (BadAnswer, aiohttp.ClientError, TimeoutError, OSError):
        response.close()
        return b""


async def _limited(response: aiohttp.ClientResponse) -> bytes:
    if (response.content_length or 0) > MOST_BYTES:
        response.close()
        raise BadAnswer(f"the BMC's answer has more than {MOST_BYTES} bytes")
    parts = bytearray()
    async for part in response.content.iter_chunked(_CHUNK):
        parts += part
        if len(parts) > MOST_BYTES:
            response.close()
            raise BadAnswer(f"the BMC's answer has more than {MOST_BYTES} bytes")
    return bytes(parts)
