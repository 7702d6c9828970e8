"""The connection to NATS: TLS with client certificates, refusals, and what a service does about them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from metal_kit.bus import STREAM, Bus, BusUnavailable
from metal_kit.ca import Authority
from metal_kit.identity import service_id
from metal_kit.tls import Identity
from metal_lab.servers import Nats, NatsTls

Eventually = Callable[..., Awaitable[None]]
SUBJECT = "metalplane.test.thing.changed"
SHORT = timedelta(milliseconds=300)

RESTRICTED = """
authorization {
  users = [
    { user: good, password: secret }
    { user: mute, password: secret, permissions: { publish: ["$JS.API.>", "_INBOX.>"], subscribe: ["_INBOX.>"] } }
  ]
}
"""


@pytest.fixture
async def secure(server_directory: Path, new_identity: Callable[..., Identity]) -> AsyncIterator[Nats]:
    """A NATS that wants a certificate of the plane's CA."""
    mine = new_identity(service_id("nats"), dns=["nats.metalplane"])
    server = Nats(server_directory / f"nats-{uuid4().hex[:8]}", tls=NatsTls(mine.ca, mine.cert, mine.key))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def restricted(server_directory: Path) -> AsyncIterator[Nats]:
    server = Nats(server_directory / f"nats-{uuid4().hex[:8]}", configuration=RESTRICTED)
    await server.start()
    yield server
    await server.stop()


def as_user(server: Nats, user: str, password: str = "secret") -> str:
    return server.url.replace("nats://", f"nats://{user}:{password}@")


async def test_a_certificate_of_the_plane_opens_the_bus(secure: Nats, new_identity: Callable[..., Identity]) -> None:
    mine = new_identity(service_id("ipam"))
    bus = await Bus.open(secure.url, "ipam", tls=mine, tls_hostname="nats.metalplane")
    try:
        assert bus.connected
        await bus.publish(SUBJECT, b"x", message_id="1")
        assert (await bus.jetstream.stream_info(STREAM)).state.messages == 1
    finally:
        await bus.close()


async def test_a_server_with_another_name_is_not_trusted(secure: Nats, new_identity: Callable[..., Identity]) -> None:
    mine = new_identity(service_id("ipam"))
    bus = await Bus.open(secure.url, "ipam", tls=mine, tls_hostname="other.metalplane", patience=SHORT)
    try:
        assert not bus.connected
    finally:
        await bus.close()


async def test_a_certificate_of_a_stranger_opens_nothing(
    secure: Nats, new_identity: Callable[..., Identity], tmp_path: Path
) -> None:
    trusted = new_identity(service_id("ipam"))
    cert, key = Authority.create("stranger").issue("x", service_id("ipam")).save(tmp_path / "stranger", "x")
    stranger = Identity(trusted.ca, cert, key)
    bus = await Bus.open(secure.url, "ipam", tls=stranger, tls_hostname="nats.metalplane", patience=SHORT)
    try:
        with pytest.raises(BusUnavailable):
            await bus.publish(SUBJECT, b"x", message_id="1")
    finally:
        await bus.close()


async def test_a_missing_permission_is_fatal(restricted: Nats) -> None:
    good = await Bus.open(as_user(restricted, "good"), "good")
    await good.publish(SUBJECT, b"x", message_id="1")
    bus = await Bus.open(as_user(restricted, "mute"), "mute")
    try:
        publishing = asyncio.ensure_future(bus.publish(SUBJECT, b"x", message_id="2"))
        async with asyncio.timeout(10):
            text = await asyncio.shield(bus.fatal)
        assert SUBJECT in text
        assert "secret" not in text
        with pytest.raises(BusUnavailable):
            await publishing
        assert not good.fatal.done()
    finally:
        await bus.close()
        await good.close()


async def test_a_wrong_password_is_fatal(restricted: Nats) -> None:
    bus = await Bus.open(as_user(restricted, "good", "wrong"), "good", patience=SHORT)
    try:
        async with asyncio.timeout(10):
            text = await asyncio.shield(bus.fatal)
        assert "wrong" not in text
    finally:
        await bus.close()


async def test_closing_a_bus_that_never_connected_ends_at_once(server_directory: Path) -> None:
    server = Nats(server_directory / f"nats-{uuid4().hex[:8]}")
    await server.start()
    await server.stop()
    bus = await Bus.open(server.url, "test", patience=timedelta(0))
    async with asyncio.timeout(3):
        await bus.close()
