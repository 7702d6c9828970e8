"""Calls are repeated with pauses that are never shorter than what the plane has asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from metal_hammer import contact
from metal_hammer.client import plane_error
from metal_hammer.contact import Contact, Rules
from metal_kit.errors import ResourceExhausted, Unavailable


def in_place_of_sleep(monkeypatch: pytest.MonkeyPatch, sleep: Callable[[float], Awaitable[None]]) -> None:
    """For this one module: a sleep that does not sleep would spin every other task of the loop, for ever."""
    monkeypatch.setattr(contact, "asyncio", SimpleNamespace(sleep=sleep, get_running_loop=asyncio.get_running_loop))


async def test_an_installer_that_is_told_to_wait_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    in_place_of_sleep(monkeypatch, sleep)
    hardware: Any = SimpleNamespace(checkpoint=lambda: None)
    rules = Rules(retry_first=0.01, retry_most=0.1)
    answers = [
        ResourceExhausted("RATE_LIMITED", "too much", retry_after=timedelta(seconds=7)),
        Unavailable("DRAINING", "stopping"),
    ]

    async def call() -> str:
        if answers:
            raise plane_error(answers.pop(0))
        return "done"

    plane: Any = None
    assert await Contact(hardware, plane, rules).retry("report", call) == "done"
    told, own = slept
    assert 7 <= told <= 7 * 1.25
    assert own <= 0.1


async def test_a_plane_cannot_send_an_installer_away_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    in_place_of_sleep(monkeypatch, sleep)
    plane: Any = None
    await Contact(plane, plane, Rules()).pause(0, told=1e9)
    assert slept[0] <= 400
