"""What the embedded servers have in common: a process of their own, and a port that may be taken from under them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from metal_lab.servers.ports import free_port
from metal_lab.servers.process import ServerError, ServerProcess

_PORT_ATTEMPTS = 3
_TAKEN = "address already in use"


class Server:
    """One server process."""

    _process: ServerProcess

    @property
    def pid(self) -> int:
        """Pid of the running server."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the server runs."""
        return self._process.running

    async def stop(self) -> None:
        """Orderly shutdown: clients are ended; what Postgres committed and NATS stored is kept, Redis saves nothing."""
        await self._process.stop()

    async def kill(self) -> None:
        """End the server as a crash would; Postgres and NATS recover at the next start."""
        await self._process.kill()

    async def wait(self) -> int:
        """Wait until the server ends; its exit status."""
        return await self._process.wait()


class PortServer(Server):
    """One that listens on a TCP port of loopback; port 0 chooses a free one at the first start and keeps it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._choose_port = port == 0

    async def _start_on_a_port(self, start: Callable[[], Awaitable[None]]) -> None:
        """Call `start`, which listens on `self.port`; again on another one when that was taken and any will do.

        Raises ServerError with the log's end.
        """
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            if self._choose_port and (self.port == 0 or attempt > 1):
                self.port = free_port()
            try:
                await start()
            except ServerError:
                taken = _TAKEN in self._process.log_tail().lower()
                if not (taken and self._choose_port) or attempt == _PORT_ATTEMPTS:
                    raise
            else:
                return
