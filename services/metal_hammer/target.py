"""Writing files into the target: the root file system of the system being installed.

The target has been unpacked from an image and is full of links that are meant for the installed system. Every path is
resolved with the target as its root, as a `chroot` would, and a link in the last place is replaced instead of followed.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from metal_hammer.failure import Code, Step, StepFailed

_MAX_LINKS = 40  # as the kernel's ELOOP limit


def resolve(root: Path, path: str, *, step: Step) -> Path:
    """Where `path` of the installed system lies, its last part included. Raises StepFailed for a loop of links.

    Parts that do not exist are taken as they are written.
    """
    pending = [part for part in path.split("/") if part not in ("", ".")]
    here: list[str] = []
    links = 0
    while pending:
        part = pending.pop(0)
        if part == "..":
            here = here[:-1]
            continue
        place = root.joinpath(*here, part)
        if _is_link(place):
            links += 1
            if links > _MAX_LINKS:
                raise StepFailed(step, Code.TARGET_IO, f"too many links on the way to {path}")
            link = place.readlink()
            pending = [each for each in link.parts if each not in ("/", ".")] + pending
            if link.is_absolute():
                here = []
            continue
        here.append(part)
    return root.joinpath(*here)


def write(root: Path, path: str, content: bytes, *, mode: int, step: Step) -> None:
    """Write a file of the installed system, whole or not at all, with its mode from the first byte on.

    Missing directories are made (0755). Raises StepFailed.
    """
    directory, _, name = path.rpartition("/")
    try:
        parent = resolve(root, directory, step=step)
        parent.mkdir(parents=True, exist_ok=True)
        temporary = parent / f".{name}.metal"
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)  # the umask of the ramdisk must not decide
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(parent / name)
    except OSError as error:
        raise StepFailed(step, Code.TARGET_IO, f"{path}: {error.strerror or type(error).__name__}") from error


def read(root: Path, path: str, *, limit: int, step: Step) -> bytes | None:
    """A file of the installed system, at most `limit` bytes; None when it is not there. Raises StepFailed."""
    place = resolve(root, path, step=step)
    try:
        if not stat.S_ISREG(place.lstat().st_mode):
            raise StepFailed(step, Code.TARGET_IO, f"{path} is not a regular file")
        with place.open("rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StepFailed(step, Code.TARGET_IO, f"{path}: {error.strerror or type(error).__name__}") from error
    if len(content) > limit:
        raise StepFailed(step, Code.TARGET_IO, f"{path} is larger than {limit} bytes")
    return content


def _is_link(place: Path) -> bool:
    try:
        return stat.S_ISLNK(place.lstat().st_mode)
    except OSError:
        return False
