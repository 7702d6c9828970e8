"""The few lines of iPXE that boot writes, read as the BIOS firmware of a simulated machine would run them. Pure."""

from __future__ import annotations

from dataclasses import dataclass


class ScriptError(Exception):
    """The text is not a script that this firmware can run."""


@dataclass(frozen=True, slots=True)
class BootKernel:
    """Load this kernel with this command line."""

    url: str
    command_line: str


@dataclass(frozen=True, slots=True)
class BootLocal:
    """Leave the network boot: the next boot device is the local disk."""


@dataclass(frozen=True, slots=True)
class BootAgain:
    """Start over after so many seconds."""

    pause: float


Action = BootKernel | BootLocal | BootAgain
# Commands that change nothing which this reading looks at. `iseq` compares ${platform} with efi and a simulated machine
# has a BIOS, so what hangs on it with && is not run.
IGNORED = frozenset({"", "echo", "initrd", "set", "isset", "imgfree", "dhcp", "iseq"})


def run(script: str) -> Action:
    """What a script ends in. Raises ScriptError for anything that iPXE, or this reading of it, does not know."""
    lines = [line.strip() for line in script.splitlines()]
    if not lines or lines[0] != "#!ipxe":
        raise ScriptError("does not begin with #!ipxe")
    kernel: BootKernel | None = None
    pause = 0.0
    for line in lines[1:]:
        word, _, rest = line.partition(" ")
        if word in IGNORED or word.startswith(("#", ":")):
            continue
        match word:
            case "sleep":
                pause += float(rest.split()[0])
            case "kernel":
                url, _, command_line = rest.strip().partition(" ")
                kernel = BootKernel(url, command_line.strip())
            case "boot":
                if kernel is None:
                    raise ScriptError("boots without a kernel")
                return kernel
            case "exit" | "sanboot":
                return BootLocal()
            case "reboot":
                return BootAgain(pause)
            case _:
                raise ScriptError(f"has an unknown command {word!r}")
    raise ScriptError("ends without booting anything")
