"""Contexts: which plane metalctl talks to, and as whom.

A context is a JSON file: `endpoints` (address by service) or one `endpoint` for all of them behind an edge proxy, paths
of `ca`, `cert` and `key`, and the bearer `token`. Services are known by their own names, wherever they run; the edge is
known by the host in `endpoint`, or by `server_name` where it is reached at another address than its certificate says.
The first context that exists is taken: --context, $METALPLANE_CONTEXT, `.lab/context.json` here,
`metalplane/context.json` in the user's configuration directory.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from metal_kit.settings import parse_endpoint

VARIABLE = "METALPLANE_CONTEXT"
SERVICES = ("tenancy", "inventory", "ipam", "allocation", "fabric", "bmc")


class ContextError(Exception):
    """No usable context; the text says where one was looked for and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Context:
    """A plane and a bearer."""

    path: Path
    name: str
    endpoints: dict[str, str]
    ca: Path
    cert: Path
    key: Path
    token: str = field(repr=False)
    server_names: dict[str, str] = field(default_factory=dict)


def load(given: Path | None) -> Context:
    """Read the context. Raises ContextError."""
    path = _find(given)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ContextError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise ContextError(f"{path}: is not JSON") from None
    if not isinstance(content, dict):
        raise ContextError(f"{path}: has to be a JSON object")
    endpoints = dict(content.get("endpoints") or {})
    server_names: dict[str, str] = {}
    if edge := content.get("endpoint"):
        behind = [service for service in SERVICES if service not in endpoints]
        server_names = dict.fromkeys(behind, _edge_name(path, str(edge), content.get("server_name")))
        endpoints |= dict.fromkeys(behind, str(edge))
    missing = [name for name in ("ca", "cert", "key", "token") if not content.get(name)]
    if missing or not endpoints:
        raise ContextError(f"{path}: lacks {', '.join(missing) or 'endpoints'}")
    base = path.parent
    return Context(
        path=path,
        name=str(content.get("name", path.stem)),
        endpoints=endpoints,
        ca=base / str(content["ca"]),
        cert=base / str(content["cert"]),
        key=base / str(content["key"]),
        token=str(content["token"]),
        server_names=server_names,
    )


def _edge_name(path: Path, endpoint: str, given: object) -> str:
    """The name that the edge's certificate has to carry."""
    try:
        host, _ = parse_endpoint(endpoint)
    except ValueError as error:
        raise ContextError(f"{path}: endpoint: {error}") from None
    return str(given or host)


def _find(given: Path | None) -> Path:
    if given is not None:
        return given
    if named := os.environ.get(VARIABLE):
        return Path(named)
    home = Path(os.environ.get("XDG_CONFIG_HOME", Path.home() / ".config"))
    places = [Path(".lab/context.json"), home / "metalplane" / "context.json"]
    for place in places:
        if place.exists():
            return place
    looked = " and ".join(str(place) for place in places)
    raise ContextError(f"no context: looked for {looked}; start the lab with `make lab`, or name one with --context")
