"""A tiny operating system image for simulated machines: everything that an installer looks at, nothing that runs."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

KERNEL = "boot/vmlinuz-6.12.0-sim"
INITRD = "boot/initrd.img-6.12.0-sim"

_INSTALLER = """#!/bin/sh
# Runs in a chroot after unpacking; says how the system is started.
set -eu
mkdir -p /etc/metal
cat > /etc/metal/boot-info.yaml <<END
kernel: /boot/vmlinuz-6.12.0-sim
initrd: /boot/initrd.img-6.12.0-sim
cmdline: root=LABEL=root ro console=ttyS0,115200n8
bootloader_id: metal
END
"""


@dataclass(frozen=True, slots=True)
class OsImage:
    """A built image archive."""

    path: Path
    sha256: str
    size_bytes: int


def build(
    path: Path, *, name: str = "simulated-13.0", padding: int = 0, extra: Mapping[str, bytes] | None = None
) -> OsImage:
    """Write a gzip-compressed tar to `path`. The same arguments give the same bytes. `padding` bytes make it larger."""
    files = {
        "etc/os-release": (f'NAME="{name}"\nID=simulated\n'.encode(), 0o644),
        "install.sh": (_INSTALLER.encode(), 0o755),
        KERNEL: (b"simulated kernel\n" * 64, 0o600),
        INITRD: (b"simulated initial ramdisk\n" * 64, 0o600),
        "usr/bin/true": (b"#!/bin/sh\n", 0o755),
    }
    if padding:
        # Does not compress, so that the archive has at least this size.
        files["usr/share/padding"] = (_noise(padding), 0o644)
    files |= {name: (content, 0o644) for name, content in (extra or {}).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for directory in ("boot", "etc", "root", "tmp", "usr", "usr/bin", "usr/share", "var"):
            member = tarfile.TarInfo(directory)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        link = tarfile.TarInfo("bin")
        link.type, link.linkname = tarfile.SYMTYPE, "usr/bin"
        tar.addfile(link)
        for member_name, (content, mode) in sorted(files.items()):
            member = tarfile.TarInfo(member_name)
            member.size, member.mode = len(content), mode
            tar.addfile(member, io.BytesIO(content))
    content = path.read_bytes()
    return OsImage(path, hashlib.sha256(content).hexdigest(), len(content))


def _noise(length: int) -> bytes:
    return hashlib.shake_128(b"padding").digest(length)
