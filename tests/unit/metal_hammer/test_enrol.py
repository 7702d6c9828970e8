"""The exchange of the token for a certificate, over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from aiohttp import web
from metal_hammer.enrol import BootParameters, enrol
from metal_kit.ca import Authority
from metal_kit.identity import machine_id

MACHINE = "4c4c4544-0051-3510-8052-b4c04f4e3132"


@asynccontextmanager
async def boot(handler: Callable[[web.Request], object]) -> AsyncIterator[BootParameters]:
    """A boot service that answers for certificates as told; what a kernel command line says of it."""
    application = web.Application()
    application.router.add_post("/v1/certificate", handler)  # type: ignore[arg-type]
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield BootParameters(f"http://127.0.0.1:{runner.addresses[0][1]}", MACHINE, "token", "session")
    finally:
        await runner.cleanup()


def certificate(authority: Authority, csr: str) -> bytes:
    """The answer to a good request."""
    chain = authority.sign_request(csr.encode(), MACHINE, machine_id(MACHINE), timedelta(hours=1))
    answer = {"certificate": chain.decode(), "ca": authority.cert.decode(), "endpoint": "boot:1"}
    return json.dumps(answer).encode()


async def test_an_answer_that_arrives_in_pieces_is_read_to_its_end(tmp_path: Path) -> None:
    authority = Authority.create("test")

    async def in_pieces(request: web.Request) -> web.StreamResponse:
        whole = certificate(authority, (await request.json())["csr"])
        response = web.StreamResponse(headers={"Content-Length": str(len(whole))})
        await response.prepare(request)
        for at in range(0, len(whole), 100):
            await response.write(whole[at : at + 100])
            await asyncio.sleep(0)  # the reader's turn
        return response

    async with boot(in_pieces) as parameters:
        enrolment = await enrol(parameters, tmp_path / "identity")
    assert enrolment.endpoint == "boot:1"
    assert enrolment.ca.read_bytes() == authority.cert
