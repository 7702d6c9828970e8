"""Certificates, keys and authorities are replaced on disk while everything runs: who takes up what, and when."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from metal_kit import identity
from metal_kit.bus import Bus
from metal_kit.ca import Authority
from metal_kit.errors import FailedPrecondition, Problem, Unauthenticated, Unavailable
from metal_kit.tls import Identity
from metal_lab.servers.nats import Nats, NatsTls


def _trust(directory: Path, *authorities: Authority) -> None:
    (directory / "ca.crt").write_bytes(b"".join(each.cert for each in authorities))


async def test_an_authority_is_replaced_step_by_step_and_nobody_is_cut_off(plane: Any, message: Any) -> None:
    directory: Path = plane.directory
    old, new = plane.authority, Authority.create("successor")
    before = plane.identity(identity.service_id("tester"))
    stub = plane.peers(before).stub(type(plane).stub_class, "echo")
    await stub.Unary(message())

    _trust(directory, old, new)  # first everybody trusts both
    await stub.Unary(message())
    new.issue("echo", identity.service_id("echo"), dns=["echo.metalplane"]).save(directory, "echo")  # then: a server
    await stub.Unary(message())
    fresh = plane.stub(identity.service_id("tester"), authority=new)  # and a client
    await fresh.Unary(message())
    await plane.peers(before).stub(type(plane).stub_class, "echo").Unary(message())

    _trust(directory, new)  # and at last nobody trusts the old one
    await fresh.Unary(message())
    with pytest.raises(Unavailable):
        await plane.peers(before).stub(type(plane).stub_class, "echo").Unary(message())
    new.issue("again", identity.service_id("tester")).save(before.cert.parent, before.cert.stem)
    await stub.Unary(message())
    assert {caller.label for caller in plane.servicer.callers} == {"service:tester"}


async def test_half_a_renewal_changes_nothing_on_either_side(plane: Any, message: Any) -> None:
    directory: Path = plane.directory
    mine = plane.identity(identity.service_id("tester"))
    stub = plane.peers(mine).stub(type(plane).stub_class, "echo")
    await stub.Unary(message())
    renewed = plane.authority.issue("renewed", identity.service_id("stranger"))
    server = plane.authority.issue("echo", identity.service_id("echo"), dns=["echo.metalplane"])
    mine.key.write_bytes(renewed.key)
    (directory / "echo.key").write_bytes(server.key)
    await stub.Unary(message())
    await plane.stub().Unary(message())  # a handshake of its own
    (directory / "echo.crt").write_bytes(server.cert)
    await plane.stub().Unary(message())
    mine.key.unlink()
    await stub.Unary(message())
    mine.key.write_bytes(renewed.key)
    mine.cert.write_bytes(renewed.cert)
    with pytest.raises(Problem) as caught:
        await stub.Unary(message())
    assert "stranger" not in caught.value.reason
    assert caught.value.reason == "NOT_ALLOWED", "from here on the new certificate speaks"


async def test_a_process_that_begins_with_files_that_do_not_fit_says_so(plane: Any, message: Any) -> None:
    mine = plane.identity(identity.service_id("tester"))
    mine.key.write_bytes(plane.authority.issue("x", identity.service_id("x")).key)
    with pytest.raises(FailedPrecondition, match="CERTIFICATE_UNUSABLE"):
        await plane.peers(mine).stub(type(plane).stub_class, "echo").Unary(message())


async def test_an_open_stream_ends_with_the_certificate_and_goes_on_with_the_next(
    plane: Any, message: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = plane.identity(identity.service_id("tester"), ttl=timedelta(hours=1))
    stub = plane.peers(mine).stub(type(plane).stub_class, "echo")
    stream = stub.Follow(message(count=5))
    await stream.read()
    plane.servicer.next.set()
    await stream.read()
    monkeypatch.setattr("metal_kit.tls._now", lambda: time.time() + 7200)
    plane.servicer.next.set()
    with pytest.raises(Unauthenticated, match="CERTIFICATE_EXPIRED"):
        await stream.read()
    plane.authority.issue("next", identity.service_id("tester")).save(mine.cert.parent, mine.cert.stem)
    assert (await stub.Follow(message(count=1)).read()).count == 0


async def test_the_bus_comes_back_with_the_files_that_are_there_then(
    server_directory: Path, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    """The authority is replaced meanwhile, so that neither the old certificate nor the old trust would do."""
    old, new = Authority.create("old"), Authority.create("new")
    files = {}
    for name in ("nats", "ipam"):
        cert, key = old.issue(name, identity.service_id(name), dns=[f"{name}.metalplane"]).save(tmp_path, name)
        old.save(tmp_path / name)
        files[name] = Identity(tmp_path / name / "ca.crt", cert, key)
    mine = files["nats"]
    server = Nats(server_directory / f"nats-{uuid4().hex[:8]}", tls=NatsTls(mine.ca, mine.cert, mine.key))
    await server.start()
    bus = await Bus.open(server.url, "ipam", tls=files["ipam"], tls_hostname="nats.metalplane")
    try:
        await bus.publish("metalplane.test.thing.changed", b"x", message_id="1")
        await server.stop()
        for name in ("nats", "ipam"):
            new.issue(name, identity.service_id(name), dns=[f"{name}.metalplane"]).save(tmp_path, name)
            _trust(tmp_path / name, new)
        await server.start()
        await eventually(lambda: bus.connected, what="the bus has connected with the renewed certificate")
        await bus.publish("metalplane.test.thing.changed", b"x", message_id="2")
    finally:
        await bus.close()
        await server.stop()
