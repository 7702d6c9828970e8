"""What a simulated machine is made of. Its shapes are those that the installer's hardware protocol asks for.

Plain values without behaviour; the installer's package is not imported, a test checks that the shapes fit.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Cpu:
    """One processor package."""

    vendor: str = "GenuineIntel"
    model: str = "Intel(R) Xeon(R) D-2141I CPU @ 2.20GHz"
    cores: int = 8
    threads: int = 16


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator."""

    vendor: str
    model: str


@dataclass(frozen=True, slots=True)
class Nic:
    """One network interface."""

    name: str
    mac: str
    driver: str = "i40e"
    pci_address: str = ""
    speed_mbps: int = 25_000


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What the other end of a cable says by LLDP."""

    chassis_id: str
    port_id: str
    port_description: str = ""
    system_name: str = ""
    system_description: str = ""


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk; `kind` is `nvme`, `ssd` or `hdd`."""

    device: str
    serial: str
    kind: str = "nvme"
    size_bytes: int = 480 * 10**9
    model: str = "Simulated"
    wwn: str = ""
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Firmware:
    """BIOS or UEFI."""

    vendor: str = "American Megatrends Inc."
    version: str = "1.4"
    date: str = "03/04/2026"


@dataclass(frozen=True, slots=True)
class Bmc:
    """The BMC as seen from inside."""

    address: str
    mac: str = ""
    version: str = "1.74"


@dataclass(frozen=True, slots=True)
class Board:
    """Serial and part numbers."""

    product_manufacturer: str = "Supermicro"
    product_name: str = "SYS-E300"
    product_serial: str = ""
    board_manufacturer: str = "Supermicro"
    board_name: str = "X11SDV-8C-TP8F"
    board_serial: str = ""
    chassis_serial: str = ""


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """All of one machine."""

    uuid: str
    nics: tuple[Nic, ...]
    disks: tuple[Disk, ...]
    memory_bytes: int = 64 * 1024**3
    cpus: tuple[Cpu, ...] = (Cpu(),)
    gpus: tuple[Gpu, ...] = ()
    firmware: Firmware = field(default_factory=Firmware)
    bmc: Bmc | None = None
    board: Board = field(default_factory=Board)


@dataclass(frozen=True, slots=True)
class Completed:
    """How a program ended."""

    returncode: int
    stdout: bytes = b""
    stderr: bytes = b""
