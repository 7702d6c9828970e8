"""FRR through vtysh: check a text, read the running configuration, load a delta.

vtysh is another program and may be slow or hang, so each call has a limit and a killed process is waited for. Where FRR
is not installed `NoFrr` stands in: it says so, and everything that does not need FRR still works.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from metal_core.frr.model import Configuration
from metal_core.frr.parse import parse
from metal_core.known_good import replace_file

# Seconds. A full file of 200 VRFs takes vtysh 0.2 s to check; a delta is loaded in under a second.
CALL_LIMIT = 30.0
_SHOWN = 2000


class FrrError(Exception):
    """vtysh is there but refused or did not answer; the message carries the end of what it said."""


class Frr(Protocol):
    """What the applier needs of FRR."""

    @property
    def present(self) -> bool:
        """Whether there is an FRR to talk to."""
        ...

    async def running(self) -> Configuration:
        """The running configuration. Raises FrrError."""
        ...

    async def check(self, text: str) -> None:
        """Raise FrrError when FRR would not accept `text`; changes nothing."""
        ...

    async def load(self, commands: str) -> None:
        """Run `commands` in one batch. Raises FrrError when one of them was refused; the others were still run."""
        ...

    async def forget_vrf(self, name: str) -> None:
        """Have FRR drop a VRF that nothing uses; without effect while the kernel still has it."""
        ...


class NoFrr:
    """Stands in on a leaf without FRR."""

    present = False

    async def running(self) -> Configuration:
        """Nothing runs."""
        return Configuration()

    async def check(self, text: str) -> None:
        """Nobody is there who could refuse."""

    async def load(self, commands: str) -> None:
        """Nobody is there who could run them."""

    async def forget_vrf(self, name: str) -> None:
        """There is none."""


class Vtysh:
    """FRR through `command`, which is vtysh with whatever it needs in front (`docker exec -i bgp`) or behind it.

    Texts are handed over as files in `directory`, which FRR has to see under the same path.
    """

    present = True

    def __init__(self, command: Sequence[str], directory: Path) -> None:
        self._command = tuple(command)
        self._directory = directory

    async def running(self) -> Configuration:
        """The running configuration of all daemons."""
        return parse(await self._run("-c", "show running-config"))

    async def check(self, text: str) -> None:
        """`vtysh -C`: syntax only, so `metal_core.checks` looks for the rest."""
        await self._run("-C", "-f", await self._file("check.conf", text))

    async def load(self, commands: str) -> None:
        """`vtysh -f`: one process for the whole delta."""
        if commands:
            await self._run("-f", await self._file("delta.conf", commands))

    async def forget_vrf(self, name: str) -> None:
        """FRR refuses while the kernel has the VRF; it is asked again after the next change."""
        with contextlib.suppress(FrrError):
            await self._run("-c", "configure terminal", "-c", f"no vrf {name}")

    async def _file(self, name: str, text: str) -> str:
        path = self._directory / name
        await asyncio.to_thread(replace_file, path, text)
        return str(path)

    async def _run(self, *arguments: str) -> str:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        except OSError as error:
            raise FrrError(f"{self._command[0]}: {error.strerror}") from error
        try:
            async with asyncio.timeout(CALL_LIMIT):
                output, _ = await process.communicate()
        except TimeoutError as error:
            raise FrrError(f"vtysh {arguments[0]} did not end within {CALL_LIMIT:g} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        text = output.decode(errors="replace")
        if process.returncode != 0:
            raise FrrError(f"vtysh {arguments[0]} failed ({process.returncode}): {text[-_SHOWN:].strip()}")
        return text


def find(command: Sequence[str], directory: Path) -> Frr:
    """FRR by `command`, or the stand-in when the program is not on this leaf."""
    if command and shutil.which(command[0]) is not None:
        return Vtysh(command, directory)
    return NoFrr()
