"""Where SONiC keeps its databases: socket, numbers and separators from database_config.json.

The file is SONiC's (/var/run/redis/sonic-db/database_config.json). Where it is missing, SONiC's own defaults apply; a
file that is there but cannot be understood is an error, since the wrong numbers would write into another database.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT_SOCKET = "/var/run/redis/redis.sock"


class DatabaseConfigError(ValueError):
    """database_config.json is there but does not say what it should."""


@dataclass(frozen=True, slots=True)
class Location:
    """One database: its number, the separator of its keys, and the socket of the instance that holds it."""

    number: int
    separator: str
    socket: str


_DEFAULTS: Mapping[str, tuple[int, str]] = {
    "APPL_DB": (0, ":"),
    "ASIC_DB": (1, ":"),
    "COUNTERS_DB": (2, ":"),
    "CONFIG_DB": (4, "|"),
    "STATE_DB": (6, "|"),
}


def read(path: Path) -> dict[str, Location]:
    """The databases that the agent uses, by name. Raises DatabaseConfigError; blocking, for use at start."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return defaults(DEFAULT_SOCKET)
    except OSError as error:
        raise DatabaseConfigError(f"{path}: {error.strerror}") from error
    try:
        return _locations(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatabaseConfigError(f"{path}: not a SONiC database configuration ({error!r})") from error


def defaults(socket: str, offset: int = 0) -> dict[str, Location]:
    """SONiC's usual numbers on one socket; `offset` is added to each, for several simulated leaves on one server."""
    return {name: Location(number + offset, separator, socket) for name, (number, separator) in _DEFAULTS.items()}


def _locations(data: Mapping[str, Any]) -> dict[str, Location]:
    sockets = {name: str(instance["unix_socket_path"]) for name, instance in data["INSTANCES"].items()}
    found = {}
    for name in _DEFAULTS:
        entry = data["DATABASES"][name]
        found[name] = Location(int(entry["id"]), str(entry["separator"]), sockets[entry["instance"]])
    return found
