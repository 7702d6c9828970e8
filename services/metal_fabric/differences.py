"""What differs between two desired states, for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from metal_fabric.desired import DesiredPort, DesiredState, DesiredVrf

_LISTS = {"ports": "port", "vrfs": "vrf"}


@dataclass(frozen=True)
class Difference:
    """`object` is `switch`, `port <name>` or `vrf <name>`; `field` is empty when the object itself comes or goes.
    `before` and `after` are empty for what is not there."""

    object: str
    field: str
    before: str
    after: str


def differences(before: DesiredState | None, after: DesiredState) -> list[Difference]:
    """What differs, the switch itself first, then its ports and VRFs in the order of the states. Everything of `after`
    is new when there is nothing before it."""
    found = [] if before is None else list(_fields("switch", before, after))
    for name, kind in _LISTS.items():
        old = {} if before is None else {each.name: each for each in getattr(before, name)}
        found += _objects(kind, old, {each.name: each for each in getattr(after, name)})
    return found


def _objects(
    kind: str, old: Mapping[str, DesiredPort | DesiredVrf], new: Mapping[str, DesiredPort | DesiredVrf]
) -> Iterator[Difference]:
    for name in [*new, *(name for name in old if name not in new)]:
        if name not in new:
            yield Difference(f"{kind} {name}", "", _summary(old[name]), "")
        elif name not in old:
            yield Difference(f"{kind} {name}", "", "", _summary(new[name]))
        else:
            yield from _fields(f"{kind} {name}", old[name], new[name])


def _fields(thing: str, before: Any, after: Any) -> Iterator[Difference]:
    for name in _names(before):
        old, new = getattr(before, name), getattr(after, name)
        if name not in _LISTS and old != new:
            yield Difference(thing, name, _text(old), _text(new))


def _summary(thing: DesiredPort | DesiredVrf) -> str:
    values = ((name, _text(getattr(thing, name))) for name in _names(thing) if name != "name")
    return ", ".join(f"{name} {value}" for name, value in values if value)


def _names(thing: DesiredState | DesiredPort | DesiredVrf) -> tuple[str, ...]:
    return tuple(each.name for each in fields(thing)) if isinstance(thing, DesiredState) else thing._fields


def _text(value: object) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value or "")
