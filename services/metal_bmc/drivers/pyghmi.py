"""What is left to pyghmi: reading FRU, whose records nobody wants to parse twice.

Never imports pyghmi itself; that happens in the processes only (`operations`).
"""

from __future__ import annotations

from metal_bmc.drivers.errors import BmcBadAnswer
from metal_bmc.drivers.interface import Target
from metal_bmc.drivers.pool import WorkerPool


class PyghmiFru:
    """Implements `FruReader`. Every reading is a login of its own."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    async def close(self) -> None:
        """End the driver processes."""
        await self._pool.close()

    async def fru(self, target: Target, *, deadline: float) -> dict[str, str]:
        """See `FruReader`."""
        login = {"host": target.host, "port": target.port, "user": target.user, "password": target.password}
        answer = await self._pool.call("fru", login, {}, deadline=deadline)
        if not isinstance(answer, dict):
            raise BmcBadAnswer("the driver's answer has the wrong shape")
        return answer
