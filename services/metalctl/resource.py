"""What `list` and `get` need to know of a resource."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from metalctl.output import Columns


@dataclass(frozen=True, slots=True)
class Listing:
    """How a resource is listed. `filters` maps an option to a field of the request (dotted) and its help text; `flags`
    does so for those that are switched on only."""

    method: str
    request: Callable[..., Message]
    items: str
    columns: Columns
    filters: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    flags: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Getting:
    """How one object is fetched by its id. `options` maps further fields of the request, which are options too, to
    their help texts."""

    method: str
    request: Callable[..., Message]
    key: str = "id"
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource of the plane."""

    name: str
    help: str
    service: str
    stub: Callable[..., Any]
    listing: Listing
    getting: Getting | None = None
