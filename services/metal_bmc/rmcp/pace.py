"""How fast logins follow each other: each costs cryptography, and a fleet that comes back at once wants thousands."""

from __future__ import annotations

import asyncio

from metal_bmc.rmcp.failures import NoRoom


class LoginPace:
    """Lets `per_second` logins begin, a second's worth of them at once after a rest."""

    def __init__(self, per_second: float = 1000.0) -> None:
        self._step = 1.0 / per_second
        self._next = 0.0

    async def turn(self, give_up: float) -> None:
        """Wait for one's turn; first come, first served. Raises NoRoom when it would come after `give_up`."""
        now = asyncio.get_running_loop().time()
        at = max(self._next, now - 1.0)
        if at >= give_up:
            raise NoRoom("too many logins are waited for")
        self._next = at + self._step
        if at > now:
            await asyncio.sleep(at - now)
