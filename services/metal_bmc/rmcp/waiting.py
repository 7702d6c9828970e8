"""Waiting for a datagram with a limit: one timer and one future, where `asyncio.timeout` costs more than a poll may."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from metal_bmc.rmcp.failures import NoAnswer

_T = TypeVar("_T")


async def within(future: asyncio.Future[_T], seconds: float) -> _T:
    """What the future brings. Raises NoAnswer after `seconds`."""
    timer = future.get_loop().call_later(max(0.0, seconds), _expire, future)
    try:
        return await future
    finally:
        timer.cancel()


def _expire(future: asyncio.Future[_T]) -> None:
    if not future.done():
        future.set_exception(NoAnswer("the BMC does not answer"))
