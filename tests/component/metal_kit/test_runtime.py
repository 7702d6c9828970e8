"""Services from start to end: what stops a start, what a drain does, what the process says when it cannot run."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from metal_kit import identity
from metal_kit.ca import Authority
from metal_kit.client import Peers
from metal_kit.errors import Unavailable
from metal_kit.runtime import Background, Parts, RunningService, Runtime, Servicer, ServiceSpec, StartError, start
from metal_kit.settings import ServiceSettings
from metal_kit.tls import Identity


class EchoSettings(ServiceSettings):
    """The echo service changes things: without a database its audit log is kept by inventory, which is not there."""

    partition: str = "mini"
    peers: Any = {"inventory": "127.0.0.1:1"}


StartEcho = Callable[..., Awaitable[RunningService]]


@pytest.fixture
def certificates(authority: Authority, tmp_path: Path) -> dict[str, str]:
    """TLS settings of a service called `echo`, which is also allowed to call itself as `tester`."""
    authority.save(tmp_path, "ca")
    names = [f"{name}.metalplane" for name in ("echo", "tenancy")]
    cert, key = authority.issue("echo", identity.service_id("tester"), dns=names).save(tmp_path, "echo")
    return {"tls_ca": str(tmp_path / "ca.crt"), "tls_cert": str(cert), "tls_key": str(key)}


@pytest.fixture
async def start_echo(certificates: dict[str, str], echo: Any) -> AsyncIterator[StartEcho]:
    running: list[RunningService] = []

    async def begin(
        *, package: str = "", background: list[Background] | None = None, impl: Any = None, **settings: Any
    ) -> RunningService:
        async def compose(rt: Runtime) -> Parts:
            servicer = Servicer(echo.add, impl or echo.servicer(rt.stopping), echo.full_name)
            return Parts(servicers=[servicer], background=list(background or []))

        spec = ServiceSpec("echo", EchoSettings, package, compose)
        service = await start(spec, EchoSettings(**{"drain_seconds": 10.0} | certificates | settings))
        running.append(service)
        return service

    yield begin
    for service in running:
        await service.stop(0)


@pytest.fixture
async def call_echo(certificates: dict[str, str], echo: Any) -> AsyncIterator[Callable[[RunningService], Any]]:
    opened: list[Peers] = []

    def stub(service: RunningService) -> Any:
        files = Identity(certificates["tls_ca"], certificates["tls_cert"], certificates["tls_key"])
        opened.append(Peers({"echo": service.address}, files))
        return opened[-1].stub(echo.stub, "echo")

    yield stub
    for peers in opened:
        await peers.close()


async def test_a_stop_ends_watch_streams_at_once_and_lets_calls_finish(
    start_echo: StartEcho, call_echo: Any, message: Any
) -> None:
    service = await start_echo()
    stub = call_echo(service)
    stream = aiter(stub.Down(message(text="watch")))
    await anext(stream)
    running = asyncio.create_task(stub.Unary(message(text="second", count=3)))
    await anext(aiter(stub.Down(message(count=1))))
    started = time.monotonic()
    await service.stop()
    assert time.monotonic() - started < 5
    assert (await running).count == 3
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    with pytest.raises(Unavailable):
        await stub.Unary(message())


async def test_background_work_that_ends_is_reported(start_echo: StartEcho) -> None:
    async def dies() -> None:
        raise LookupError("gone")

    service = await start_echo(background=[Background("fragile", dies)])
    assert await asyncio.wait_for(service.failed, 5) == "echo fragile"


async def test_background_work_that_does_not_listen_is_cancelled(start_echo: StartEcho) -> None:
    ended: list[str] = []

    async def deaf() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("deaf")

    service = await start_echo(background=[Background("deaf", deaf)])
    started = time.monotonic()
    await service.stop()
    assert ended == ["deaf"]
    assert time.monotonic() - started < 5


async def test_a_taken_address_is_one_clear_line(start_echo: StartEcho) -> None:
    service = await start_echo()
    with pytest.raises(StartError, match="the address is in use") as caught:
        await start_echo(listen=service.address)
    assert caught.value.code == os.EX_UNAVAILABLE


async def test_processes_that_share_a_port_on_purpose_share_its_connections(
    start_echo: StartEcho, call_echo: Any, message: Any, echo: Any
) -> None:
    one, other = echo.servicer(asyncio.Event()), echo.servicer(asyncio.Event())
    service = await start_echo(share_port=True, impl=one)
    await start_echo(share_port=True, impl=other, listen=service.address)
    async with asyncio.timeout(30):
        while not (one.callers and other.callers):
            await call_echo(service).Unary(message())
    with pytest.raises(StartError, match="the address is in use"):
        await start_echo(listen=service.address)


async def test_a_service_that_changes_things_does_not_start_without_an_audit_log(start_echo: StartEcho) -> None:
    with pytest.raises(StartError, match="echo has no audit log"):
        await start_echo(peers={})
    with pytest.raises(StartError, match="echo has no audit log"):
        await start_echo(partition="")


async def test_a_missing_certificate_file_is_named(start_echo: StartEcho) -> None:
    with pytest.raises(StartError, match=r"/nowhere/x\.crt"):
        await start_echo(tls_cert="/nowhere/x.crt")
    with pytest.raises(StartError, match="METALPLANE_TLS_KEY"):
        await start_echo(tls_key="")


async def test_an_unreachable_database_is_one_clear_line_without_its_password(start_echo: StartEcho) -> None:
    with pytest.raises(StartError, match=r"Postgres at 127\.0\.0\.1:1/x") as caught:
        await start_echo(package="metal_kit", database_url="postgresql://u:hunter2@127.0.0.1:1/x")
    assert caught.value.code == os.EX_UNAVAILABLE
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_schema_newer_than_the_code_is_refused(start_echo: StartEcho, database_url: str) -> None:
    service = await start_echo(package="metal_tenancy", database_url=database_url)
    await service.stop()
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            "INSERT INTO echo.schema_version (component, number, name, checksum) "
            "VALUES ('metal_tenancy', 9999, 'later', '')"
        )
    finally:
        await connection.close()
    with pytest.raises(StartError, match="which this release does not know"):
        await start_echo(package="metal_tenancy", database_url=database_url)


async def test_a_service_with_database_and_bus_starts_and_stops(
    start_echo: StartEcho, call_echo: Any, message: Any, database_url: str, nats_url: str
) -> None:
    service = await start_echo(package="metal_tenancy", database_url=database_url, nats_url=nats_url)
    assert (await call_echo(service).Unary(message(count=2))).count == 2
    started = time.monotonic()
    await service.stop()
    assert time.monotonic() - started < 5
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("echo ")]


async def _run_process(tmp_path: Path, environment: dict[str, str], *, then: Callable[[Any], Awaitable[None]]) -> Any:
    script = tmp_path / "service.py"
    script.write_text(
        textwrap.dedent(
            """
            from metal_kit.runtime import Parts, ServiceSpec, main
            from metal_kit.settings import ServiceSettings

            async def compose(rt):
                return Parts()

            main(ServiceSpec("empty", ServiceSettings, "", compose))
            """
        )
    )
    process: Any = await asyncio.create_subprocess_exec(
        sys.executable, str(script), stderr=asyncio.subprocess.PIPE, env=dict(os.environ) | environment
    )
    try:
        async with asyncio.timeout(60):
            await then(process)
            errors = (await process.stderr.read()).decode()
            return await process.wait(), errors
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_process_drains_on_sigterm_and_exits_cleanly(tmp_path: Path, certificates: dict[str, str]) -> None:
    async def terminate(process: Any) -> None:
        while b"service.started" not in await process.stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)

    environment = {f"METALPLANE_{name.upper()}": value for name, value in certificates.items()}
    code, errors = await _run_process(tmp_path, environment, then=terminate)
    assert code == 0
    assert "service.stopped" in errors


async def test_wrong_settings_end_the_process_with_the_names_of_the_settings(tmp_path: Path) -> None:
    async def nothing(process: Any) -> None: ...

    environment = {"METALPLANE_LISTEN": "nowhere", "METALPLANE_DRAIN_SECONDS": "hunter2"}
    code, errors = await _run_process(tmp_path, environment, then=nothing)
    assert code == os.EX_CONFIG
    assert "METALPLANE_LISTEN" in errors
    assert "METALPLANE_DRAIN_SECONDS" in errors
    assert "hunter2" not in errors
    assert len(errors.strip().splitlines()) == 1
