"""Many simulated Redfish BMCs in one process: each has an address or a port, a certificate and a machine of its own."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

from metal_sim.redfish.endpoint import SimulatedRedfish

_NAMESPACE = uuid.UUID("5d5e1f36-6f2c-4b0e-9a55-0242ac120077")
_AT_ONCE = 64


class RedfishFarm:
    """`count` BMCs; `options` are those of `SimulatedRedfish`. Their UUIDs are the same in every run.

    With a `port` each BMC has an address of its own, counted up from `first`; without, all have that address and each
    a free port.
    """

    def __init__(self, count: int, *, first: str = "127.0.0.1", port: int = 0, **options: Any) -> None:
        self._first, self._port = ip_address(first), port
        self.bmcs = [SimulatedRedfish(str(uuid.uuid5(_NAMESPACE, str(number))), **options) for number in range(count)]

    def __len__(self) -> int:
        return len(self.bmcs)

    def __iter__(self) -> Iterator[SimulatedRedfish]:
        return iter(self.bmcs)

    @property
    def open_sessions(self) -> int:
        """How many sessions are open on all of them."""
        return sum(len(bmc.sessions) for bmc in self.bmcs)

    async def start(self) -> None:
        """Listen. Raises OSError when an address or port is taken; nothing listens then."""
        try:
            for number, bmc in enumerate(self.bmcs):
                await bmc.start(str(self._first + (number if self._port else 0)), self._port)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Fall silent, some at a time."""
        for start in range(0, len(self.bmcs), _AT_ONCE):
            await asyncio.gather(*(bmc.stop() for bmc in self.bmcs[start : start + _AT_ONCE]))
