"""Real FRR for bench/switch_config.py: zebra and bgpd without a network, and Debian's frr-reload beside our delta.

Each daemon is a child of the benchmark in a network namespace without a name, and all files are in one directory, so
nothing is left when it ends. There are no links: no session is ever established, and none is waited for.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from metal_core.frr.delta import converge
from metal_core.frr.model import Configuration
from metal_core.vtysh import Vtysh

DAEMONS = ("zebra", "bgpd")
PROGRAMS = Path("/usr/lib/frr")
RELOAD = PROGRAMS / "frr-reload.py"
_START_SECONDS, _RELOAD_SECONDS = 30.0, 300.0


def missing() -> str:
    """Why FRR cannot be started here; empty when it can."""
    if shutil.which("vtysh") is None or not all((PROGRAMS / name).exists() for name in DAEMONS):
        return "FRR is not installed (`make peers`)"
    return "" if os.geteuid() == 0 else "FRR's daemons need root"


class Frr:
    """Daemons that run; `vtysh` is the command that talks to them, `client` the agent's way to them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.vtysh = ("vtysh", "--vty_socket", str(directory), "--config_dir", str(directory))
        self.client = Vtysh(self.vtysh, directory)

    async def boot(self, wanted: Configuration) -> None:
        """Have FRR take a whole configuration, however long it needs for that."""
        text = self.directory / "boot.conf"
        text.write_text(wanted.text())
        await run(*self.vtysh, "-f", str(text), limit=_RELOAD_SECONDS)

    async def delta(self, wanted: Configuration, ports: Collection[str]) -> int:
        """Bring FRR to `wanted` as the agent does: read, compare, check, one batch. Gives the number of commands."""
        commands = converge(await self.client.running(), wanted, ports)
        if commands:
            await self.client.check(commands)
            await self.client.load(commands)
        return commands.count("\n")

    async def reload(self, wanted: Configuration) -> None:
        """Bring FRR to `wanted` by frr-reload, which writes nothing but the running configuration."""
        text = self.directory / "wanted.conf"
        text.write_text(wanted.text())
        where = str(self.directory)
        options = ["--vty_socket", where, "--confdir", where, "--rundir", where, "--bindir", "/usr/bin", "--stdout"]
        await run(str(RELOAD), "--reload", *options, str(text), limit=_RELOAD_SECONDS)


@asynccontextmanager
async def frr(directory: Path) -> AsyncIterator[Frr]:
    """Daemons without a configuration, until the end of the block."""
    made = _files(directory)
    processes: list[asyncio.subprocess.Process] = []
    try:
        for name in DAEMONS:
            command = ["unshare", "-n", str(PROGRAMS / name), "-F", "datacenter", "-P", "0"]
            command += ["--vty_socket", str(directory), "-z", str(directory / "zserv.api")]
            command += ["-f", str(directory / f"{name}.conf"), "-i", str(directory / f"{name}.pid")]
            quiet = asyncio.subprocess.DEVNULL
            processes.append(await asyncio.create_subprocess_exec(*command, stdin=quiet, stdout=quiet, stderr=quiet))
        async with asyncio.timeout(_START_SECONDS):
            # Nobody tells when a daemon answers.
            while not {*DAEMONS} <= {*(await run(*made.vtysh, "-c", "show daemons", demand=False)).split()}:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        yield made
    finally:
        await made.client.close()
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


def _files(directory: Path) -> Frr:
    """What the daemons and vtysh demand before they start, as their user may read it."""
    directory.mkdir()
    directory.chmod(0o755)
    for name in ("vtysh", *DAEMONS):
        (directory / f"{name}.conf").touch()
    for path in (directory, *directory.iterdir()):
        shutil.chown(path, "frr", "frr")
    return Frr(directory)


async def run(*command: str, demand: bool = True, limit: float = 30.0) -> str:
    """What a program says. Raises RuntimeError with it when the program fails, unless nobody demands that it works."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(limit):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if demand and process.returncode != 0:
        raise RuntimeError(f"{command[0]}: {said.decode(errors='replace')[-2000:]}")
    return said.decode(errors="replace")
