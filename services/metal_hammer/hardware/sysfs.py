"""Inspection of a Linux machine from /sys and /proc. Reads files below a given root, so that tests can bring a tree.

A file that is missing or unreadable leaves its fact empty; only a machine without a UUID cannot be inspected. Which
disks are listed matters most: what is not listed is not wiped, so only devices that cannot hold a tenant's data are
left out.
"""

from __future__ import annotations

import re
from pathlib import Path

from metal_hammer.hardware.facts import Board, Cpu, Disk, Facts, Firmware, Gpu, Nic

_SECTOR = 512  # /sys/block/*/size counts in these whatever the disk's own sector size is
_NO_DISKS = re.compile(r"(loop|ram|zram|dm-|md|sr|fd|nbd|mtdblock)\d*|nvme\d+c\d+n\d+|mmcblk\d+(boot|rpmb)\d*")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ETHERNET = "1"  # ARPHRD_ETHER
_GPU_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}


def inspect(root: Path = Path("/")) -> Facts:
    """All facts that files tell. Raises OSError when the firmware gives no usable UUID."""
    dmi = root / "sys/class/dmi/id"
    uuid = _text(dmi / "product_uuid").lower()
    if not _UUID.fullmatch(uuid) or set(uuid) <= set("0-") or set(uuid) <= set("f-"):
        raise OSError(f"the firmware gives no usable UUID but {uuid!r}")
    return Facts(
        uuid=uuid,
        memory_bytes=memory(root),
        cpus=cpus(_text(root / "proc/cpuinfo")),
        gpus=gpus(root),
        nics=nics(root),
        disks=disks(root),
        firmware=Firmware(_text(dmi / "bios_vendor"), _text(dmi / "bios_version"), _text(dmi / "bios_date")),
        board=Board(
            product_manufacturer=_text(dmi / "sys_vendor"),
            product_name=_text(dmi / "product_name"),
            product_serial=_text(dmi / "product_serial"),
            board_manufacturer=_text(dmi / "board_vendor"),
            board_name=_text(dmi / "board_name"),
            board_serial=_text(dmi / "board_serial"),
            chassis_serial=_text(dmi / "chassis_serial"),
        ),
    )


def memory(root: Path) -> int:
    """Bytes of installed memory: whole memory blocks, because MemTotal shrinks with every kernel that reserves more."""
    base = root / "sys/devices/system/memory"
    block = _text(base / "block_size_bytes")
    online = sum(_text(path) == "online" for path in base.glob("memory[0-9]*/state"))
    if block and online:
        return int(block, 16) * online
    match = re.search(r"^MemTotal:\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    return int(match.group(1)) * 1024 if match else 0


def cpus(cpuinfo: str) -> tuple[Cpu, ...]:
    """One entry a socket, from the text of /proc/cpuinfo."""
    sockets: dict[str, Cpu] = {}
    for paragraph in cpuinfo.split("\n\n"):
        pairs = (line.partition(":") for line in paragraph.splitlines())
        values = {name.strip(): value.strip() for name, _, value in pairs}
        if "processor" not in values:
            continue
        threads = _number(values.get("siblings", "1"))
        cores = _number(values.get("cpu cores", "1"))
        sockets.setdefault(
            values.get("physical id", "0"),
            Cpu(values.get("vendor_id", ""), values.get("model name", ""), cores, max(threads, cores)),
        )
    return tuple(sockets[socket] for socket in sorted(sockets, key=_number))


def gpus(root: Path) -> tuple[Gpu, ...]:
    """Display controllers and 3D controllers of known makers; a BMC's graphics chip is none."""
    found = []
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        vendor = _GPU_VENDORS.get(_text(device / "vendor"))
        if vendor and _text(device / "class").startswith(("0x0300", "0x0302")):
            found.append(Gpu(vendor, _text(device / "device")))
    return tuple(found)


def nics(root: Path) -> tuple[Nic, ...]:
    """Ethernet interfaces with hardware behind them, by name."""
    found = []
    for path in sorted((root / "sys/class/net").glob("*")):
        device = path / "device"
        if not device.exists() or _text(path / "type") != _ETHERNET:
            continue
        found.append(
            Nic(
                name=path.name,
                mac=_text(path / "address").lower(),
                driver=_link_name(device / "driver"),
                pci_address=_link_name(device),
                speed_mbps=max(0, _number(_text(path / "speed"))),
            )
        )
    return tuple(found)


def disks(root: Path) -> tuple[Disk, ...]:
    """Whole disks that could hold data, by name. Removable media (virtual ones of the BMC) are left out."""
    found = []
    for path in sorted((root / "sys/block").glob("*")):
        size = _number(_text(path / "size")) * _SECTOR
        if _NO_DISKS.fullmatch(path.name) or size == 0:
            continue
        if _text(path / "removable") == "1" or _text(path / "hidden") == "1":
            continue
        wwn = _text(path / "wwid") or _text(path / "device/wwid")
        found.append(
            Disk(
                device=f"/dev/{path.name.replace('!', '/')}",
                serial=_serial(path) or wwn[:128],
                kind=_kind(path),
                size_bytes=size,
                model=_text(path / "device/model"),
                wwn=wwn,
                read_only=_text(path / "ro") == "1",
            )
        )
    return tuple(found)


def _kind(path: Path) -> str:
    if path.name.startswith("nvme"):
        return "nvme"
    # A disk that does not say counts as a rotating one: its last resort, the overwrite, is right for every disk.
    return "ssd" if _text(path / "queue/rotational") == "0" else "hdd"


def _serial(path: Path) -> str:
    """Serial number: NVMe and virtio have a file, SCSI and SATA have VPD page 0x80 (SPC-4, 7.8.18)."""
    for name in ("device/serial", "serial"):
        if text := _text(path / name):
            return text[:128]
    try:
        page = (path / "device/vpd_pg80").read_bytes()
    except OSError:
        return ""
    if len(page) < 4 or page[1] != 0x80:
        return ""
    length = int.from_bytes(page[2:4], "big")
    return _clean(page[4 : 4 + length].decode("ascii", errors="ignore"))[:128]


def _text(path: Path) -> str:
    try:
        return _clean(path.read_text(errors="replace"))
    except OSError:
        return ""


def _clean(text: str) -> str:
    return text.replace("\x00", "").strip()


def _link_name(path: Path) -> str:
    return path.resolve().name if path.exists() else ""


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0
