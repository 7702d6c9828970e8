"""Unpacking an image: a tar archive, plain or compressed by gzip, xz or zstd, told apart by its first bytes.

tarfile's own `data` filter (PEP 706) is for archives of documents: it takes away owners, set-user-id bits and absolute
links, without which an operating system does not work. Owners are taken by number: what a name means in the ramdisk is
not what it means in the image's own /etc/passwd. The filter here keeps those and refuses what has no place in an
image: names that lead out of the target, devices and FIFOs, hard links and relative links that point outside, and
every member that would be written *through* a link to a place outside. Absolute links are kept as they are: they are
meant for the installed system, whose root is the target, and nothing here follows them.
"""

from __future__ import annotations

import asyncio
import copy
import gzip
import lzma
import os
import stat
import tarfile
import threading
import zlib
from collections.abc import Callable
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import zstandard

from metal_hammer.failure import Code, Step, StepFailed

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

READ = 1024 * 1024
"""Bytes of decompressed archive between two checkpoints."""


_DAMAGE = (
    tarfile.TarError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    zstandard.ZstdError,
    EOFError,
    KeyError,
    RecursionError,
    OverflowError,
    ValueError,
)
"""What reading a damaged archive can raise; BadGzipFile is an OSError and has to be looked for first."""


class Stopped(Exception):
    """The unpacking was cancelled."""


class UnsafeMember(Exception):
    """A member of the archive that an image must not have."""

    def __init__(self, tarinfo: tarfile.TarInfo, why: str) -> None:
        self.tarinfo = tarinfo
        super().__init__(f"{tarinfo.name!r} {why}")


async def unpack(archive: Path, target: Path, *, checkpoint: Callable[[], None]) -> int:
    """Unpack an archive whose hash has been checked; returns the number of its members. Raises StepFailed.

    `checkpoint` is called from another thread about every MiB. When the caller is cancelled, this returns only after
    the last byte has been written.
    """
    stop = threading.Event()

    def alive() -> None:
        if stop.is_set():
            raise Stopped
        checkpoint()

    work = asyncio.ensure_future(asyncio.to_thread(_unpack, archive, target, alive))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()
        raise


def _unpack(archive: Path, target: Path, alive: Callable[[], None]) -> int:
    members = 0
    directories: list[tarfile.TarInfo] = []
    try:
        with archive.open("rb") as raw, _decompressed(raw) as plain:
            reader = BufferedReader(_Watched(plain, alive), READ)
            with tarfile.open(fileobj=reader, mode="r|", errorlevel=1) as tar:
                # Not extractall(filter=…): Python got it in 3.11.4. Newer ones are told to leave the filtering to us.
                tar.extraction_filter = _as_it_is
                for found in tar:
                    member = image_filter(found, str(target))
                    tar.extract(member, target, set_attrs=not member.isdir(), numeric_owner=True)
                    members += 1
                    if member.isdir():
                        directories.append(member)
                _finish(tar, target, directories)
            # tarfile stops at the end-of-archive blocks; the rest still has to decompress, or the file is cut off.
            while reader.read(READ):
                pass
    except UnsafeMember as error:
        raise StepFailed(Step.UNPACK, Code.IMAGE_UNSAFE, str(error)) from error
    except _DAMAGE as error:
        raise StepFailed(Step.UNPACK, Code.IMAGE_CORRUPT, f"{type(error).__name__}: {error}") from error
    except OSError as error:
        raise StepFailed(Step.UNPACK, Code.TARGET_IO, error.strerror or type(error).__name__) from error
    if members == 0:
        raise StepFailed(Step.UNPACK, Code.IMAGE_CORRUPT, "the archive is empty")
    return members


