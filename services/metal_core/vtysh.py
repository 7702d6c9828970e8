"""FRR through vtysh: check a text, read the running configuration, load a delta.

vtysh is another program and may be slow or hang, so each call has a limit and a killed process is waited for. It
answers with success while bgpd is down, and then knows nothing of BGP and drops commands for it: so it is asked which
daemons it talks to, whenever it is asked for anything else. Questions go to a vtysh that stays (`held`), since each new
one takes 50 ms to start. Only a leaf whose settings say that it has no FRR gets `NoFrr`; a vtysh that is missing is a
failure, looked for again at each run.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

from metal_kit import logs

from metal_core import bgp_state
from metal_core.bgp_state import Session
from metal_core.checked import Checked
from metal_core.frr.dialect import VrfBackend
from metal_core.frr.model import Configuration
from metal_core.frr.parse import parse
from metal_core.held import HeldVtysh
from metal_core.known_good import replace_file

# Seconds. A full file of 200 VRFs takes vtysh 0.2 s to check; a delta is loaded in under a second.
CALL_LIMIT = 30.0
# Seconds more for each line to load: an empty FRR takes half a millisecond for a line on a fast machine, and more the
# more it has.
LINE_LIMIT = 0.02
_SHOWN = 2000
# Whole texts that vtysh accepted, for runs that find nothing to do: they need not even look for what is new.
_REMEMBERED = 8
# The file that says what it was that vtysh accepted last.
_ACCEPTED = "accepted-by-frr"
_EMPTY = Configuration()
_DAEMONS = frozenset({"zebra", "bgpd"})
# What vtysh says when it is not the commands that are wrong.
_REJECTED = "% Configuration failed"
_AWAY = ("is not running", "failed to connect to any daemons", "Failure to communicate", "Connection refused")
_log = logs.get_logger("metal_core.vtysh")


class FrrError(Exception):
    """FRR refused what it was given; the message carries the end of what vtysh said."""


class FrrUnavailable(FrrError):
    """There is no vtysh, it does not end, or a daemon that it needs is away; nothing is known about FRR's state."""


class Frr(Protocol):
    """What the applier needs of FRR."""

    @property
    def present(self) -> bool:
        """Whether there is an FRR to talk to."""
        ...

    @property
    def backend(self) -> VrfBackend:
        """What VRFs are to it."""
        ...

    async def running(self) -> Configuration:
        """The running configuration; the same object as before while it does not change. Raises FrrUnavailable."""
        ...

    async def established(self) -> frozenset[str]:
        """The neighbours of the default VRF with whom a BGP session is established. Raises FrrUnavailable."""
        ...

    async def sessions(self) -> tuple[Session, ...]:
        """All BGP sessions, by VRF and port. Raises FrrUnavailable."""
        ...

    async def check(self, text: str) -> None:
        """Raise FrrError when FRR would not accept `text`; changes nothing."""
        ...

    async def keep(self, text: str) -> None:
        """Remember beyond this process that `text` was accepted, if it was. Never raises."""
        ...

    async def load(self, commands: str) -> None:
        """Run `commands` in one batch. Raises FrrError when one of them was refused; the others were still run."""
        ...

    async def forget_vrfs(self, names: Collection[str]) -> None:
        """Have FRR drop VRFs that nothing uses; without effect on those that the kernel still has."""
        ...

    async def close(self) -> None:
        """End what was started."""
        ...


class NoFrr:
    """Stands in on a leaf without FRR."""

    present = False
    backend = VrfBackend.LITE

    async def running(self) -> Configuration:
        """Nothing runs."""
        return _EMPTY

    async def established(self) -> frozenset[str]:
        """Nobody holds sessions."""
        return frozenset()

    async def sessions(self) -> tuple[Session, ...]:
        """There are none."""
        return ()

    async def check(self, text: str) -> None:
        """Nobody is there who could refuse."""

    async def keep(self, text: str) -> None:
        """Nobody has accepted it."""

    async def load(self, commands: str) -> None:
        """Nobody is there who could run them."""

    async def forget_vrfs(self, names: Collection[str]) -> None:
        """There are none."""

    async def close(self) -> None:
        """Nothing was started."""


