"""Which machine a BMC belongs to that nobody has registered: its GUID in the byte order in which it is known somewhere.

A BMC that is taken in under a UUID that no machine has makes a machine that does not exist, beside the real one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from metal_kit.db import Database
from metal_kit.errors import NotFound
from metalplane.inventory.v1.machine_pb2 import GetMachineRequest

from metal_bmc.drivers.interface import DeviceInfo
from metal_bmc.identity import readings
from metal_bmc.store import EndpointStore

if TYPE_CHECKING:
    from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceAsyncStub


class Whose:
    """Asks our own records first and inventory then; `machines` None: there is no inventory to ask."""

    def __init__(self, db: Database, machines: MachineServiceAsyncStub | None) -> None:
        self._db, self._machines = db, machines
        self._endpoints = EndpointStore()

    async def machine(self, info: DeviceInfo) -> str:
        """The machine's UUID; what the driver took it for when no reading of it is known.

        Raises Problem when inventory does not answer: then it is better found later than under a wrong name.
        """
        candidates = list(dict.fromkeys(readings(info.guid).values()))
        if not candidates:
            return info.machine
        async with self._db.connection() as connection:
            known = await self._endpoints.known(connection, candidates)
        if known:
            return known[0]
        for candidate in candidates:
            if self._machines is not None and await self._is_machine(candidate):
                return candidate
        return info.machine

    async def _is_machine(self, candidate: str) -> bool:
        assert self._machines is not None
        try:
            await self._machines.GetMachine(GetMachineRequest(id=candidate))
        except NotFound:
            return False
        return True