def _as_it_is(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
    """tarfile's filter when all filtering has been done."""
    del path
    return member


def _finish(tar: tarfile.TarFile, target: Path, directories: list[tarfile.TarInfo]) -> None:
    """Give directories their owners, modes and times, deepest first: before, their files could not be written.

    A later member can have put another link where a directory was reached through one, so the way is looked at again.
    """
    root = Path(os.path.realpath(target))
    for member in sorted(directories, key=lambda each: each.name, reverse=True):
        _walk(member, root, _parts(member, member.name))
        place = str(target / member.name)
        tar.chown(member, place, numeric_owner=True)
        tar.utime(member, place)
        tar.chmod(member, place)


def image_filter(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
    """The member as it may be written, see the module. Raises UnsafeMember. Also clears the way for the member.

    The walk looks at every directory on the way by itself instead of trusting one `realpath` of the whole: that one
    can be fooled by paths longer than the kernel takes.
    """
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise UnsafeMember(member, "is a device, FIFO or of an unknown type")
    root = Path(os.path.realpath(path))
    parts = _parts(member, member.name)
    _walk(member, root, parts[:-1])
    if member.islnk():
        member = _checked_hard_link(member, root)
    if member.issym() and not member.linkname.startswith("/"):
        _check_relative_link(member, parts[:-1])
    if parts:
        _clear(member, root, root.joinpath(*parts))
    safe = copy.copy(member)
    safe.name = "/".join(parts) or "."
    return safe


def _checked_hard_link(member: tarfile.TarInfo, root: Path) -> tarfile.TarInfo:
    """The member with its source as a plain relative path. Raises UnsafeMember when there is no such file yet: tarfile
    would search for it in the archive, and for a link to itself it would search for ever.

    A hard link to a symbolic link becomes a symbolic link like it.
    """
    source = _parts(member, member.linkname)
    _walk(member, root, source[:-1])
    place = root.joinpath(*source)
    try:
        mode = place.lstat().st_mode
    except OSError as error:
        raise UnsafeMember(member, f"is a link to {member.linkname!r}, which is not there") from error
    if stat.S_ISLNK(mode):
        twin = copy.copy(member)
        twin.type, twin.linkname = tarfile.SYMTYPE, os.readlink(place)
        return twin
    if not stat.S_ISREG(mode) or _parts(member, member.name) == source:
        raise UnsafeMember(member, f"is a link to {member.linkname!r}, which is no other file")
    twin = copy.copy(member)
    twin.linkname = "/".join(source)
    return twin


def _parts(member: tarfile.TarInfo, name: str) -> list[str]:
    if "\x00" in name:
        raise UnsafeMember(member, "has a NUL in its name")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UnsafeMember(member, "leads upwards")
    return parts


def _walk(member: tarfile.TarInfo, root: Path, parts: list[str]) -> None:
    """Raise UnsafeMember when a directory on the way is a link that leads out of `root`."""
    here = root
    for part in parts:
        here = here / part
        try:
            mode = here.lstat().st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise UnsafeMember(member, f"cannot be placed: {error.strerror}") from error
        if stat.S_ISLNK(mode):
            _check_inside(member, root, here)


def _check_inside(member: tarfile.TarInfo, root: Path, link: Path) -> None:
    try:
        inside = link.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):
        inside = False
    if not inside:
        raise UnsafeMember(member, "would be written through a link that leads outside")


def _check_relative_link(member: tarfile.TarInfo, directory: list[str]) -> None:
    depth = len(directory)
    for part in member.linkname.split("/"):
        depth += {"": 0, ".": 0, "..": -1}.get(part, 1)
        if depth < 0:
            raise UnsafeMember(member, f"links to {member.linkname!r}, which is outside")


def _clear(member: tarfile.TarInfo, root: Path, place: Path) -> None:
    """Remove a link or file where the member goes: opening it for writing would follow the link."""
    try:
        mode = place.lstat().st_mode
    except OSError:
        return
    if stat.S_ISDIR(mode):
        return
    if stat.S_ISLNK(mode) and member.isdir():
        _check_inside(member, root, place)
        return
    place.unlink()


def _decompressed(raw: IO[bytes]) -> IO[bytes]:
    magic = raw.read(6)
    raw.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    if magic == b"\xfd7zXZ\x00":
        return lzma.LZMAFile(raw)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        # An image may be made with --long: allow its window up to 2 GiB, the format's limit on 32 bits.
        decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
        return cast("IO[bytes]", decompressor.stream_reader(raw, read_across_frames=True, closefd=False))
    raw.seek(257)
    is_tar = raw.read(5) == b"ustar"
    raw.seek(0)
    if is_tar:
        return raw
    raise StepFailed(Step.UNPACK, Code.IMAGE_FORMAT_UNKNOWN, f"first bytes are {magic.hex()}")


class _Watched(RawIOBase):
    """Reads through to a file and calls `alive` for every read, so that an unpacking can be ended from outside."""

    def __init__(self, inner: IO[bytes], alive: Callable[[], None]) -> None:
        self._inner = inner
        self._alive = alive

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        self._alive()
        view = memoryview(buffer)
        data = self._inner.read(len(view))
        view[: len(data)] = data
        return len(data)
