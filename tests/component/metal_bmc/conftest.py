"""Simulated BMCs on real UDP ports, and the real driver processes."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from metal_bmc.drivers.interface import Target
from metal_bmc.drivers.pool import WorkerPool
from metal_bmc.drivers.pyghmi import PyghmiDriver
from metal_sim.bmc import SimulatedBmc

PASSWORD = "pw-Tr0ub4dor-do-leak"
NewBmc = Callable[..., Awaitable[SimulatedBmc]]


@pytest.fixture
async def new_bmc() -> AsyncIterator[NewBmc]:
    """Starts a simulated BMC at each call."""
    bmcs: list[SimulatedBmc] = []

    async def start(host: str = "127.0.0.1", port: int = 0, **options: Any) -> SimulatedBmc:
        bmc = SimulatedBmc(options.pop("machine", str(uuid.uuid4())), **{"password": PASSWORD, **options})
        await bmc.start(host, port)
        bmcs.append(bmc)
        return bmc

    yield start
    for bmc in bmcs:
        bmc.stop()


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    """Two driver processes."""
    workers = WorkerPool(size=2)
    yield workers
    await workers.close()


@pytest.fixture
def driver(pool: WorkerPool) -> PyghmiDriver:
    return PyghmiDriver(pool)


@pytest.fixture
def target() -> Callable[..., Target]:
    """How to log in to a simulated BMC."""

    def of(bmc: SimulatedBmc, *, user: str = "metal", password: str = PASSWORD) -> Target:
        return Target(bmc.address[0], bmc.address[1], user, password)

    return of
