"""The lab watches what it runs: a service that loses a worker is stopped and told, and so is a server that dies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from metal_kit.runtime import Background, Parts, RunningService, Runtime, ServiceSpec
from metal_kit.settings import ServiceSettings
from metal_lab.health import Health
from metal_lab.lab import end_of
from metal_lab.plane import end_of_service

Eventually = Callable[..., Awaitable[None]]


@pytest.fixture
async def failing(start_service: Any) -> tuple[RunningService, asyncio.Event]:
    """A real service, and the event at which its only worker falls over."""
    now = asyncio.Event()

    async def work() -> None:
        await now.wait()
        raise RuntimeError("a defect")

    async def compose(runtime: Runtime) -> Parts:
        return Parts(background=[Background("work", work)])

    return await start_service(ServiceSpec("ailing", ServiceSettings, "", compose)), now


async def test_a_service_that_loses_a_worker_is_stopped_and_told(
    failing: tuple[RunningService, asyncio.Event], eventually: Eventually
) -> None:
    service, now = failing
    told: list[int] = []
    health = Health(lambda: told.append(1))
    health.watch(service.name, end_of_service(service))
    assert health.failures == {}
    now.set()
    await eventually(lambda: health.failures)
    assert told == [1]
    assert "its task 'ailing work' has ended; the log says why" in health.failures["ailing"]
    host, port = service.address.rsplit(":", 1)
    with pytest.raises(OSError):  # noqa: PT011 - whichever the kernel says: nobody listens there any more
        await asyncio.open_connection(host, int(port))
    await health.stop()


async def test_a_service_that_is_stopped_with_the_lab_has_not_failed(
    failing: tuple[RunningService, asyncio.Event],
) -> None:
    service, _ = failing
    health = Health(lambda: pytest.fail("nothing has failed"))
    health.watch(service.name, end_of_service(service))
    health.expect_end()
    await service.stop()
    await health.stop()
    assert health.failures == {}


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_server_that_ends_is_told_with_its_status(redis_server: Any, eventually: Eventually, how: str) -> None:
    server = await redis_server()
    health = Health(lambda: None)
    health.watch("redis of leaf1", end_of(server))
    await getattr(server, how)()
    await eventually(lambda: health.failures)
    status = "signal 9" if how == "kill" else "status 0"
    assert health.failures["redis of leaf1"] == f"has ended with {status}; its log is in {server.directory}"
    await health.stop()
