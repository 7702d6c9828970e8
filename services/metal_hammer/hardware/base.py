"""The hardware backend: everything that the installer asks of the machine below it.

Two backends exist: real Linux (`linux.py`), and simulated machines, which live outside of this package and implement
these protocols by their shape alone. That is why every type here is a protocol with read-only members: a backend brings
its own data classes. Nothing here decides what is done to a disk; the backend only does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable


class Cpu(Protocol):
    """One processor package."""

    @property
    def vendor(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def cores(self) -> int: ...
    @property
    def threads(self) -> int: ...


class Gpu(Protocol):
    """One display or compute accelerator on the PCI bus."""

    @property
    def vendor(self) -> str: ...
    @property
    def model(self) -> str: ...


class Neighbour(Protocol):
    """What one LLDP frame said about the other end of a cable (IEEE 802.1AB)."""

    @property
    def chassis_id(self) -> str: ...
    @property
    def port_id(self) -> str: ...
    @property
    def port_description(self) -> str: ...
    @property
    def system_name(self) -> str: ...
    @property
    def system_description(self) -> str: ...


class Nic(Protocol):
    """One network interface; `speed_mbps` is 0 when the link is down or the driver does not say."""

    @property
    def name(self) -> str: ...
    @property
    def mac(self) -> str: ...
    @property
    def driver(self) -> str: ...
    @property
    def pci_address(self) -> str: ...
    @property
    def speed_mbps(self) -> int: ...


class Disk(Protocol):
    """One whole disk. `kind` is `nvme`, `ssd` or `hdd`; `device` is its path, such as /dev/nvme0n1."""

    @property
    def device(self) -> str: ...
    @property
    def serial(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def wwn(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def read_only(self) -> bool: ...


class Firmware(Protocol):
    """BIOS or UEFI, from DMI table type 0."""

    @property
    def vendor(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def date(self) -> str: ...


class Bmc(Protocol):
    """The baseboard management controller as seen from inside; never a password."""

    @property
    def address(self) -> str: ...
    @property
    def mac(self) -> str: ...
    @property
    def version(self) -> str: ...


class Board(Protocol):
    """The serial and part numbers of DMI tables type 1, 2 and 3."""

    @property
    def product_manufacturer(self) -> str: ...
    @property
    def product_name(self) -> str: ...
    @property
    def product_serial(self) -> str: ...
    @property
    def board_manufacturer(self) -> str: ...
    @property
    def board_name(self) -> str: ...
    @property
    def board_serial(self) -> str: ...
    @property
    def chassis_serial(self) -> str: ...


class Facts(Protocol):
    """All that inspection found. `uuid` is the SMBIOS UUID in lower case."""

    @property
    def uuid(self) -> str: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def cpus(self) -> Sequence[Cpu]: ...
    @property
    def gpus(self) -> Sequence[Gpu]: ...
    @property
    def nics(self) -> Sequence[Nic]: ...
    @property
    def disks(self) -> Sequence[Disk]: ...
    @property
    def firmware(self) -> Firmware: ...
    @property
    def bmc(self) -> Bmc | None: ...
    @property
    def board(self) -> Board: ...


class Completed(Protocol):
    """How an external program ended. Output is cut to its last 64 KiB."""

    @property
    def returncode(self) -> int: ...
    @property
    def stdout(self) -> bytes: ...
    @property
    def stderr(self) -> bytes: ...


@runtime_checkable
class Hardware(Protocol):
    """The machine. All methods may be cancelled; none retries by itself."""

    @property
    def target(self) -> Path:
        """Directory where the file systems of the system being installed are mounted."""

    def checkpoint(self, step: str = "") -> None:
        """Called between the chunks of long local work, and with its name when a `step` begins.

        A real machine that loses its power simply stops here; a simulated one has to raise, or its installer would
        go on working on the disks of a machine that is off.
        """

    async def facts(self) -> Facts:
        """Inspect the machine. Raises OSError when the machine has no readable UUID."""

    async def neighbours(self, *, within: float, enough: int) -> Mapping[str, Sequence[Neighbour]]:
        """LLDP neighbours by interface name, after `enough` interfaces heard one or `within` seconds passed."""

    async def run(self, argv: Sequence[str], *, deadline: float, stdin: bytes = b"") -> Completed:
        """Run a program to its end. A missing program is exit code 127, as in a shell.

        Raises TimeoutError after `deadline` seconds; the program has then been killed.
        """

    async def read_at(self, device: str, offset: int, length: int) -> bytes:
        """Read from a whole disk past every cache, so that what comes back is what the disk holds."""

    async def write_at(self, device: str, offset: int, data: bytes) -> None:
        """Write to a whole disk. Raises OSError."""

    async def flush(self, device: str) -> None:
        """Force everything written to `device` onto the medium. Raises OSError."""

    async def kexec_load(self, kernel: Path, initrd: Path | None, command_line: str) -> None:
        """Load a kernel into memory, so that the disks can be unmounted before it starts. Raises OSError."""

    async def kexec(self) -> None:
        """Start the loaded kernel. Does not return on success; a simulated machine raises instead."""

    async def reboot(self) -> None:
        """Reset the machine. Does not return on success; a simulated machine raises instead."""