class Vtysh:
    """FRR through `command`, which is vtysh with whatever it needs in front (`docker exec -i bgp`) or behind it.

    Texts are handed over as files in `directory`, which FRR has to see under the same path.
    """

    present = True

    def __init__(self, command: Sequence[str], directory: Path, backend: VrfBackend = VrfBackend.LITE) -> None:
        self._command = tuple(command)
        self._directory = directory
        self.backend = backend
        self._held = HeldVtysh(command)
        self._seen: tuple[str, Configuration] | None = None
        self._accepted: deque[str] = deque(maxlen=_REMEMBERED)
        self._checked = Checked()
        self._version = ""
        self._closed = False
        # Digests of whole texts that vtysh accepted before this process began; None until they have been read.
        self._on_disk: frozenset[str] | None = None

    async def running(self) -> Configuration:
        """The running configuration of all daemons, of which none that is needed is away. Read anew each time."""
        text = await self._ask("show running-config")
        if self._seen is None or self._seen[0] != text:
            self._seen = (text, parse(text, self.backend))
            version = next((line for line in text.splitlines() if line.startswith("frr version ")), "")
            if version != self._version:
                # Another one may refuse what the one before has accepted.
                self._version, self._checked = version, Checked()
                self._accepted.clear()
        return self._seen[1]

    async def established(self) -> frozenset[str]:
        """From `show bgp summary json`, which lists each neighbour by address family; without BGP there is none."""
        answer = await self._ask("show bgp summary json")
        try:
            families = json.loads(answer)
            peers = [peer for family in families.values() for peer in family.get("peers", {}).items()]
            return frozenset(name for name, peer in peers if peer.get("state") == "Established")
        except (ValueError, AttributeError):
            # FRR without a BGP instance says so in words, which differ by its version.
            return frozenset()

    async def sessions(self) -> tuple[Session, ...]:
        """From `show bgp vrf all neighbors json`, the only answer that has VRFs, counters and EVPN."""
        try:
            return bgp_state.parse(await self._ask(bgp_state.COMMAND))
        except ValueError:
            # FRR without a BGP instance says so in words, which differ by its version.
            return ()

    async def check(self, text: str) -> None:
        """`vtysh -C`, for what is new in the text: syntax only, so `metal_core.checks` looks for the rest.

        The answer depends on nothing but the text and FRR's version; a whole configuration costs vtysh 0.1 s.
        """
        digest = self._digest(text)
        if digest in self._accepted:
            return
        if new := self._checked.unseen(text):
            if not await self._accepted_before(digest):
                await self._run("-C", "-f", await self._file("check.conf", new))
            self._checked.accept(new)
        self._accepted.append(digest)

    async def keep(self, text: str) -> None:
        """One digest is kept, that of what the leaf was last brought to: a start begins with the same text."""
        digest = self._digest(text)
        if digest not in self._accepted or await self._accepted_before(digest):
            return
        try:
            await self._file(_ACCEPTED, f"{digest}\n")
        except OSError as error:
            # It only spares the next start a check.
            _log.warning("vtysh.not_kept", error=repr(error))
        else:
            self._on_disk = frozenset({digest})

    def _digest(self, text: str) -> str:
        return hashlib.sha256(f"{self._version}\n{text}".encode()).hexdigest()

    async def _accepted_before(self, digest: str) -> bool:
        if self._on_disk is None:
            try:
                said = await asyncio.to_thread((self._directory / _ACCEPTED).read_text, errors="replace")
            except OSError:
                said = ""
            self._on_disk = frozenset(said.split())
        return bool(self._version) and digest in self._on_disk

    async def load(self, commands: str) -> None:
        """`vtysh -f`: one process for the whole delta.

        What a daemon refuses after a look at its other configuration, such as a VNI that is in use, vtysh only prints.
        """
        if commands:
            limit = CALL_LIMIT + LINE_LIMIT * commands.count("\n")
            output = await self._run("-f", await self._file("delta.conf", commands), limit=limit)
            if _REJECTED in output:
                raise FrrError(f"FRR refused a command: {output[output.index(_REJECTED) :][:_SHOWN].strip()}")

    async def forget_vrfs(self, names: Collection[str]) -> None:
        """FRR refuses while the kernel has a VRF; it is asked again after the next change.

        vtysh ends at the first command that is refused, so when one is, each of the others gets a process of its own.
        """
        if not names:
            return
        commands = [word for name in names for word in ("-c", f"no vrf {name}")]
        try:
            await self._run("-c", "configure terminal", *commands)
        except FrrUnavailable:
            # It would not answer about each of them either, and each has a limit of its own.
            return
        except FrrError:
            if len(names) > 1:
                for name in names:
                    await self.forget_vrfs((name,))

    async def close(self) -> None:
        """End the vtysh that answers questions; whoever still waits for an answer gets FrrUnavailable."""
        self._closed = True
        await self._held.close()

    async def _ask(self, command: str) -> str:
        """What FRR answers. Whatever the held vtysh cannot say for sure is asked with a process of its own.

        That one tells both who is there and the answer; its first line is the former.
        """
        end = asyncio.get_running_loop().time() + CALL_LIMIT
        try:
            held = await self._held.ask(command, CALL_LIMIT)
        except TimeoutError as error:
            raise FrrUnavailable(f"vtysh did not answer within {CALL_LIMIT:g} s: {command}") from error
        if held is not None and held.daemons >= _DAEMONS and not held.text.startswith("%"):
            return held.text
        if self._closed:
            raise FrrUnavailable(f"vtysh was ended before it could be asked: {command}")
        left = end - asyncio.get_running_loop().time()
        try:
            daemons, _, answer = (await self._run("-c", "show daemons", "-c", command, limit=left)).partition("\n")
        except FrrUnavailable:
            raise
        except FrrError as error:
            # A question cannot be wrong; whatever is, it is not what the leaf is to have.
            raise FrrUnavailable(str(error)) from error
        if missing := _DAEMONS - set(daemons.split()):
            raise FrrUnavailable(f"FRR: {' and '.join(sorted(missing))} not running")
        return answer

    async def _file(self, name: str, text: str) -> str:
        path = self._directory / name
        await asyncio.to_thread(replace_file, path, text)
        return str(path)

    async def _run(self, *arguments: str, limit: float | None = None) -> str:
        limit = CALL_LIMIT if limit is None else limit
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise FrrUnavailable(f"{self._command[0]}: {error.strerror}") from error
        try:
            async with asyncio.timeout(limit):
                output, complaints = await process.communicate()
        except TimeoutError as error:
            raise FrrUnavailable(f"vtysh {arguments[0]} did not end within {limit:g} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        text, code = output.decode(errors="replace"), process.returncode or 0
        if code != 0:
            text += complaints.decode(errors="replace")
            kind = FrrUnavailable if code < 0 or any(sign in text for sign in _AWAY) else FrrError
            raise kind(f"vtysh {arguments[0]} failed ({code}): {text[-_SHOWN:].strip()}")
        return text


def find(command: Sequence[str], directory: Path, backend: VrfBackend = VrfBackend.LITE) -> Frr:
    """FRR by `command`; without a command the stand-in. Whether the program is there shows when it is called."""
    return Vtysh(command, directory, backend) if command else NoFrr()
