"""Partial updates by field mask (AIP-134, AIP-161).

Done by hand rather than with `FieldMask.MergeMessage`, which cannot clear a field below an unset message, and raises
KeyError for `*` and for paths that do not exist.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from metal_kit.errors import InvalidArgument

_FIELD = "update_mask"


def apply_update(target: Message, source: Message, mask: FieldMask, *, mutable: Collection[str]) -> None:
    """Change `target` to what `source` says for the fields of the mask.

    An empty mask means every populated mutable field of `source`; `*` means every mutable field, populated or not. A
    field in the mask that is unset in `source` is cleared; lists and maps are replaced as a whole. `mutable` lists the
    paths that may change, each with what lies below it; a path outside of it may be in the mask when its value is the
    same, so that reading, changing one field and writing back works.

    Raises InvalidArgument that names the path when it does not exist, leads into a list or a map, or may not change.
    Nothing has changed then.
    """
    paths = list(dict.fromkeys(mask.paths))
    if not paths:
        paths = [path for path in mutable if _populated(source, path)]
    elif paths == ["*"]:
        paths = list(mutable)
    changes = [_checked(target, source, path, mutable) for path in paths]
    for names in changes:
        if names:
            _copy(target, source, names)


def _checked(target: Message, source: Message, path: str, mutable: Collection[str]) -> list[str]:
    """The names of a path, or nothing when there is nothing to change."""
    names = path.split(".")
    _check_path(target, path, names)
    if any(path == allowed or path.startswith(f"{allowed}.") for allowed in mutable):
        return names
    if _value(target, names) == _value(source, names):
        return []
    raise InvalidArgument("IMMUTABLE_FIELD", f"{path}: cannot be changed", field=path)


def _check_path(message: Message, path: str, names: list[str]) -> None:
    descriptor: Any = message.DESCRIPTOR
    for position, name in enumerate(names):
        field = descriptor.fields_by_name.get(name) if descriptor is not None else None
        if field is None:
            raise InvalidArgument("UNKNOWN_FIELD", f"{_FIELD}: there is no field {path!r}", field=_FIELD)
        if field.is_repeated and position < len(names) - 1:
            raise InvalidArgument(
                "INVALID_MASK", f"{_FIELD}: {path!r} leads into a list or map; name the whole of it", field=_FIELD
            )
        descriptor = field.message_type


def _copy(target: Message, source: Message, names: Iterable[str]) -> None:
    *parents, last = names
    into: Any = target
    for position, name in enumerate(parents):
        # Clearing something below a message that is not there: nothing to do, and nothing to create.
        if not into.HasField(name) and not _present(source, parents[: position + 1]):
            return
        into = getattr(into, name)
    origin = _follow(source, parents)
    field: FieldDescriptor = into.DESCRIPTOR.fields_by_name[last]
    into.ClearField(last)
    if field.is_repeated:
        getattr(into, last).MergeFrom(getattr(origin, last))
    elif field.message_type is not None:
        if origin.HasField(last):
            getattr(into, last).CopyFrom(getattr(origin, last))
    elif not field.has_presence or origin.HasField(last):
        setattr(into, last, getattr(origin, last))


def _populated(message: Message, path: str) -> bool:
    *parents, last = path.split(".")
    if not _present(message, parents):
        return False
    return any(field.name == last for field, _ in _follow(message, parents).ListFields())


def _present(message: Any, names: Iterable[str]) -> bool:
    """Whether each message on the way is set."""
    for name in names:
        if not message.HasField(name):
            return False
        message = getattr(message, name)
    return True


def _follow(message: Any, names: Iterable[str]) -> Any:
    for name in names:
        message = getattr(message, name)
    return message


def _value(message: Message, names: list[str]) -> object:
    return _follow(message, names)
