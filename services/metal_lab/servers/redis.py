"""An embedded Redis on a Unix socket: the stand-in for the databases of one SONiC switch.

As on the switch: no TCP, 32 numbered databases (CONFIG_DB is 4, APPL_DB 0), keyspace notifications on, nothing saved by
Redis itself (the switch's configuration is saved by its own tools).
"""

from __future__ import annotations

import asyncio
import signal
from datetime import timedelta
from pathlib import Path

from metal_lab.servers.binaries import redis_server
from metal_lab.servers.process import ServerError, ServerProcess
from metal_lab.servers.server import Server

DATABASES = 32
_START_LIMIT = timedelta(seconds=30)
_SOCKET_PATH_LIMIT = 107  # sun_path, less its closing zero


class Redis(Server):
    """A Redis server whose files are all in `directory`; clients use `socket`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "redis.sock"
        self._process = ServerProcess("redis", directory, stop_signal=signal.SIGTERM)

    def url(self, database: int = 0) -> str:
        """URL of one of the numbered databases, 0 to 31."""
        return f"unix://{self.socket}?db={database}"

    async def start(self) -> None:
        """Start the server and wait until it answers. Raises ServerError with the log's end."""
        if len(str(self.socket).encode()) > _SOCKET_PATH_LIMIT:
            raise ServerError(
                f"{self.socket}: longer than the {_SOCKET_PATH_LIMIT} bytes of a socket's path; move it up"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        await self._process.clear_left_over()
        self.socket.unlink(missing_ok=True)
        command = [str(redis_server()), "--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"]
        command += ["--dir", str(self.directory), "--save", "", "--appendonly", "no"]
        command += ["--databases", str(DATABASES), "--notify-keyspace-events", "KEA", "--daemonize", "no"]
        await self._process.start(command, ready=self._is_ready, limit=_START_LIMIT)

    async def _is_ready(self) -> bool:
        try:
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_unix_connection(str(self.socket))
                try:
                    writer.write(b"PING\r\n")
                    return (await reader.readline()).startswith(b"+PONG")
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False
