"""The network boot of a simulated machine: asks boot for an iPXE script and says what the script would start.

Only what iPXE scripts of a boot service need is understood; every other command makes the script unusable, as a typing
mistake would on a real machine.
"""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import dataclass

import aiohttp

DEADLINE = 10.0
"""Seconds that the firmware waits for a script."""

_MAX_SCRIPT = 64 * 1024


class ScriptError(Exception):
    """iPXE would stop at this script."""


@dataclass(frozen=True, slots=True)
class NetworkBoot:
    """What a script starts: an installer with this command line, or else (no command line) the local disk.

    `again_after` is set when the script asks to try again after so many seconds.
    """

    script: str
    command_line: str = ""
    kernel: str = ""
    initrd: str = ""
    again_after: float = 0.0


@dataclass(frozen=True, slots=True)
class Firmware:
    """The firmware of one machine. `url` is the address of boot's HTTP server."""

    uuid: str
    url: str
    mac: str = ""
    deadline: float = DEADLINE

    async def ask(self) -> NetworkBoot:
        """Ask once. Raises TimeoutError or aiohttp.ClientError when nobody answers, and ScriptError."""
        query = {"mac": self.mac} if self.mac else {}
        timeout = aiohttp.ClientTimeout(total=self.deadline)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{self.url}/v1/boot/{self.uuid}", params=query) as response,
        ):
            response.raise_for_status()
            text = (await response.content.read(_MAX_SCRIPT)).decode()
        return read_script(text)

    async def ask_until_answered(self, *, pause: float = 1.0) -> NetworkBoot:
        """Ask again until there is an answer, as firmware does that is set to network boot."""
        while True:
            try:
                return await self.ask()
            except (aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(pause)


def read_script(text: str) -> NetworkBoot:
    """What an iPXE script starts. Raises ScriptError."""
    lines = text.splitlines()
    if not lines or lines[0] != "#!ipxe":
        raise ScriptError("the first line must be #!ipxe")
    kernel, command_line, initrds, pause = "", "", {}, 0.0
    for line in lines[1:]:
        words = shlex.split(line, comments=True)
        match words:
            case []:
                continue
            case ["kernel", url, *rest]:
                kernel, command_line = url, " ".join(rest)
            case ["initrd", "--name", name, url]:
                initrds[name] = url
            case ["boot"]:
                return _started(text, kernel, command_line, initrds)
            case ["sleep", seconds]:
                pause = float(seconds)
            case ["reboot"]:
                return NetworkBoot(text, again_after=pause)
            case ["sanboot", *_] | ["exit", *_]:
                return NetworkBoot(text)
            case ["iseq" | "echo", *_]:
                continue
            case _:
                raise ScriptError(f"unknown command: {words[0]}")
    raise ScriptError("the script ends without starting anything")


def _started(text: str, kernel: str, command_line: str, initrds: dict[str, str]) -> NetworkBoot:
    named = [word.removeprefix("initrd=") for word in command_line.split() if word.startswith("initrd=")]
    if not kernel or not named or named[0] not in initrds:
        raise ScriptError("no kernel, or a ramdisk that UEFI would not find")
    return NetworkBoot(text, command_line, kernel, initrds[named[0]])
