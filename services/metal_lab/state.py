"""The lab's state directory: where everything lives, so that a lab that was killed starts again on it.

lab.lock        held (flock) by the process that runs the lab, for as long as it lives; its text is the pid
lab.json        what runs where, written when it changed; readers take it for a hint, not for proof
context.json    how metalctl reaches the lab, with a token (0600)
ports.json      the ports that were chosen for everything
rack.yaml       the rack file that the lab was made with
pki/            the lab's authority and everybody's certificates
secrets.json    keys and passwords that have to survive a restart (0600)
postgres/ nats/ leaves/ machines/ images/ log/
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from metal_lab.servers.ports import free_ports

# A socket's path may have 107 bytes (unix(7)); the longest below the parent is `run/<20>/redis.sock`.
MAX_SOCKET_PARENT = 70
MAX_TEMPORARY_PARENT = 40
LOCK_SECONDS = 1.0
# What a lab makes in its directory, and so all that `destroy` takes away.
OWN = ("lab.lock", "lab.json", "context.json", "ports.json", "rack.yaml", "secrets.json", "pki", "postgres", "nats",
       "leaves", "machines", "images", "log", "run")  # fmt: skip
VARIABLE = "METALPLANE_LAB"
DEFAULT = ".lab"
# Either tells that a lab was made here; the lock comes first, before anything that other programs might call the same.
_MARKS = ("lab.lock", "lab.json")


def state_directory(given: Path | None = None) -> Path:
    """The directory that was asked for: by argument, by METALPLANE_LAB, or `.lab` here."""
    return (given or Path(os.environ.get(VARIABLE, DEFAULT))).absolute()


class StateInUse(Exception):
    """A living process runs a lab in this directory; the text names it."""


class StateUnusable(Exception):
    """The directory cannot hold a lab's state; the text says why."""


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

        Checkouts live in deep places, and so may the directory for temporary files.
        """
        if len(os.fsencode(self.directory)) <= MAX_SOCKET_PARENT:
            return self.path("run")
        name = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:12]
        parent = Path(tempfile.gettempdir())
        if len(os.fsencode(parent)) > MAX_TEMPORARY_PARENT:
            parent = Path("/tmp")  # noqa: S108 - `prepare` takes no directory that is not ours alone
        return parent / f"metalplane-{os.getuid()}-{name}"

    @property
    def control_socket(self) -> Path:
        """Where the running lab listens for questions and faults."""
        return self.sockets / "control.sock"

    @property
    def exists(self) -> bool:
        """Whether a lab was ever made here."""
        return any(self.path(name).exists() for name in _MARKS)

    def prepare(self) -> None:
        """Make the directories, for their owner only: they hold keys and sockets. Raises StateUnusable."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o711)
            self._check()
            # The mark first: a start that is cut off here leaves a directory that the next one recognises.
            self.path("lab.lock").touch(mode=0o600)
            self.path("log").mkdir(exist_ok=True, mode=0o700)
            self.sockets.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._check()
        except OSError as error:
            place = error.filename or self.directory
            raise StateUnusable(f"{place}: {error.strerror}; name another place with --state") from None

    def obstacle(self) -> str:
        """Why no lab can live here although the directory could be made; empty when nothing stands in the way."""
        try:
            self._check()
        except (StateUnusable, OSError) as error:
            return str(error)
        return ""

    def _check(self) -> None:
        # A lab in somebody's project would mix with its `log` and `images`, and `destroy` would take these away.
        theirs = [] if self.exists else [name for name in OWN if os.path.lexists(self.path(name))]
        if theirs:
            raise StateUnusable(
                f"{self.directory}: no lab was made here, but there is {', '.join(theirs)}; "
                "name an empty directory, or one that is not there yet, with --state"
            )
        # In the directory for temporary files somebody else could have been faster, and would own our sockets.
        with contextlib.suppress(FileNotFoundError):
            found = self.sockets.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
                raise StateUnusable(f"{self.sockets}: is not a directory of yours alone; remove it")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory; the kernel lets go of it when the process ends, however it ends.

        Raises StateInUse when another process holds it.
        """
        self.prepare()
        descriptor = os.open(self.path("lab.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            limit = time.monotonic() + LOCK_SECONDS
            # Again for a moment: whoever asks `holder` takes the lock for an instant.
            while not _locked(descriptor, fcntl.LOCK_EX):
                if time.monotonic() > limit:
                    raise StateInUse(f"{self.directory} is in use by process {self.holder()}; `metal-lab down` ends it")
                time.sleep(0.02)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            yield
        finally:
            os.close(descriptor)

    def holder(self) -> int:
        """Pid of the living process that holds the directory, 0 when there is none."""
        try:
            descriptor = os.open(self.path("lab.lock"), os.O_RDWR)
        except OSError:
            return 0
        try:
            if _locked(descriptor, fcntl.LOCK_SH):
                return 0
            return int(os.read(descriptor, 20) or b"0") or -1
        except ValueError:
            return -1
        finally:
            os.close(descriptor)

    def delete(self) -> list[str]:
        """Delete what a lab made here, and the directory when nothing else is in it; answers what else is."""
        if not self.directory.is_dir():
            return []
        shutil.rmtree(self.sockets, ignore_errors=True)
        for name in OWN:
            path = self.path(name)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for name in ("lab.json", "context.json", "ports.json", "secrets.json", "rack.yaml"):
            for temporary in self.directory.glob(f".{name}.[0-9]*"):
                temporary.unlink(missing_ok=True)
        others = sorted(path.name for path in self.directory.iterdir())
        if not others:
            self.directory.rmdir()
        return others

    def keep_rack_file(self, source: Path) -> Path:
        """Keep the rack file with the state that is made from it, so that a restart uses the same."""
        self.prepare()
        kept = self.path("rack.yaml")
        if source != kept:
            temporary = kept.with_name(f".{kept.name}.{os.getpid()}")
            temporary.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
            temporary.replace(kept)
        return kept

    def ports(self, names: Sequence[str]) -> dict[str, int]:
        """A port for each name, chosen once: addresses that the plane has stored hold after a restart.

        Raises StateUnusable when the file is damaged: other ports would send machines to nobody.
        """
        found: dict[str, int] = self.known_ports()
        if missing := [name for name in names if name not in found]:
            found |= dict(zip(missing, free_ports(len(missing)), strict=True))
            self._write("ports.json", found)
        return {name: found[name] for name in names}

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
        """The ports that an earlier start chose. Raises StateUnusable when the file is damaged."""
        found = self._read_needed("ports.json")
        if not all(type(port) is int and 0 < port < 65536 for port in found.values()):
            raise self._damaged("ports.json", "does not give each name a port")
        return dict(found)

    def context(self) -> dict[str, Any] | None:
        """How metalctl reaches the lab; None before the first start."""
        return self._read("context.json")

    def secrets(self) -> dict[str, str]:
        """Secrets of this lab, made once. Raises StateUnusable when the file is damaged: what is in the database was
        encrypted with them."""
        found = self._read_needed("secrets.json")
        wanted = ("bmc_password", "bmc_key", "boot_key", "paging_key", "postgres_password", "nats_password")
        if missing := [name for name in wanted if name not in found]:
            # 16 characters: IPMI 2.0 allows 20, but not every BMC does.
            found |= {name: secrets.token_hex(32 if name.endswith("_key") else 8) for name in missing}
            self._write("secrets.json", found)
        return {name: str(found[name]) for name in wanted}

    def _read(self, name: str) -> dict[str, Any] | None:
        """What is written anew at each start: a damaged file is as good as none."""
        try:
            content = json.loads(self.path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return content if isinstance(content, dict) else None

    def _read_needed(self, name: str) -> dict[str, Any]:
        """What has to outlive a restart; empty when there is no such file. Raises StateUnusable when it is damaged."""
        try:
            content = json.loads(self.path(name).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise self._damaged(name, f"cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise self._damaged(name, "is not JSON") from None
        if not isinstance(content, dict):
            raise self._damaged(name, "is not a JSON object")
        return content

    def _damaged(self, name: str, how: str) -> StateUnusable:
        return StateUnusable(
            f"{self.path(name)} {how}, and the rest of the state depends on it; "
            "put it back, or begin anew with `metal-lab destroy --yes`"
        )

    def _write(self, name: str, content: dict[str, Any]) -> Path:
        """Through a temporary file, so that a reader, or a kill, never meets half of it."""
        path = self.path(name)
        temporary = path.with_name(f".{name}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        temporary.replace(path)
        return path


def short(name: str) -> str:
    """A name that fits into a socket's path: itself, or its beginning and a hash."""
    if len(name) <= 20:
        return name
    return f"{name[:11]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _locked(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
