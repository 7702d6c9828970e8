"""A box with a kernel of its own, as far as a network is concerned: network, mount and process namespaces.

One process holds all three. It is the init of its process namespace, so whatever runs in the box ends with it, its
interfaces vanish, and so do files in the directories that are private to the box. It dies with the process that made
it. Nothing is left then, not even after a SIGKILL, and nothing in the machine's own namespaces was changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
from collections.abc import Sequence

_LIMIT = 30.0
_PRIVATE = ("/run/netns", "/etc/frr", "/var/run/frr", "/var/tmp/frr")
_HOLD = "".join(f"mkdir -p {path}; mount -t tmpfs tmpfs {path}; " for path in _PRIVATE)
# /proc is the machine's, so the shell reads its pid there as others see it.
_HOLD += "ip link set lo up; read pid rest < /proc/self/stat; echo $pid; exec sleep infinity"
_libc = ctypes.CDLL(None, use_errno=True)


class BoxError(Exception):
    """A command in a box failed; the message has what it said."""


class Box:
    """`async with Box("leaf01") as box:` makes one and removes it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pid = 0
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Box:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def alive(self) -> bool:
        """Whether it is there."""
        return self.pid != 0

    async def start(self) -> None:
        """Make the box. Raises BoxError."""
        self._process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL"),
            *("unshare", "--fork", "--kill-child", "--pid", "--net", "--mount", "--propagation", "private"),
            *("sh", "-ec", _HOLD),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        async with asyncio.timeout(_LIMIT):
            said = await self._process.stdout.readline()
            if not said.strip().isdigit():
                raise BoxError(f"{self.name}: {(await self._process.stderr.read()).decode(errors='replace').strip()}")
        self.pid = int(said)

    async def stop(self) -> None:
        """Remove it with everything in it, at once, as when the power goes."""
        process, self._process, self.pid = self._process, None, 0
        if process is not None:
            # The holder has --kill-child: its death is that of the box's init, and so of all that is inside.
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()

    def enter(self, *command: str, kinds: Sequence[str] = ("mount", "net", "pid")) -> tuple[str, ...]:
        """`command` as a command line that runs it in the box's namespaces of the given kinds."""
        return ("nsenter", "--target", str(self.pid), *(f"--{kind}" for kind in kinds), *command)

    async def run(self, script: str) -> str:
        """Run a shell script in the box; gives its output. Raises BoxError when a command of it fails."""
        return await output_of(self.enter("sh", "-ec", script), f"{self.name}: {script}")

    async def socket(self, family: socket.AddressFamily) -> socket.socket:
        """A UDP socket of the box, for use by this process."""
        return await asyncio.to_thread(self._socket, family)

    def _socket(self, family: socket.AddressFamily) -> socket.socket:
        # A network namespace belongs to a thread; a socket stays in the one that it was made in.
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            there = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
            try:
                _enter(there)
            finally:
                os.close(there)
            try:
                return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            finally:
                _enter(own)
        finally:
            os.close(own)


async def wire(one: Box, port: str, other: Box, other_port: str, mtu: int = 9216) -> None:
    """A cable between two ports that do not exist yet; both ends are down."""
    command = f"ip link add {port} netns {one.pid} mtu {mtu} type veth"
    command += f" peer name {other_port} netns {other.pid} mtu {mtu}"
    await output_of(command.split(), command)


async def output_of(command: Sequence[str], what: str) -> str:
    """What a command prints. Raises BoxError when it fails or takes too long."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_LIMIT):
            output, _ = await process.communicate()
    except TimeoutError:
        raise BoxError(f"{what}: did not end within {_LIMIT:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = output.decode(errors="replace")
    if process.returncode:
        raise BoxError(f"{what}: failed ({process.returncode}): {text.strip()}")
    return text


def _enter(namespace: int) -> None:
    clone_newnet = 0x40000000
    if _libc.setns(namespace, clone_newnet) != 0:
        raise OSError(ctypes.get_errno(), "setns")
