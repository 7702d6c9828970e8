from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from metal_hammer import target
from metal_hammer.failure import Code, Step, StepFailed

STEP = Step.CONFIGURE


def tree(directory: Path) -> tuple[Path, Path]:
    root, outside = directory / "root", directory / "outside"
    (root / "etc").mkdir(parents=True)
    outside.mkdir()
    return root, outside


def test_a_file_is_written_with_its_mode_and_missing_directories(tmp_path: Path) -> None:
    root, _ = tree(tmp_path)
    previous = os.umask(0o077)
    try:
        target.write(root, "/etc/metal/install.yaml", b"content", mode=0o600, step=STEP)
        target.write(root, "/etc/hostname", b"web-1\n", mode=0o644, step=STEP)
    finally:
        os.umask(previous)
    assert (root / "etc/metal/install.yaml").read_bytes() == b"content"
    assert stat.S_IMODE((root / "etc/metal/install.yaml").stat().st_mode) == 0o600
    assert stat.S_IMODE((root / "etc/hostname").stat().st_mode) == 0o644
    assert [path.name for path in (root / "etc/metal").iterdir()] == ["install.yaml"]


def test_links_are_resolved_as_the_installed_system_would(tmp_path: Path) -> None:
    root, outside = tree(tmp_path)
    (root / "usr/etc").mkdir(parents=True)
    (root / "etc/metal").symlink_to("/usr/etc")
    target.write(root, "/etc/metal/f", b"x", mode=0o600, step=STEP)
    assert (root / "usr/etc/f").read_bytes() == b"x"
    (root / "etc/up").symlink_to("../../../../../usr/etc")
    target.write(root, "/etc/up/g", b"y", mode=0o600, step=STEP)
    assert (root / "usr/etc/g").read_bytes() == b"y"
    assert list(outside.iterdir()) == []


def test_a_link_to_a_place_on_the_installer_is_never_followed(tmp_path: Path) -> None:
    root, outside = tree(tmp_path)
    victim = outside / "victim"
    victim.write_text("untouched")
    (root / "etc/hostname").symlink_to(victim)
    target.write(root, "/etc/hostname", b"web-1\n", mode=0o644, step=STEP)
    assert victim.read_text() == "untouched"
    assert not (root / "etc/hostname").is_symlink()
    (root / "etc/metal").symlink_to(outside)
    target.write(root, "/etc/metal/f", b"x", mode=0o600, step=STEP)
    assert [path.name for path in outside.iterdir()] == ["victim"]


def test_a_read_through_a_link_stays_inside(tmp_path: Path) -> None:
    root, outside = tree(tmp_path)
    (outside / "secret").write_text("secret")
    (root / "etc/info").symlink_to(outside / "secret")
    assert target.read(root, "/etc/info", limit=100, step=STEP) is None
    assert target.read(root, "/etc/none", limit=100, step=STEP) is None


def test_a_loop_of_links_is_an_error_and_no_endless_search(tmp_path: Path) -> None:
    root, _ = tree(tmp_path)
    (root / "etc/a").symlink_to("b")
    (root / "etc/b").symlink_to("a")
    with pytest.raises(StepFailed) as failed:
        target.write(root, "/etc/a/f", b"", mode=0o600, step=STEP)
    assert failed.value.code is Code.TARGET_IO


def test_too_large_and_special_files_are_not_read(tmp_path: Path) -> None:
    root, _ = tree(tmp_path)
    (root / "etc/big").write_bytes(b"x" * 101)
    os.mkfifo(root / "etc/pipe")
    for name in ("big", "pipe"):
        with pytest.raises(StepFailed):
            target.read(root, f"/etc/{name}", limit=100, step=STEP)
    assert target.read(root, "/etc/big", limit=101, step=STEP) == b"x" * 101
