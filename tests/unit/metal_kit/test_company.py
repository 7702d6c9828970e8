"""Batches wait for as many as the last one had, and never for long."""

from __future__ import annotations

import asyncio

from metal_kit.company import Company

LONG, SHORT = 60.0, 0.001


async def written(company: Company, count: int) -> None:
    """A batch of so many comes, goes and is written."""
    for _ in range(count):
        company.arrived()
    await company.wait()
    company.left(count)
    company.done()


async def waits(company: Company) -> asyncio.Task[None]:
    """A batch that has begun to wait."""
    task = asyncio.create_task(company.wait())
    await asyncio.sleep(0)
    return task


async def test_who_comes_first_goes_at_once() -> None:
    company = Company(LONG)
    company.arrived()
    assert (await waits(company)).done()


async def test_who_is_always_alone_never_waits() -> None:
    company = Company(LONG)
    for _ in range(3):
        await written(company, 1)
    company.arrived()
    assert (await waits(company)).done()


async def test_the_next_batch_waits_for_as_many_as_the_last_one_had() -> None:
    company = Company(LONG)
    await written(company, 3)
    company.arrived()
    batch = await waits(company)
    company.arrived()
    await asyncio.sleep(0)
    assert not batch.done()
    company.arrived()
    await asyncio.wait_for(batch, 5)


async def test_it_does_not_wait_beyond_its_patience() -> None:
    company = Company(SHORT)
    await written(company, 3)
    company.arrived()
    await asyncio.wait_for(company.wait(), 5)


async def test_after_a_small_batch_a_small_one_is_enough() -> None:
    company = Company(SHORT)
    await written(company, 30)
    await written(company, 1)
    company.arrived()
    assert (await waits(company)).done()


async def test_a_wait_that_is_cancelled_leaves_nothing_behind() -> None:
    company = Company(LONG)
    await written(company, 2)
    batch = await waits(company)
    batch.cancel()
    await asyncio.wait([batch])
    await written(company, 2)
