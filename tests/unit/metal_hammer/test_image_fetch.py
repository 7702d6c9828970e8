from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from metal_hammer.failure import Code, StepFailed
from metal_hammer.image.fetch import Limits, Source, fetch

CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Limits(stall=10.0, total=60.0, attempts=4, backoff=0.01)

Serve = Callable[[Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    runners: list[web.AppRunner] = []

    async def start(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> str:
        application = web.Application()
        application.router.add_get("/image", handler)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}/image"

    yield start
    for runner in runners:
        await runner.cleanup()


async def whole(_: web.Request) -> web.Response:
    return web.Response(body=CONTENT)


async def failure(source: Source, directory: Path, limits: Limits = QUICK) -> StepFailed:
    with pytest.raises(StepFailed) as failed:
        await fetch(source, directory / "image", checkpoint=lambda: None, limits=limits)
    assert os.listdir(directory) == [], "something was left behind"
    return failed.value


async def test_an_image_with_the_right_hash_arrives(serve: Serve, tmp_path: Path) -> None:
    url = await serve(whole)
    await fetch(Source(url, SHA256, len(CONTENT)), tmp_path / "image", checkpoint=lambda: None)
    assert (tmp_path / "image").read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["image"]


async def test_an_image_with_another_hash_is_thrown_away(serve: Serve, tmp_path: Path) -> None:
    url = await serve(whole)
    failed = await failure(Source(url, "0" * 64), tmp_path)
    assert failed.code is Code.IMAGE_HASH_MISMATCH


async def test_until_the_hash_has_matched_the_image_has_no_name(serve: Serve, tmp_path: Path) -> None:
    seen: list[bool] = []
    url = await serve(whole)
    target = tmp_path / "image"
    await fetch(Source(url, SHA256), target, checkpoint=lambda: seen.append(target.exists()))
    assert seen
    assert not any(seen)


async def test_an_image_larger_than_announced_is_refused_before_it_is_stored(serve: Serve, tmp_path: Path) -> None:
    url = await serve(whole)
    failed = await failure(Source(url, SHA256, len(CONTENT) - 1), tmp_path)
    assert failed.code is Code.IMAGE_TOO_LARGE


async def test_a_server_that_does_not_say_how_much_it_sends_is_stopped_at_the_limit(
    serve: Serve, tmp_path: Path
) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        while True:
            await response.write(bytes(65536))
            sent += 65536

    failed = await failure(Source(await serve(endless), SHA256), tmp_path, Limits(max_bytes=1024 * 1024))
    assert failed.code is Code.IMAGE_TOO_LARGE
    assert sent < 64 * 1024 * 1024


def dropping(
    ranges: bool, *, always: bool = False, after: asyncio.Event | None = None
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Drops the connection after half, once `after` is set; `ranges`: honours range requests with an ETag."""
    asked: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers.get("Range", ""))
        start = 0
        if ranges and request.headers.get("Range") and request.headers.get("If-Range") == '"v1"':
            start = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        response = web.StreamResponse(status=206 if start else 200)
        response.headers["ETag"] = '"v1"'
        response.content_length = len(CONTENT) - start
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        await response.prepare(request)
        if len(asked) == 1 or always:
            await response.write(CONTENT[start : len(CONTENT) // 2])
            if after is not None:
                await after.wait()
            assert request.transport is not None
            request.transport.close()
        else:
            await response.write(CONTENT[start:])
        return response

    handler.asked = asked  # type: ignore[attr-defined]
    return handler


async def test_a_broken_connection_is_resumed_where_it_broke(serve: Serve, tmp_path: Path) -> None:
    taken = asyncio.Event()
    handler = dropping(ranges=True, after=taken)
    await fetch(Source(await serve(handler), SHA256), tmp_path / "image", checkpoint=taken.set, limits=QUICK)
    assert (tmp_path / "image").read_bytes() == CONTENT
    first, second = handler.asked  # type: ignore[attr-defined]
    assert first == ""
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= len(CONTENT) // 2


async def test_without_range_support_a_broken_connection_starts_over(serve: Serve, tmp_path: Path) -> None:
    url = await serve(dropping(ranges=False))
    await fetch(Source(url, SHA256), tmp_path / "image", checkpoint=lambda: None, limits=QUICK)
    assert (tmp_path / "image").read_bytes() == CONTENT


async def test_a_server_that_always_drops_is_given_up_visibly(serve: Serve, tmp_path: Path) -> None:
    url = await serve(dropping(ranges=False, always=True))
    failed = await failure(Source(url, SHA256, len(CONTENT)), tmp_path)
    assert failed.code is Code.IMAGE_TRUNCATED
    assert "4 attempts" in failed.detail


async def test_an_image_that_changes_between_two_attempts_is_not_glued_together(serve: Serve, tmp_path: Path) -> None:
    attempts = 0
    other = CONTENT[::-1]

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal attempts
        attempts += 1
        if attempts > 1:
            return web.Response(body=other, headers={"ETag": '"v2"'})
        response = web.StreamResponse(headers={"ETag": '"v1"'})
        response.content_length = len(CONTENT)
        await response.prepare(request)
        await response.write(CONTENT[:1000])
        assert request.transport is not None
        request.transport.close()
        return response

    digest = hashlib.sha256(other).hexdigest()
    await fetch(Source(await serve(handler), digest), tmp_path / "image", checkpoint=lambda: None, limits=QUICK)
    assert (tmp_path / "image").read_bytes() == other


async def test_a_server_that_stalls_is_left(serve: Serve, tmp_path: Path) -> None:
    async def stall(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(CONTENT)
        await response.prepare(request)
        await response.write(CONTENT[:1000])
        await asyncio.sleep(60)
        return response

    limits = Limits(stall=0.1, attempts=2, backoff=0.01)
    failed = await failure(Source(await serve(stall), SHA256), tmp_path, limits)
    assert failed.code is Code.IMAGE_TRUNCATED


async def test_a_slow_server_is_left_when_the_time_is_up(serve: Serve, tmp_path: Path) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(CONTENT)
        await response.prepare(request)
        for at in range(0, len(CONTENT), 100):
            await response.write(CONTENT[at : at + 100])
            await asyncio.sleep(0.02)
        return response

    failed = await failure(Source(await serve(drip), SHA256), tmp_path, Limits(total=0.3, stall=5.0))
    assert (failed.code, "not complete" in failed.detail) == (Code.IMAGE_UNREACHABLE, True)


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (403, 1), (500, 4), (503, 4)])
async def test_an_error_that_may_pass_is_tried_again_and_another_is_not(
    serve: Serve, tmp_path: Path, status: int, attempts: int
) -> None:
    asked = 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=status)

    failed = await failure(Source(await serve(handler), SHA256), tmp_path)
    assert (failed.code, asked) == (Code.IMAGE_UNREACHABLE, attempts)


async def test_a_server_that_is_not_there_is_named_as_unreachable(tmp_path: Path) -> None:
    failed = await failure(Source("http://127.0.0.1:1/image", SHA256), tmp_path)
    assert failed.code is Code.IMAGE_UNREACHABLE


async def test_what_the_server_says_of_encodings_does_not_change_what_is_hashed(serve: Serve, tmp_path: Path) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=CONTENT, headers={"Content-Encoding": "gzip"})

    await fetch(Source(await serve(handler), SHA256), tmp_path / "image", checkpoint=lambda: None, limits=QUICK)
    assert (tmp_path / "image").read_bytes() == CONTENT


class Stop(BaseException):
    """The machine stops."""


async def test_a_stop_in_the_middle_leaves_no_image(serve: Serve, tmp_path: Path) -> None:
    def checkpoint() -> None:
        raise Stop

    url = await serve(whole)
    with pytest.raises(Stop):
        await fetch(Source(url, SHA256), tmp_path / "image", checkpoint=checkpoint)
    assert os.listdir(tmp_path) == []
