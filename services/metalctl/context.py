"""Contexts: which plane metalctl talks to, and as whom.

A context is a JSON file: `endpoints` (address by service) or one `endpoint` for all of them behind an edge proxy, paths
of `ca`, `cert` and `key`, and the bearer `token`. Services are known by their own names, wherever they run; the edge is
known by the host in `endpoint`, or by `server_name` where it is reached at another address than its certificate says.
The first context that exists is taken: --context, $METALPLANE_CONTEXT, `.lab/context.json` here,
`metalplane/context.json` in the user's configuration directory. $METALPLANE_TOKEN goes before the file's token.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metal_kit.endpoint import parse_endpoint

VARIABLE = "METALPLANE_CONTEXT"
TOKEN_VARIABLE = "METALPLANE_TOKEN"  # noqa: S105 - a variable's name
SERVICES = ("tenancy", "inventory", "ipam", "allocation", "fabric", "bmc", "boot")
# RFC 6750, section 2.1: what a bearer token is made of. Anything else does not survive a header.
TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


class ContextError(Exception):
    """No usable context; the text says where one was looked for and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Context:
    """A plane and a bearer. `token_source` says where the token came from, `warning` what its owner ought to change."""

    path: Path
    name: str
    endpoints: dict[str, str]
    ca: Path
    cert: Path
    key: Path
    token: str = field(repr=False)
    token_source: str = ""
    server_names: dict[str, str] = field(default_factory=dict)
    warning: str = ""


def load(given: Path | None, *, stored: bool = False) -> Context:
    """Read the context. `stored`: with the token of the file, if it has one, whatever the environment says.

    Raises ContextError.
    """
    path = _find(given)
    content, warning = _read(path)
    endpoints, server_names = _endpoints(path, content)
    named = "" if stored else os.environ.get(TOKEN_VARIABLE, "").strip()
    token = named or str(content.get("token") or "").strip()
    missing = [name for name in ("ca", "cert", "key") if not content.get(name)]
    missing += ["token"] if not (token or stored) else []
    if missing or not endpoints:
        advice = "; log in: metalctl login" if missing == ["token"] and endpoints else ""
        raise ContextError(f"{path}: lacks {', '.join(missing) or 'endpoints'}{advice}")
    source = f"${TOKEN_VARIABLE}" if named else str(path)
    if token and TOKEN.fullmatch(token) is None:
        raise ContextError(f"{source}: token: has characters that no token has; copy it again")
    files = {name: path.parent / str(content[name]) for name in ("ca", "cert", "key")}
    for name, file in files.items():
        _check_pem(path, name, file)
    return Context(
        path=path,
        name=str(content.get("name", path.stem)),
        endpoints=endpoints,
        **files,
        token=token,
        token_source=source,
        server_names=server_names,
        warning="" if named else warning,
    )


def _check_pem(path: Path, name: str, file: Path) -> None:
    """The transport says of a file that it cannot use no more than that the connection failed."""
    try:
        usable = b"-----BEGIN " in file.read_bytes()
    except OSError as error:
        raise ContextError(f"{path}: {name}: {file}: {error.strerror}") from None
    if not usable:
        raise ContextError(f"{path}: {name}: {file}: is not a PEM file")


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """The file's content, and a warning when it has a token that others on this computer can read."""
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = json.load(file)
    except OSError as error:
        raise ContextError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise ContextError(f"{path}: is not JSON") from None
    if not isinstance(content, dict):
        raise ContextError(f"{path}: has to be a JSON object")
    if mode & 0o077 and content.get("token"):
        return content, f"{path} has a token that others can read (mode {mode:04o}); chmod 600 it"
    return content, ""


def _endpoints(path: Path, content: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Addresses by service, and the names of those that are not known by their own."""
    given = content.get("endpoints") or {}
    if not isinstance(given, dict):
        raise ContextError(f"{path}: endpoints: has to be an object, an address for each service")
    endpoints = {str(service): str(address) for service, address in given.items()}
    for service, address in endpoints.items():
        _parsed(path, f"endpoints.{service}", address)
    server_names: dict[str, str] = {}
    if edge := str(content.get("endpoint") or ""):
        host = _parsed(path, "endpoint", edge)
        behind = [service for service in SERVICES if service not in endpoints]
        server_names = dict.fromkeys(behind, str(content.get("server_name") or host))
        endpoints |= dict.fromkeys(behind, edge)
    return endpoints, server_names


def _parsed(path: Path, name: str, endpoint: str) -> str:
    """The host of an endpoint."""
    try:
        host, port = parse_endpoint(endpoint)
    except ValueError as error:
        raise ContextError(f"{path}: {name}: {error}") from None
    if not port:
        raise ContextError(f"{path}: {name}: port of {endpoint!r} must be a number from 1 to 65535")
    return host


def _find(given: Path | None) -> Path:
    if given is not None:
        return given
    if named := os.environ.get(VARIABLE):
        return Path(named)
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    places = [Path(".lab/context.json"), home / "metalplane" / "context.json"]
    for place in places:
        if place.exists():
            return place
    looked = " and ".join(str(place) for place in places)
    raise ContextError(f"no context: looked for {looked}; start the lab with `make lab`, or name one with --context")
