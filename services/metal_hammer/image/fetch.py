"""Fetching an image: streamed over HTTP to a file on the target disk, checked before anyone may use it.

Memory need is one chunk, whatever the size of the image. A connection that breaks is resumed by a range request when
the server supports it and still offers the same entity. The file carries its final name only after the SHA-256 of
every byte has matched; until then nothing else knows it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import aiohttp

from metal_hammer.failure import Code, Step, StepFailed

CHUNK = 256 * 1024
"""Bytes read at a time."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one fetch. Sizes in bytes, times in seconds; `stall` is the longest wait for the next byte."""

    max_bytes: int = 64 * 1024**3
    total: float = 3600.0
    stall: float = 30.0
    attempts: int = 5
    backoff: float = 1.0


@dataclass(frozen=True, slots=True)
class Source:
    """Where an image is and what it must be. `size_bytes` 0 means that the size is not known beforehand."""

    url: str
    sha256: str
    size_bytes: int = 0


class _Retry(Exception):
    """The connection failed in a way that another attempt may mend."""


@dataclass(slots=True)
class _Transfer:
    """What is on disk so far, and the hash of it."""

    file: BinaryIO
    digest: hashlib._Hash
    received: int = 0
    etag: str = ""

    def restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.digest, self.received = hashlib.sha256(), 0


async def fetch(source: Source, into: Path, *, checkpoint: Callable[[], None], limits: Limits | None = None) -> None:
    """Fetch an image into the file `into`. Raises StepFailed; then neither `into` nor a part of it is left behind.

    `checkpoint` is called for every chunk.
    """
    limits = limits or Limits()
    part = into.with_name(into.name + ".part")
    try:
        async with asyncio.timeout(limits.total):
            await _fetch(source, part, checkpoint, limits)
        await asyncio.to_thread(os.replace, part, into)
    except TimeoutError:
        detail = f"not complete after {limits.total:.0f} s"
        raise StepFailed(Step.FETCH, Code.IMAGE_UNREACHABLE, detail) from None
    except OSError as error:
        raise StepFailed(Step.FETCH, Code.TARGET_IO, error.strerror or type(error).__name__) from error
    finally:
        part.unlink(missing_ok=True)


async def _fetch(source: Source, part: Path, checkpoint: Callable[[], None], limits: Limits) -> None:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=limits.stall)
    # auto_decompress would hash and store other bytes than the server's archive has.
    with part.open("wb") as file:
        transfer = _Transfer(file, hashlib.sha256())
        async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
            await _attempts(session, source, transfer, checkpoint, limits)
        await asyncio.to_thread(_sync, file)
    if transfer.digest.hexdigest() != source.sha256:
        detail = f"SHA-256 is {transfer.digest.hexdigest()}, expected {source.sha256}"
        raise StepFailed(Step.FETCH, Code.IMAGE_HASH_MISMATCH, detail)


async def _attempts(
    session: aiohttp.ClientSession,
    source: Source,
    transfer: _Transfer,
    checkpoint: Callable[[], None],
    limits: Limits,
) -> None:
    for attempt in range(1, limits.attempts + 1):
        try:
            await _one_attempt(session, source, transfer, checkpoint, limits)
        except (_Retry, aiohttp.ClientError, TimeoutError) as error:
            if attempt == limits.attempts:
                truncated = transfer.received > 0 or isinstance(error, aiohttp.ClientPayloadError)
                code = Code.IMAGE_TRUNCATED if truncated else Code.IMAGE_UNREACHABLE
                detail = f"{str(error) or type(error).__name__} after {transfer.received} bytes, {attempt} attempts"
                raise StepFailed(Step.FETCH, code, detail) from error
            await asyncio.sleep(random.uniform(0, limits.backoff * 2 ** (attempt - 1)))
        else:
            return


async def _one_attempt(
    session: aiohttp.ClientSession,
    source: Source,
    transfer: _Transfer,
    checkpoint: Callable[[], None],
    limits: Limits,
) -> None:
    headers = {"Accept-Encoding": "identity"}
    if transfer.received and transfer.etag:
        # Without If-Range a changed image would be glued to the half of the old one.
        headers |= {"Range": f"bytes={transfer.received}-", "If-Range": transfer.etag}
    async with session.get(source.url, headers=headers, max_redirects=3) as response:
        await asyncio.to_thread(_accept, response, transfer)
        expected = transfer.received + (response.content_length or 0)
        limit = source.size_bytes or limits.max_bytes
        if expected > limit:
            detail = f"the server offers {expected} bytes, allowed are {limit}"
            raise StepFailed(Step.FETCH, Code.IMAGE_TOO_LARGE, detail)
        async for chunk in response.content.iter_chunked(CHUNK):
            checkpoint()
            if transfer.received + len(chunk) > limit:
                raise StepFailed(Step.FETCH, Code.IMAGE_TOO_LARGE, f"more than the allowed {limit} bytes")
            await asyncio.to_thread(_store, transfer, chunk)
    if source.size_bytes and transfer.received < source.size_bytes:
        raise _Retry(f"{transfer.received} of {source.size_bytes} bytes")


def _accept(response: aiohttp.ClientResponse, transfer: _Transfer) -> None:
    """Start or continue a transfer from the response's status. Raises StepFailed for an answer that will not change."""
    if response.status == 206 and transfer.received:
        wanted = f"bytes {transfer.received}-"
        if not response.headers.get("Content-Range", "").startswith(wanted):
            transfer.restart()
            raise _Retry("the server answered with another range")
        return
    if response.status == 200:
        transfer.restart()
        etag = response.headers.get("ETag", "")
        transfer.etag = "" if etag.startswith("W/") else etag
        return
    if response.status in (408, 416, 425, 429) or response.status >= 500:
        if response.status == 416:
            transfer.restart()
        raise _Retry(f"HTTP status {response.status}")
    raise StepFailed(Step.FETCH, Code.IMAGE_UNREACHABLE, f"HTTP status {response.status}")


def _store(transfer: _Transfer, chunk: bytes) -> None:
    transfer.file.write(chunk)
    transfer.digest.update(chunk)
    transfer.received += len(chunk)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
