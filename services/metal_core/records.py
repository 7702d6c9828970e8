"""JSON-compatible values → frozen dataclasses, with errors that name the place.

Made for what people write by hand and for files of older and newer agents: a field with a default may be missing.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

Record = TypeVar("Record")
_NAMES = {str: "a text", int: "a whole number", bool: "true or false"}


class BadRecord(ValueError):
    """The data has another shape; the message names the field and what it should be."""


def read_record(kind: type[Record], data: object, where: str = "", *, strict: bool = False) -> Record:
    """The `kind` that `data` describes. Raises BadRecord; with `strict` also for fields that `kind` does not have."""
    if not isinstance(data, Mapping):
        raise BadRecord(f"{where or 'the state'}: must be an object with named fields")
    values: dict[str, Any] = {}
    for name, (hint, required) in _shape(cast(Hashable, kind)).items():
        place = f"{where}.{name}" if where else name
        if name in data:
            values[name] = _value(hint, data[name], place, strict)
        elif required:
            raise BadRecord(f"{place}: is missing")
    if strict and (unknown := sorted(set(data) - set(_shape(cast(Hashable, kind))))):
        place = f"{where}.{unknown[0]}" if where else unknown[0]
        raise BadRecord(f"{place}: there is no such field; there are {', '.join(_shape(cast(Hashable, kind)))}")
    return kind(**values)


@cache
def _shape(kind: Hashable) -> dict[str, tuple[Any, bool]]:
    """The fields of a dataclass: the type of each, and whether it has to be given."""
    hints = get_type_hints(cast(type, kind))
    return {
        each.name: (hints[each.name], each.default is MISSING and each.default_factory is MISSING)
        for each in fields(cast(Any, kind))
    }


def _value(hint: Any, data: object, where: str, strict: bool) -> Any:
    if get_origin(hint) is tuple:
        if not isinstance(data, list | tuple):
            raise BadRecord(f"{where}: must be a list")
        return tuple(_value(get_args(hint)[0], item, f"{where}[{at}]", strict) for at, item in enumerate(data))
    if is_dataclass(hint):
        return read_record(cast(type, hint), data, where, strict=strict)
    if issubclass(hint, StrEnum):
        known = [member.value for member in hint]
        if data not in known:
            raise BadRecord(f"{where}: {data!r} is not one of {', '.join(repr(each) for each in known)}")
        return hint(data)
    # A bool is an int in Python, but `true` is no number to whoever wrote the file.
    if type(data) is not hint:
        raise BadRecord(f"{where}: {data!r} must be {_NAMES[hint]}")
    return data
