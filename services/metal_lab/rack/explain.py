"""Validation errors of a rack file as a person wants to read them: the path of the field, and what would be right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

# The patterns of the model in words; a regular expression is no help to somebody who writes YAML.
_PATTERNS = {
    r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$": "lower-case letters, digits, dots, hyphens; a letter or digit at the ends",
    r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$": "lower-case letters, digits and hyphens; a letter or digit at the ends",
    r"^/dev/[a-z0-9]+$": "a device like /dev/nvme0n1",
    r"^[a-z][a-z0-9_-]*-[0-9]+\.[0-9]+(\.[0-9]+)?$": "an image like debian-13.0.20261101: name, hyphen, version",
}
_LONGEST_VALUE = 60


def explain(error: ValidationError, model: type[BaseModel]) -> list[tuple[str, str]]:
    """(path, text) of each mistake; a path is `racks.0.leaves.1.asn`, counted from 0."""
    found = []
    errors = error.errors(include_url=False)
    places = [each["loc"] for each in errors]
    for each in errors:
        loc = each["loc"]
        # A list of one mistaken item is empty after validation; to complain of that as well would lead astray.
        if each["type"] == "too_short" and any(other[: len(loc)] == loc != other for other in places):
            continue
        place = [str(part) for part in each["loc"] if part != "[key]"]
        found.append((".".join(place) or "the file", _text(dict(each), model)))
    return found


def _text(mistake: Mapping[str, Any], model: type[BaseModel]) -> str:
    given = _short(mistake.get("input"))
    match mistake["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            known = _known_keys(model, mistake["loc"][:-1])
            return f"is not known here; known are {', '.join(known)}" if known else "is not known here; remove it"
        case "string_pattern_mismatch":
            pattern = mistake["ctx"]["pattern"]
            return f"{given} has to be {_PATTERNS.get(pattern, pattern)}"
        case "value_error":
            return str(mistake["ctx"]["error"])
        case _:
            text = str(mistake["msg"]).removeprefix("Input ")
            return f"{text}, not {given}"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a number as large as that"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _known_keys(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The fields of the part of the model at `path`."""
    kind: Any = model
    for step in path:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(step))
            kind = field.annotation if field is not None else None
        else:
            # Of a sequence the item, of a mapping the value.
            inner = [each for each in get_args(kind) if each is not Ellipsis]
            kind = inner[-1] if inner else None
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []
