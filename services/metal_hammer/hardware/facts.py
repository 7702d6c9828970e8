"""Plain values of the protocols in `base.py`, used by the Linux backend and by tests. No behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Cpu:
    """See `base.Cpu`."""

    vendor: str
    model: str
    cores: int
    threads: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """See `base.Gpu`."""

    vendor: str
    model: str


@dataclass(frozen=True, slots=True)
class Neighbour:
    """See `base.Neighbour`."""

    chassis_id: str
    port_id: str
    port_description: str = ""
    system_name: str = ""
    system_description: str = ""


@dataclass(frozen=True, slots=True)
class Nic:
    """See `base.Nic`."""

    name: str
    mac: str
    driver: str = ""
    pci_address: str = ""
    speed_mbps: int = 0


@dataclass(frozen=True, slots=True)
class Disk:
    """See `base.Disk`."""

    device: str
    serial: str
    kind: str
    size_bytes: int
    model: str = ""
    wwn: str = ""
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Firmware:
    """See `base.Firmware`."""

    vendor: str = ""
    version: str = ""
    date: str = ""


@dataclass(frozen=True, slots=True)
class Bmc:
    """See `base.Bmc`."""

    address: str
    mac: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Board:
    """See `base.Board`."""

    product_manufacturer: str = ""
    product_name: str = ""
    product_serial: str = ""
    board_manufacturer: str = ""
    board_name: str = ""
    board_serial: str = ""
    chassis_serial: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """See `base.Facts`."""

    uuid: str
    memory_bytes: int
    cpus: tuple[Cpu, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    nics: tuple[Nic, ...] = ()
    disks: tuple[Disk, ...] = ()
    firmware: Firmware = field(default_factory=Firmware)
    bmc: Bmc | None = None
    board: Board = field(default_factory=Board)


@dataclass(frozen=True, slots=True)
class Completed:
    """See `base.Completed`."""

    returncode: int
    stdout: bytes = b""
    stderr: bytes = b""
