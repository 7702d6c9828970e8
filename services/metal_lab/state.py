"""The lab's state directory: where everything lives, so that a lab that was killed starts again on it.

lab.json        what runs where, written when it changed; readers take it for a hint, not for proof
context.json    how metalctl reaches the lab, with a token (0600)
ports.json      the ports that were chosen for everything
rack.yaml       the rack file that the lab was made with
pki/            the lab's authority and everybody's certificates
secrets.json    keys and passwords that have to survive a restart (0600)
postgres/ nats/ leaves/ machines/ images/ log/
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from metal_lab.servers.ports import free_ports

MAX_SOCKET_PARENT = 60
VARIABLE = "METALPLANE_LAB"
DEFAULT = ".lab"


def state_directory(given: Path | None = None) -> Path:
    """The directory that was asked for: by argument, by METALPLANE_LAB, or `.lab` here."""
    return (given or Path(os.environ.get(VARIABLE, DEFAULT))).absolute()


@dataclass(slots=True)
class LabInfo:
    """What `lab.json` says."""

    pid: int = 0
    started: float = 0.0
    stage: str = "starting"
    error: str = ""
    rack: str = ""
    control: str = ""
    boot_url: str = ""
    processes: bool = False
    endpoints: dict[str, str] = field(default_factory=dict)


class State:
    """Paths and small files of one lab."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, *parts: str) -> Path:
        """A path below the state directory."""
        return self.directory.joinpath(*parts)

    @property
    def sockets(self) -> Path:
        """Where Unix sockets go: below the state directory, or in a short one when that is too deep.

        A socket's path may have 107 bytes (unix(7)), and checkouts live in deep places.
        """
        if len(str(self.directory).encode()) <= MAX_SOCKET_PARENT:
            return self.path("run")
        name = hashlib.sha256(str(self.directory).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"metalplane-{os.getuid()}-{name}"

    @property
    def control_socket(self) -> Path:
        """Where the running lab listens for questions and faults."""
        return self.sockets / "control.sock"

    def prepare(self) -> None:
        """Make the directories, for their owner only: they hold keys and sockets."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o711)
        self.path("log").mkdir(exist_ok=True, mode=0o700)
        self.sockets.mkdir(parents=True, exist_ok=True, mode=0o700)

    def keep_rack_file(self, source: Path) -> Path:
        """Keep the rack file with the state that is made from it, so that a restart uses the same."""
        self.prepare()
        kept = self.path("rack.yaml")
        if source != kept:
            kept.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
        return kept

    def ports(self, names: Sequence[str]) -> dict[str, int]:
        """A port for each name, chosen once: addresses that the plane has stored hold after a restart."""
        found = self._read("ports.json") or {}
        if missing := [name for name in names if name not in found]:
            found |= dict(zip(missing, free_ports(len(missing)), strict=True))
            self._write("ports.json", found)
        return {name: int(found[name]) for name in names}

    def info(self) -> LabInfo | None:
        """What the lab last said of itself; None when there is none."""
        found = self._read("lab.json")
        if found is None:
            return None
        known = LabInfo.__dataclass_fields__
        return LabInfo(**{name: value for name, value in found.items() if name in known})

    def write_info(self, info: LabInfo) -> None:
        """Say what runs where."""
        self._write("lab.json", asdict(info))

    def write_context(self, context: dict[str, Any]) -> Path:
        """Write how metalctl reaches the lab."""
        return self._write("context.json", context)

    def known_ports(self) -> dict[str, int]:
        """The ports that an earlier start chose."""
        return {name: int(port) for name, port in (self._read("ports.json") or {}).items()}

    def context(self) -> dict[str, Any] | None:
        """How metalctl reaches the lab; None before the first start."""
        return self._read("context.json")

    def secrets(self) -> dict[str, str]:
        """Secrets of this lab, made once."""
        found = self._read("secrets.json") or {}
        wanted = ("bmc_password", "bmc_key", "boot_key", "paging_key")
        if missing := [name for name in wanted if name not in found]:
            # 16 characters: IPMI 2.0 allows 20, but not every BMC does.
            found |= {name: secrets.token_hex(32 if name.endswith("_key") else 8) for name in missing}
            self._write("secrets.json", found)
        return {name: str(found[name]) for name in wanted}

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            content = json.loads(self.path(name).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return content if isinstance(content, dict) else None

    def _write(self, name: str, content: dict[str, Any]) -> Path:
        """Through a temporary file, so that a reader, or a kill, never meets half of it."""
        path = self.path(name)
        temporary = path.with_name(f".{name}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        temporary.replace(path)
        return path
