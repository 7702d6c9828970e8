"""How to run Postgres when we are root, which it refuses.

Three ways, best first: as we are (not root); in a user namespace in which we are uid 1000 (no file changes owner, no
user is needed); as `nobody`, which needs the data directory to belong to it and the programs to be readable by it. What
it never does is open up directories that it does not own: it copies the programs, or refuses with a reason, instead.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from metal_lab.servers.process import ServerError

_NAMESPACE = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
_PROBE_SECONDS = 10.0


@dataclass(frozen=True)
class Isolation:
    """`prefix` goes in front of the command; `uid`/`gid` (0 = keep) are taken on just before the program starts."""

    prefix: tuple[str, ...] = ()
    uid: int = 0
    gid: int = 0

    def own(self, directory: Path) -> None:
        """Make `directory` usable by the server. Raises ServerError when its parents shut the server's user out."""
        if self.uid:
            self.check_way(directory)
            os.chown(directory, self.uid, self.gid)

    def check_way(self, directory: Path) -> None:
        """Raises ServerError when a parent of `directory` (as far as there are any) shuts the server's user out."""
        for parent in directory.resolve().parents if self.uid else ():
            if parent.exists() and not parent.stat().st_mode & stat.S_IXOTH:
                raise ServerError(
                    f"{directory}: the user `nobody` cannot get through {parent}; "
                    "use a state directory elsewhere, or run as an ordinary user"
                )

    def reachable(self, programs: Path) -> Path:
        """`programs` (a `bin` directory), or a copy of its installation where the server's user can read it."""
        if not self.uid or all(parent.stat().st_mode & stat.S_IXOTH for parent in (programs, *programs.parents)):
            return programs
        copy = Path(tempfile.mkdtemp(prefix="metalplane-postgres-"))
        copy.chmod(0o755)
        shutil.copytree(programs.parent, copy / "install", symlinks=True)
        return copy / "install" / programs.name


async def choose_isolation() -> Isolation:
    """The best way that works on this host."""
    if os.geteuid() != 0:
        return Isolation()
    if await _namespaces_work():
        return Isolation(prefix=_NAMESPACE)
    return nobody()


def nobody() -> Isolation:
    """Run as the user `nobody`. Raises ServerError when the host has no such user."""
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise ServerError("Postgres does not run as root, and there is neither a user namespace nor `nobody`") from None
    return Isolation(uid=entry.pw_uid, gid=entry.pw_gid)


async def _namespaces_work() -> bool:
    if shutil.which(_NAMESPACE[0]) is None:
        return False
    probe = await asyncio.create_subprocess_exec(
        *_NAMESPACE, "true", stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            return await probe.wait() == 0
    except TimeoutError:
        probe.kill()
        await probe.wait()
        return False
