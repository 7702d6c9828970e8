"""Keep secrets out of the log: by the name of the key, at any depth, and passwords inside of URLs.

Messages of the contracts are logged by their type name only, since any of them may carry a password. This does not
look into free text for secrets; log fields, not sentences.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from google.protobuf.message import Message

REDACTED = "[redacted]"
_SENSITIVE = re.compile(
    r"password|passwd|passphrase|token|secret|authorization|credential|cookie|(private|api|encryption|signing)_?key"
)
# Names that contain a sensitive word and yet are no secret: references to one, or facts about one.
_HARMLESS = re.compile(r"_(id|ids|count|kind|type|name|expiry|expires|ttl|path|file)$")
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[-. ]")
_URL_PASSWORD = re.compile(r"(://[^/@\s:]*):[^@/\s]+@")
_MAX_DEPTH = 12


@lru_cache(maxsize=4096)
def is_sensitive(key: str) -> bool:
    """Whether a value under this key must not be logged: `password`, `apiToken`, `authorization`, `private-key`, …"""
    normal = _WORDS.sub("_", key).lower()
    return bool(_SENSITIVE.search(normal)) and not _HARMLESS.search(normal)


def redact(value: Any, depth: int = 0) -> Any:
    """A copy of `value` without secrets; plain scalars come back as they are."""
    if isinstance(value, str):
        return _URL_PASSWORD.sub(r"\1:" + REDACTED + "@", value) if "://" in value else value
    if value is None or isinstance(value, int | float):
        return value
    if depth > _MAX_DEPTH:
        return "[too deep]"
    if isinstance(value, Mapping):
        return {
            key: REDACTED if isinstance(key, str) and is_sensitive(key) else redact(item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, Message):
        return f"<{value.DESCRIPTOR.full_name}>"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.repr}
        return redact(fields, depth + 1)
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item, depth + 1) for item in value]
    return value
