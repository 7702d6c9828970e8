"""Identifiers: UUIDv7 (RFC 9562 section 5.7) for what the plane creates, and parsing of UUIDs that callers send."""

from __future__ import annotations

import re
import secrets
import threading
import time
import uuid

_FORM = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
_NANOSECONDS_A_MILLISECOND = 1_000_000
_lock = threading.Lock()
_last = 0


def uuid7() -> str:
    """A new UUIDv7, lower case. Ids of one process sort in the order of their creation.

    The 12 bits after the millisecond hold the fraction of it (RFC 9562 section 6.2, method 3); a clock that stands
    still or steps back is bridged by counting on.
    """
    global _last  # noqa: PLW0603 - one counter a process is what makes the ids sort
    millisecond, rest = divmod(time.time_ns(), _NANOSECONDS_A_MILLISECOND)
    stamp = millisecond << 12 | rest * 4096 // _NANOSECONDS_A_MILLISECOND
    with _lock:
        _last = stamp = max(stamp, _last + 1)
    number = (stamp >> 12) << 80 | 0x7 << 76 | (stamp & 0xFFF) << 64 | 0b10 << 62 | secrets.randbits(62)
    # By hand: uuid.UUID takes twice as long, and each call gets one or two.
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def made_before(first: str, second: str) -> bool:
    """Whether both are UUIDv7 and `first` was made in an earlier millisecond than `second`, by the clocks that made
    them."""
    one, other = uuid.UUID(first), uuid.UUID(second)
    return one.version == other.version == 7 and one.int >> 80 < other.int >> 80


def parse_uuid(text: str, *, field: str) -> str:
    """The canonical lower-case form of a UUID in its 8-4-4-4-12 form, of any version.

    Raises InvalidArgument that names `field`. Braces, `urn:uuid:` and the form without dashes are refused: an id that
    is accepted in several spellings is sooner or later stored in several.
    """
    canonical = text.lower()
    if not _FORM.fullmatch(canonical):
        from metal_kit.errors import InvalidArgument  # noqa: PLC0415 - with it comes gRPC, and agents start without

        raise InvalidArgument(
            "INVALID_UUID", "must be a UUID such as 4c4c4544-0051-3510-8052-b4c04f4e3132", field=field
        )
    return canonical
