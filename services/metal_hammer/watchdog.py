"""Feeding the hardware watchdog: an installer that hangs becomes a reset, and the next boot decides anew."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from metal_kit.logs import get_logger

log = get_logger(__name__)

DEVICE = Path("/dev/watchdog")
EVERY = 10.0
"""Seconds between two feedings; drivers reset after about a minute."""


async def feed(device: Path = DEVICE, *, every: float = EVERY) -> None:
    """Feed until cancelled. Left without the magic close (`V`), so the watchdog goes on counting: whoever ends this
    without a reset or a new kernel gets one. A machine without a watchdog is fine."""
    try:
        descriptor = await asyncio.to_thread(os.open, device, os.O_WRONLY)
    except OSError as error:
        log.info("watchdog.missing", error=error.strerror)
        return
    try:
        while True:
            await asyncio.to_thread(os.write, descriptor, b"\0")
            await asyncio.sleep(every)
    finally:
        os.close(descriptor)
