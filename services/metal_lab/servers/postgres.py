"""An embedded Postgres on loopback TCP.

Two uses: throw-away (`durable=False`: no fsync, nothing survives a power cut, twice as fast to start) and the lab
(`durable=True`: what was committed is on disk). Unix sockets are off, so that a deep state directory cannot exceed the
length limit of socket paths and no stale socket file is ever left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

from metal_lab.servers.binaries import postgres_bin
from metal_lab.servers.isolation import Isolation, choose_isolation
from metal_lab.servers.ports import LOOPBACK
from metal_lab.servers.process import ServerError, ServerProcess
from metal_lab.servers.server import PortServer

_INIT_LIMIT = timedelta(seconds=120)
_START_LIMIT = timedelta(seconds=60)

_COMMON = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "jit": "off",
}
_DURABLE = {"max_wal_size": "256MB"}
_THROW_AWAY = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "autovacuum": "off",
}


class Postgres(PortServer):
    """A Postgres server whose files are all in `directory`.

    Args:
        directory: created when missing; its `data` is the cluster. One server at a time.
        durable: fsync on or off.
        port: TCP port on 127.0.0.1; 0 chooses a free one at the first start and keeps it.
        password: of the superuser `postgres`; empty lets every local user in and is for throw-away data only.
        isolation: how to run when we are root; chosen by itself when None.
    """

    def __init__(
        self, directory: Path, *, durable: bool, port: int = 0, password: str = "", isolation: Isolation | None = None
    ) -> None:
        self.directory = directory
        super().__init__(port)
        self._durable = durable
        self._password = password
        self._isolation = isolation
        self._data = directory / "data"
        self._process = ServerProcess("postgres", directory, stop_signal=signal.SIGINT)

    @property
    def url(self) -> str:
        """URL of the maintenance database."""
        return self.database_url("postgres")

    def database_url(self, name: str) -> str:
        """URL of the database `name`, which need not exist."""
        secret = f":{quote(self._password, safe='')}" if self._password else ""
        return f"postgresql://postgres{secret}@{LOOPBACK}:{self.port}/{quote(name, safe='')}"

    async def start(self) -> None:
        """Create the cluster if there is none, start the server and wait until it takes connections.

        Raises:
            ServerError: no programs, directory in use, or the server did not start; carries the log's end.
        """
        isolation = self._isolation = self._isolation or await choose_isolation()
        programs = isolation.reachable(postgres_bin())
        self.directory.mkdir(parents=True, exist_ok=True)
        isolation.own(self.directory)
        await self._process.clear_left_over()
        if not (self._data / "PG_VERSION").exists():
            await self._create_cluster(programs, isolation)
        self._drop_stale_lock()
        await self._start_on_a_port(lambda: self._start_once(programs, isolation))

    async def _start_once(self, programs: Path, isolation: Isolation) -> None:
        settings = _COMMON | (_DURABLE if self._durable else _THROW_AWAY)
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        await self._process.start(
            [str(programs / "postgres"), "-D", str(self._data), "-p", str(self.port), *options],
            ready=self._is_ready,
            limit=_START_LIMIT,
            prefix=isolation.prefix,
            uid=isolation.uid,
            gid=isolation.gid,
        )

    async def _is_ready(self) -> bool:
        # The eighth line of the lock file is the server's own word for its state; asking it costs no connection.
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready"

    async def _create_cluster(self, programs: Path, isolation: Isolation) -> None:
        # Into a directory of another name first: a cluster that was cut off half-way must not look like a whole one.
        unfinished = self.directory / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        command = [str(programs / "initdb"), "-D", str(unfinished), "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8"]
        command += [] if self._durable else ["--no-sync"]
        secret = self.directory / "password.new"
        if self._password:
            secret.touch(mode=0o600)
            secret.write_text(self._password + "\n")
            if isolation.uid:
                os.chown(secret, isolation.uid, isolation.gid)
            command += ["-A", "scram-sha-256", f"--pwfile={secret}"]
        else:
            command += ["-A", "trust"]
        try:
            await _run(command, isolation)
        finally:
            secret.unlink(missing_ok=True)
        unfinished.rename(self._data)

    def _drop_stale_lock(self) -> None:
        """Remove the lock file of a server that is gone, when its pid now belongs to another program.

        Postgres removes it itself unless the pid is alive, and after a reboot of the host it can be anybody's.
        """
        lock = self._data / "postmaster.pid"
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(lock.read_text().splitlines()[0])
            program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
            if not program.endswith(b"postgres"):
                lock.unlink()


async def _run(command: list[str], isolation: Isolation) -> None:
    launch = Path(__file__).with_name("launch.py")
    words = [str(int(signal.SIGKILL)), str(os.getpid()), str(isolation.uid), str(isolation.gid)]
    process = await asyncio.create_subprocess_exec(
        *isolation.prefix,
        *(sys.executable, "-I", "-S", str(launch), *words, *command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_INIT_LIMIT.total_seconds()):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise ServerError(f"{command[0]} did not end within {_INIT_LIMIT.total_seconds():g} s") from None
    if process.returncode != 0:
        raise ServerError(f"{command[0]} failed with status {process.returncode}:\n{output.decode(errors='replace')}")
