"""An embedded NATS server with JetStream on loopback.

JetStream's files are synced by the server's own interval, not per message: after a power cut the last events may be
missing, which the design allows (an event is a hint; consumers resync). One server, no cluster, no accounts.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from metal_lab.servers.binaries import nats_server
from metal_lab.servers.ports import LOOPBACK
from metal_lab.servers.process import ServerProcess
from metal_lab.servers.server import PortServer

_START_LIMIT = timedelta(seconds=30)
_USER = "metalplane"


@dataclass(frozen=True)
class NatsTls:
    """Paths of PEM files; every client must present a certificate of `ca`."""

    ca: Path
    certificate: Path
    key: Path


class Nats(PortServer):
    """A NATS server whose files are all in `directory`; port 0 chooses a free one at the first start and keeps it.

    `configuration` is text of a NATS configuration file, for users and their permissions; `password` that of the one
    user that there is otherwise. With neither, every local user gets in, which is for throw-away data only.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        tls: NatsTls | None = None,
        configuration: str = "",
        password: str = "",
    ) -> None:
        self.directory = directory
        super().__init__(port)
        self._tls = tls
        if password and not password.isalnum():
            raise ValueError("password: letters and digits only, since nats-py sends it as it stands in the URL")
        self._login = f"{_USER}:{password}@" if password else ""
        self._configuration = configuration
        if password and not configuration:
            self._configuration = f'authorization {{ user: {_USER}, password: "{password}" }}\n'
        self._process = ServerProcess("nats", directory, stop_signal=signal.SIGTERM)

    @property
    def url(self) -> str:
        """URL for clients."""
        return f"{'tls' if self._tls else 'nats'}://{self._login}{LOOPBACK}:{self.port}"

    async def start(self) -> None:
        """Start the server and wait until it greets clients. Raises ServerError with the log's end."""
        self.directory.mkdir(parents=True, exist_ok=True)
        await self._start_on_a_port(
            lambda: self._process.start(self._command(), ready=self._is_ready, limit=_START_LIMIT)
        )

    def _command(self) -> list[str]:
        command = [
            str(nats_server()),
            "-a",
            LOOPBACK,
            "-p",
            str(self.port),
            "-js",
            "-sd",
            str(self.directory / "store"),
        ]
        if self._configuration:
            path = self.directory / "nats.conf"
            path.touch(mode=0o600)
            path.write_text(self._configuration)
            command += ["-c", str(path)]
        if self._tls is not None:
            command += ["--tlsverify", f"--tlscacert={self._tls.ca}"]
            command += [f"--tlscert={self._tls.certificate}", f"--tlskey={self._tls.key}"]
        return command

    async def _is_ready(self) -> bool:
        # The greeting comes only after JetStream has recovered its streams; before that the port is closed.
        try:
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_connection(LOOPBACK, self.port)
                try:
                    return (await reader.readline()).startswith(b"INFO ")
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False
