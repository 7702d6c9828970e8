"""Secret files: whole or not at all, readable by their owner alone from the first byte on."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SECRET = 0o600


def write(path: Path, content: bytes, mode: int = SECRET) -> None:
    """Put `content` in place of what is at `path`. A folder that is missing is made for its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_if_changed(path: Path, content: bytes) -> bool:
    """Write only what differs, so that nobody reloads for nothing; whether it did."""
    if path.exists() and path.read_bytes() == content:
        return False
    write(path, content)
    return True


def kept(path: Path, make: Callable[[], str]) -> str:
    """The secret at `path`, made at the first time and then never again."""
    if not path.exists():
        write(path, make().encode())
    return path.read_text()


def environment(values: Mapping[str, str]) -> bytes:
    """Lines that a POSIX shell reads with `.`: every value in single quotes."""
    lines = []
    for name, value in sorted(values.items()):
        if "\n" in value or "\0" in value:
            raise ValueError(f"{name} cannot be in an environment file")
        quoted = value.replace("'", "'\\''")
        lines.append(f"{name}='{quoted}'\n")
    return "".join(lines).encode()


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Wait for whoever else sets up in the same directory: two at once would make two authorities."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, SECRET)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
