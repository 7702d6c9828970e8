"""A zebra and a bgpd of their own for one test: real FRR without interfaces, which touches nothing of the machine.

Each daemon lives in a network namespace without a name that goes with it, and all files are in one directory. There
are no VRFs in the kernel, so nothing is routed; what is configured, and what vtysh says of it, is FRR's.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

DAEMONS = ("zebra", "bgpd")
ALL_DAEMONS = (*DAEMONS, "staticd")
_PROGRAMS = Path("/usr/lib/frr")
REQUIRED = os.environ.get("METALPLANE_REQUIRE_PEERS") == "1"


def missing() -> str:
    """Why FRR cannot be started here; empty when it can."""
    if shutil.which("vtysh") is None or not all((_PROGRAMS / name).exists() for name in ALL_DAEMONS):
        return "FRR is not installed (`make peers`)"
    return "" if os.geteuid() == 0 else "FRR's daemons need root"


peer = pytest.mark.skipif(bool(missing()) and not REQUIRED, reason=missing() or "FRR is here")


class ScratchFrr:
    """The daemons; `vtysh` is the command that talks to them. `loopback` is an address of zebra's host, `profile` what
    they take for defaults."""

    def __init__(self, daemons: Sequence[str] = DAEMONS, *, loopback: str = "", profile: str = "datacenter") -> None:
        assert not missing(), f"METALPLANE_REQUIRE_PEERS is set: {missing()}"
        # Short, for the sockets, and not below pytest's own directory, which FRR's user may not enter.
        self.directory = Path(tempfile.mkdtemp(prefix="frr-"))
        self.directory.chmod(0o755)
        self._daemons, self._loopback, self._profile = tuple(daemons), loopback, profile
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        for name in ("vtysh", *daemons):
            (self.directory / f"{name}.conf").touch()
        for path in (self.directory, *self.directory.iterdir()):
            shutil.chown(path, "frr", "frr")

    @property
    def vtysh(self) -> list[str]:
        """The command."""
        where = str(self.directory)
        return ["vtysh", "--vty_socket", where, "--config_dir", where]

    async def start(self, *names: str) -> None:
        """Start the daemons, or only those named, with nothing configured, and wait until they can be talked to."""
        for name in names or self._daemons:
            where = self.directory
            command = [
                "unshare",
                "-n",
                *self._first(name),
                str(_PROGRAMS / name),
                "-F",
                self._profile,
                "-A",
                "127.0.0.1",
            ]
            command += ["--vty_socket", str(where), "-z", str(where / "zserv.api"), "-i", str(where / f"{name}.pid")]
            command += ["-f", str(where / f"{name}.conf")]
            self._processes[name] = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
            )
        async with asyncio.timeout(30):
            there: set[str] = set()
            while not set(names or self._daemons) <= there:
                await asyncio.sleep(0.05)
                there = set((await self.ask("show daemons")).split())

    def _first(self, name: str) -> list[str]:
        if name != "zebra" or not self._loopback:
            return []
        host = f"ip link set lo up && ip address add {self._loopback}/32 dev lo"
        return ["sh", "-ec", f'{host} && exec "$@"', "sh"]

    async def kill(self, name: str) -> None:
        """End a daemon as a crash does."""
        process = self._processes.pop(name)
        if process.returncode is None:
            process.kill()
        await process.wait()

    async def stop(self) -> None:
        """End all daemons and remove their files."""
        for name in list(self._processes):
            await self.kill(name)
        shutil.rmtree(self.directory, ignore_errors=True)

    async def ask(self, command: str) -> str:
        """What vtysh prints."""
        process = await asyncio.create_subprocess_exec(
            *self.vtysh, "-c", command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        return (await process.communicate())[0].decode()


@asynccontextmanager
async def scratch_frr(loopback: str) -> AsyncIterator[tuple[str, ...]]:
    """All daemons until the end of the block, as they come from their package, on a host with this address; how to call
    their vtysh."""
    frr = ScratchFrr(ALL_DAEMONS, loopback=loopback, profile="traditional")
    try:
        await frr.start()
        yield tuple(frr.vtysh)
    finally:
        await frr.stop()
