from __future__ import annotations

import asyncio
import gzip
import io
import lzma
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from metal_hammer.failure import Code, StepFailed
from metal_hammer.image.archive import unpack


def member(name: str, kind: bytes = tarfile.REGTYPE, **values: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = kind, 0o755
    for key, value in values.items():
        setattr(info, key, value)
    return info


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


GOOD = archive(
    (member("usr", tarfile.DIRTYPE), b""),
    (member("usr/bin", tarfile.DIRTYPE), b""),
    (member("bin", tarfile.SYMTYPE, linkname="usr/bin"), b""),
    (member("usr/bin/sudo", mode=0o4755), b"setuid"),
    (member("etc", tarfile.DIRTYPE, mode=0o750), b""),
    (member("etc/mtab", tarfile.SYMTYPE, linkname="/proc/self/mounts"), b""),
    (member("usr/bin/sudoedit", tarfile.LNKTYPE, linkname="usr/bin/sudo", mode=0o4755), b""),
    (member("./etc/hosts", mode=0o600), b"127.0.0.1 localhost\n" * 1000),
)


async def run(content: bytes, directory: Path, **more: Any) -> Path:
    source, target = directory / "image", directory / "target"
    source.write_bytes(content)
    target.mkdir(exist_ok=True)
    await unpack(source, target, checkpoint=more.get("checkpoint", lambda: None))
    return target


async def refusal(content: bytes, directory: Path) -> StepFailed:
    with pytest.raises(StepFailed) as failed:
        await run(content, directory)
    return failed.value


@pytest.mark.parametrize(
    "compress", [bytes, gzip.compress, lzma.compress, zstandard.compress], ids=["plain", "gzip", "xz", "zstd"]
)
async def test_an_operating_system_is_unpacked_as_it_is(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    target = await run(compress(GOOD), tmp_path)
    assert (target / "usr/bin/sudo").read_bytes() == b"setuid"
    assert stat.S_IMODE((target / "usr/bin/sudo").stat().st_mode) == 0o4755
    assert (target / "usr/bin/sudoedit").samefile(target / "usr/bin/sudo")
    assert (target / "bin").readlink() == Path("usr/bin")
    assert (target / "etc/mtab").readlink() == Path("/proc/self/mounts")
    assert stat.S_IMODE((target / "etc").stat().st_mode) == 0o750
    assert (target / "etc/hosts").stat().st_size == 20_000


UNSAFE: dict[str, tuple[tuple[tarfile.TarInfo, bytes], ...]] = {
    "upwards": ((member("../outside"), b"x"),),
    "upwards in the middle": ((member("a/../../outside"), b"x"),),
    "character device": ((member("dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3), b""),),
    "block device": ((member("dev/sda", tarfile.BLKTYPE, devmajor=8), b""),),
    "fifo": ((member("run/pipe", tarfile.FIFOTYPE), b""),),
    "hard link upwards": ((member("shadow", tarfile.LNKTYPE, linkname="../outside"), b""),),
    "hard link to itself": ((member("a", tarfile.LNKTYPE, linkname="a"), b""),),
    "hard link to itself over a file": ((member("a"), b"x"), (member("./a", tarfile.LNKTYPE, linkname="a"), b"")),
    "hard links in a circle": (
        (member("a", tarfile.LNKTYPE, linkname="b"), b""),
        (member("b", tarfile.LNKTYPE, linkname="a"), b""),
    ),
    "hard link to a directory": (
        (member("d", tarfile.DIRTYPE), b""),
        (member("a", tarfile.LNKTYPE, linkname="d"), b""),
    ),
    "relative link outside": ((member("etc/l", tarfile.SYMTYPE, linkname="../../outside"), b""),),
    "through an absolute link": (
        (member("l", tarfile.SYMTYPE, linkname="OUTSIDE"), b""),
        (member("l/written"), b"x"),
    ),
    "directory over an absolute link": (
        (member("l", tarfile.SYMTYPE, linkname="OUTSIDE"), b""),
        (member("l", tarfile.DIRTYPE, mode=0o777), b""),
    ),
    "hard link through a link": (
        (member("l", tarfile.SYMTYPE, linkname="OUTSIDE"), b""),
        (member("copy", tarfile.LNKTYPE, linkname="l/secret"), b""),
    ),
    "through a chain of links": (
        (member("a", tarfile.SYMTYPE, linkname="OUTSIDE"), b""),
        (member("b", tarfile.SYMTYPE, linkname="a"), b""),
        (member("b/written"), b"x"),
    ),
    "directory whose link is replaced by one to outside": (
        (member("d", tarfile.DIRTYPE), b""),
        (member("l", tarfile.SYMTYPE, linkname="d"), b""),
        (member("l", tarfile.DIRTYPE, mode=0o777), b""),
        (member("l", tarfile.SYMTYPE, linkname="OUTSIDE"), b""),
    ),
    "dangling link as a directory": (
        (member("l", tarfile.SYMTYPE, linkname="/no/such/place"), b""),
        (member("l/written"), b"x"),
    ),
}


@pytest.mark.parametrize("name", sorted(UNSAFE))
async def test_what_leads_out_of_the_target_is_refused(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (outside / "secret").write_text("secret")
    entries = []
    for info, content in UNSAFE[name]:
        copy = tarfile.TarInfo.frombuf(info.tobuf(), "utf-8", "strict")
        copy.linkname = info.linkname.replace("OUTSIDE", str(outside))
        entries.append((copy, content))
    failed = await refusal(archive(*entries), tmp_path)
    assert failed.code is Code.IMAGE_UNSAFE, failed
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert stat.S_IMODE(outside.stat().st_mode) == 0o755
    assert (outside / "secret").stat().st_nlink == 1


async def test_a_file_replaces_a_link_instead_of_writing_through_it(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    content = archive((member("f", tarfile.SYMTYPE, linkname=str(victim)), b""), (member("f"), b"new"))
    target = await run(content, tmp_path)
    assert victim.read_text() == "untouched"
    assert (target / "f").read_bytes() == b"new"
    assert not (target / "f").is_symlink()


async def test_owners_are_taken_by_number_and_not_by_the_names_of_the_ramdisk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners: dict[str, tuple[int, int]] = {}

    def chown(path: str, user: int, group: int) -> None:
        owners[Path(path).name] = (user, group)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in ("chown", "lchown"):
        monkeypatch.setattr(os, name, chown)
    # Everybody's /etc/passwd has a root; the image's could have any number for any other name.
    owner: dict[str, Any] = {"uid": 101, "gid": 102, "uname": "root", "gname": "root"}
    entries = (
        (member("directory", tarfile.DIRTYPE, **owner), b""),
        (member("file", **owner), b"x"),
        (member("link", tarfile.SYMTYPE, linkname="file", **owner), b""),
    )
    await run(archive(*entries), tmp_path)
    assert owners == dict.fromkeys(("directory", "file", "link"), (101, 102))


async def test_a_hard_link_to_a_link_is_a_link_like_it(tmp_path: Path) -> None:
    members = (member("a", tarfile.SYMTYPE, linkname="/x"), b""), (member("b", tarfile.LNKTYPE, linkname="a"), b"")
    target = await run(archive(*members), tmp_path)
    assert (target / "b").readlink() == Path("/x")


NAMES = st.lists(st.sampled_from(["a", "b", "..", ".", "", "c"]), min_size=1, max_size=4).map("/".join)


@given(st.lists(st.tuples(NAMES, st.sampled_from(["file", "dir", "link", "hard"]), NAMES), min_size=1, max_size=8))
@settings(max_examples=150)
def test_whatever_an_archive_holds_nothing_appears_outside(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, str, str]]
) -> None:
    base = tmp_path_factory.mktemp("fuzz")
    kinds = {"file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}
    members = [
        (member(name, kinds[kind], linkname=link if kind in ("link", "hard") else ""), b"x" if kind == "file" else b"")
        for name, kind, link in entries
    ]

    async def attempt() -> None:
        try:
            await run(archive(*members), base)
        except StepFailed as failed:
            codes.append(failed.code)

    codes: list[Code] = []
    asyncio.run(attempt())
    assert set(codes) <= {Code.IMAGE_UNSAFE, Code.IMAGE_CORRUPT, Code.TARGET_IO}
    assert {path.name for path in base.iterdir()} == {"image", "target"}
    target = base / "target"
    for root, directories, files in os.walk(target):
        for name in (*directories, *files):
            path = Path(root) / name
            link = os.readlink(path) if path.is_symlink() else ""
            if link and not link.startswith("/"):
                assert os.path.normpath(path.parent / link).startswith(str(target))


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, zstandard.compress], ids=["gzip", "xz", "zstd"])
@pytest.mark.parametrize("kept", [0.2, 0.9, 0.999])
async def test_an_archive_that_is_cut_off_is_noticed(
    tmp_path: Path, compress: Callable[[bytes], bytes], kept: float
) -> None:
    whole = compress(archive((member("noise"), os.urandom(200_000))))
    failed = await refusal(whole[: int(len(whole) * kept)], tmp_path)
    assert failed.code is Code.IMAGE_CORRUPT, failed


@given(st.data())
@settings(max_examples=60)
def test_a_damaged_archive_is_named_as_such(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from([GOOD, gzip.compress(GOOD), lzma.compress(GOOD)])))
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    base = tmp_path_factory.mktemp("damaged")
    failures: list[StepFailed] = []

    async def attempt() -> None:
        try:
            await run(bytes(whole), base)
        except StepFailed as failed:
            failures.append(failed)

    asyncio.run(attempt())
    for failed in failures:
        assert failed.step.value == "unpack"


async def test_a_plain_archive_that_is_cut_off_is_noticed(tmp_path: Path) -> None:
    failed = await refusal(archive((member("noise"), os.urandom(200_000)))[:100_000], tmp_path)
    assert failed.code is Code.IMAGE_CORRUPT


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x7fELF", os.urandom(2000)])
async def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    failed = await refusal(content, tmp_path)
    assert failed.code in (Code.IMAGE_FORMAT_UNKNOWN, Code.IMAGE_CORRUPT)


async def test_an_empty_archive_is_refused(tmp_path: Path) -> None:
    assert (await refusal(gzip.compress(archive()), tmp_path)).code is Code.IMAGE_CORRUPT


async def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile, "copyfileobj", full)
    failed = await refusal(GOOD, tmp_path)
    assert (failed.code, failed.detail) == (Code.TARGET_IO, "No space left on device")


class Stop(BaseException):
    """The machine stops."""


async def test_a_stop_in_the_middle_comes_out_as_it_went_in(tmp_path: Path) -> None:
    calls = 0

    def checkpoint() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Stop

    content = archive(*((member(f"file{number}"), os.urandom(1024 * 1024)) for number in range(12)))
    with pytest.raises(Stop):
        await run(content, tmp_path, checkpoint=checkpoint)
    assert not (tmp_path / "target/file11").exists()


async def test_after_a_cancellation_nothing_more_is_written(tmp_path: Path) -> None:
    began = asyncio.Event()
    loop = asyncio.get_running_loop()

    def checkpoint() -> None:
        loop.call_soon_threadsafe(began.set)

    content = archive(*((member(f"file{number}"), bytes(1024 * 1024)) for number in range(200)))
    task = asyncio.create_task(run(content, tmp_path, checkpoint=checkpoint))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    before = sum(path.stat().st_size for path in (tmp_path / "target").iterdir())
    await asyncio.sleep(0.05)  # not to synchronise: to give a thread that went on the time to be caught
    assert sum(path.stat().st_size for path in (tmp_path / "target").iterdir()) == before
    assert not (tmp_path / "target/file199").exists()
