"""iPXE scripts. Pure: text in, text out.

A script is read by iPXE line by line, and `${...}` in it is expanded. What comes from operators (URLs, command line)
may use expansion; line breaks are refused everywhere, because they would add commands.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

RAMDISK_NAME = "metal-initrd"
"""UEFI kernels find their ramdisk by the name that `initrd=` gives; without it they start without one."""


@dataclass(frozen=True, slots=True)
class BootConfig:
    """What machines of a partition boot when they boot the installer."""

    kernel_url: str
    initrd_url: str
    command_line: str = ""


@dataclass(frozen=True, slots=True)
class InstallerParameters:
    """What the installer learns from its kernel command line. The token is a secret until it has been used."""

    boot_url: str
    machine_id: str
    session: str
    token: str
    mode: str

    def words(self) -> list[str]:
        """The words to append to the command line. The token comes last: long lines are cut at their end."""
        return [
            f"metal.url={self.boot_url}",
            f"metal.machine={self.machine_id}",
            f"metal.session={self.session}",
            f"metal.mode={self.mode}",
            f"metal.token={self.token}",
        ]


def installer(config: BootConfig, parameters: InstallerParameters, *, reason: str) -> str:
    """Start the installer. Raises ValueError for a configuration that cannot be written as a script."""
    _check_url("kernel_url", config.kernel_url)
    _check_url("initrd_url", config.initrd_url)
    words = [f"initrd={RAMDISK_NAME}", *config.command_line.split(), *parameters.words()]
    return _script(
        reason,
        f"kernel {config.kernel_url} {' '.join(words)}",
        f"initrd --name {RAMDISK_NAME} {config.initrd_url}",
        "boot",
    )


def local_disk(*, reason: str) -> str:
    """Boot the local disk.

    Under UEFI a network boot that ends with an error makes the firmware try its next entry; under BIOS iPXE starts the
    first disk itself. A machine with nothing on its disks asks again.
    """
    return _script(
        reason,
        "iseq ${platform} efi && exit 1 ||",
        "sanboot --no-describe --drive 0x80 || exit 1",
    )


def again(*, reason: str, seconds: int = 30) -> str:
    """Show the reason on the console and ask again later."""
    return _script(reason, f"echo metalplane: {_line(reason)}", f"sleep {seconds}", "reboot")


def _script(reason: str, *commands: str) -> str:
    for command in commands:
        if _line(command) != command:
            raise ValueError("a line break inside of a command")
    return "\n".join(["#!ipxe", f"# {_line(reason)}", *commands]) + "\n"


def _line(text: str) -> str:
    """Text without line breaks and other control characters."""
    return "".join(char if char.isprintable() else " " for char in text)


def _check_url(name: str, url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or any(char.isspace() for char in url):
        raise ValueError(f"{name} must be an http(s) URL without white space")
