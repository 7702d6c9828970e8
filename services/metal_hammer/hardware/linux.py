"""The backend for real Linux machines: sysfs and /proc, packet sockets, block devices, external programs.

Needs root. Nothing here decides whether a disk may be touched; that is the grant's business.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from metal_kit.logs import get_logger

from metal_hammer.hardware import lldp_socket, process, sysfs
from metal_hammer.hardware.facts import Bmc, Completed, Facts, Neighbour

log = get_logger(__name__)

PROGRAMS = (
    "blkdiscard", "blkid", "chroot", "hdparm", "ip", "kexec", "lvm", "mdadm", "mkfs.ext3", "mkfs.ext4", "mkfs.vfat",
    "mkfs.xfs", "mkswap", "mount", "nvme", "partx", "sgdisk", "umount", "wipefs",
)  # fmt: skip
"""Programs that the ramdisk has to bring."""

OPTIONAL_PROGRAMS = ("ethtool", "ipmitool")
"""Programs without which a machine is still installed, and less is known of it."""

_ALIGNMENT = 4096  # direct I/O wants offset, length and memory aligned to the sector size
_LINK_DEADLINE = 10.0
_IPMI_DEADLINE = 15.0
_KEXEC_DEADLINE = 60.0


class LinuxHardware:
    """The machine that this process runs on. `root` is another directory than / in tests of the inspection only."""

    def __init__(self, *, target: Path = Path("/run/metal-hammer/target"), root: Path = Path("/")) -> None:
        self._target = target
        self._root = root
        self._facts: Facts | None = None

    @property
    def target(self) -> Path:
        """See `base.Hardware`."""
        return self._target

    def checkpoint(self, step: str = "") -> None:
        """A machine without power does not get here."""

    async def facts(self) -> Facts:
        """See `base.Hardware`."""
        found = await asyncio.to_thread(sysfs.inspect, self._root)
        self._facts = replace(found, bmc=await self._bmc())
        return self._facts

    async def neighbours(self, *, within: float, enough: int) -> Mapping[str, Sequence[Neighbour]]:
        """See `base.Hardware`. Sets the interfaces up first; some NICs answer LLDP themselves until told not to."""
        names = [nic.name for nic in (self._facts or await self.facts()).nics]
        for name in names:
            await self.run(("ip", "link", "set", "dev", name, "up"), deadline=_LINK_DEADLINE)
            await self.run(
                ("ethtool", "--set-priv-flags", name, "disable-fw-lldp", "on"), deadline=_LINK_DEADLINE
            )  # refused by NICs that have no such flag
        return await lldp_socket.hear(names, within=within, enough=enough)

    async def run(self, argv: Sequence[str], *, deadline: float, stdin: bytes = b"") -> Completed:
        """See `base.Hardware`."""
        done = await process.run(argv, deadline=deadline, stdin=stdin)
        log.info("program.ended", program=argv[0], code=done.returncode)
        return done

    async def read_at(self, device: str, offset: int, length: int) -> bytes:
        """See `base.Hardware`: direct I/O where the request is aligned, otherwise after the cache was dropped."""
        return await asyncio.to_thread(_read, device, offset, length)

    async def write_at(self, device: str, offset: int, data: bytes) -> None:
        """See `base.Hardware`."""
        await asyncio.to_thread(_write, device, offset, data)

    async def flush(self, device: str) -> None:
        """See `base.Hardware`."""
        await asyncio.to_thread(_flush, device)

    async def kexec_load(self, kernel: Path, initrd: Path | None, command_line: str) -> None:
        """See `base.Hardware`: the file-based system call first, which also works under secure boot."""
        arguments = (f"--command-line={command_line}", *((f"--initrd={initrd}",) if initrd else ()), str(kernel))
        said = ""
        for flags in (("-s", "-l"), ("-l",)):
            try:
                done = await self.run(("kexec", *flags, *arguments), deadline=_KEXEC_DEADLINE)
            except TimeoutError:
                raise OSError(f"kexec took longer than {_KEXEC_DEADLINE:.0f} s") from None
            if done.returncode == 0:
                return
            said = done.stderr.decode(errors="replace").strip()[-200:]
        raise OSError(f"kexec does not load {kernel}: {said}")

    async def kexec(self) -> None:
        """See `base.Hardware`. Raises OSError when the program comes back."""
        done = await self.run(("kexec", "-e"), deadline=_KEXEC_DEADLINE)
        raise OSError(f"kexec came back with {done.returncode}")

    async def reboot(self) -> None:
        """See `base.Hardware`: at once and without init, because this process is as good as init."""
        await asyncio.to_thread(_reset)

    async def _bmc(self) -> Bmc | None:
        """What the BMC says over the system interface, without credentials; None when there is none to talk to."""
        try:
            lan = await self.run(("ipmitool", "lan", "print"), deadline=_IPMI_DEADLINE)
            info = await self.run(("ipmitool", "mc", "info"), deadline=_IPMI_DEADLINE)
        except TimeoutError:
            log.warning("bmc.silent")
            return None
        return read_bmc(lan.stdout.decode(errors="replace"), info.stdout.decode(errors="replace"))


def read_bmc(lan: str, info: str) -> Bmc | None:
    """The BMC from the output of `ipmitool lan print` and `ipmitool mc info`; None when it has no address."""
    address = _field(lan, "IP Address")
    if not address or address == "0.0.0.0":
        return None
    return Bmc(f"{address}:623", _field(lan, "MAC Address").lower(), _field(info, "Firmware Revision"))


def _field(text: str, name: str) -> str:
    match = re.search(rf"^{re.escape(name)}\s*: *(\S+)", text, re.MULTILINE)
    return match.group(1) if match else ""


def _read(device: str, offset: int, length: int) -> bytes:
    if offset % _ALIGNMENT == 0 and length % _ALIGNMENT == 0 and length:
        descriptor = os.open(device, os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, length) as buffer:  # anonymous maps begin on a page
                count = os.preadv(descriptor, [buffer], offset)
                return buffer[:count]
        finally:
            os.close(descriptor)
    descriptor = os.open(device, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)


def _write(device: str, offset: int, data: bytes) -> None:
    # O_EXCL on a block device fails while the kernel uses it (mounted, in an array): better than to write under it.
    descriptor = os.open(device, os.O_WRONLY | os.O_EXCL)
    try:
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written
    finally:
        os.close(descriptor)


def _flush(device: str) -> None:
    descriptor = os.open(device, os.O_RDWR)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _reset() -> None:
    os.sync()
    trigger = os.open("/proc/sysrq-trigger", os.O_WRONLY)
    os.write(trigger, b"b")
